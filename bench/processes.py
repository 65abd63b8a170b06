"""Processor time and memory of a process and all that it started, from Linux's /proc."""

from __future__ import annotations

import os
from pathlib import Path

from bench.model import BenchError

PROC = Path("/proc")
# Positions in proc_pid_stat(5) behind the command's name: ppid, then utime, stime, cutime and cstime.
PARENT = 1
TIMES = slice(11, 15)
KIB = 1024


def parse_stat(text: str) -> tuple[int, int]:
    """Read a line of /proc/PID/stat: the parent's id and the clock ticks used, those of ended children included."""
    # The second field, the command's name in parentheses, may itself contain spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return int(fields[PARENT]), sum(int(value) for value in fields[TIMES])


def parse_memory(text: str) -> int:
    """Read /proc/PID/smaps_rollup: the bytes of anonymous and shared memory, each page divided by its sharers.

    Pages of files (programs, libraries) are left out: they do not grow with clients, and how many processes of the
    machine share them changes from moment to moment.
    """
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * KIB
    if "Pss_Anon" in found:
        return found["Pss_Anon"] + found.get("Pss_Shmem", 0)
    if "Anonymous" in found:
        return found["Anonymous"]
    raise BenchError("the kernel does not tell the memory of a process", "measure on Linux 4.14 or newer")


def process_tree(root: int) -> list[int]:
    """The ids of a process and of all its living descendants.

    Raises BenchError when the process has ended.
    """
    parents = _parents()
    if root not in parents:
        raise BenchError(f"process {root} has ended", "its log says why")
    tree = [root]
    for member in tree:
        tree.extend(child for child, parent in parents.items() if parent == member)
    return tree


def cpu_seconds(root: int) -> float:
    """The processor time, user and system, that a process tree has used until now."""
    ticks = 0
    for pid in process_tree(root):
        try:
            ticks += parse_stat((PROC / str(pid) / "stat").read_text(errors="replace"))[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(root: int) -> int:
    """The memory of a process tree, as `parse_memory` counts it.

    Raises BenchError when the system does not let this user see it.
    """
    total = 0
    for pid in process_tree(root):
        try:
            total += parse_memory((PROC / str(pid) / "smaps_rollup").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            raise BenchError(
                f"the memory of process {pid} may not be read", "run as the same user, or as root"
            ) from None
    return total


def _parents() -> dict[int, int]:
    parents = {}
    for entry in PROC.glob("[0-9]*"):
        try:
            parents[int(entry.name)] = parse_stat((entry / "stat").read_text(errors="replace"))[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return parents


class PeakMemory:
    """The most memory that one process has resident, from now on.

    Raises BenchError where the kernel does not let this user begin anew.
    """

    def __init__(self, pid: int) -> None:
        self._status = PROC / str(pid) / "status"
        try:
            (PROC / str(pid) / "clear_refs").write_text("5")
        except OSError as error:
            raise BenchError(f"the peak of process {pid}'s memory cannot be reset: {error}", "run as root") from None
        self.before = self._read("VmRSS")

    def peak(self) -> int:
        """Bytes (VmHWM of proc_pid_status(5))."""
        return self._read("VmHWM")

    def _read(self, name: str) -> int:
        for line in self._status.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * KIB
        raise BenchError(f"the kernel does not tell {name} of a process")
