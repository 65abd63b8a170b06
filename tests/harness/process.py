"""What the system knows of a process."""

from __future__ import annotations

from pathlib import Path


def peak_memory(pid: int) -> int:
    """The most memory in bytes that a process has had resident so far (VmHWM of proc_pid_status(5))."""
    return _status(pid, "VmHWM") * 1024


def memory(pid: int) -> int:
    """The bytes of memory that a process has resident now (VmRSS)."""
    return _status(pid, "VmRSS") * 1024


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no {name}")
