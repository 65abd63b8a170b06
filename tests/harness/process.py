"""Child processes of tests, which start with default signals and end whatever happens, and facts of processes.

A run that was started with signals ignored (`nohup`, a script's background job) would hand that on to every child,
which then does not end when the test tells it to.  Only the standard library is needed here.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Self

Command = Sequence[str] | Sequence[Path] | Sequence[str | Path]
Process = subprocess.Popen[str]
Result = subprocess.CompletedProcess[str]

PATIENCE = 60.0
END_PATIENCE = 10.0
RESTORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGXFSZ")
# Between fork and exec nothing of Python may run in a program with threads, so another program restores the signals.
LAUNCHER = """
import os, signal, sys
for name in sys.argv[1].split(","):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
for name in filter(None, sys.argv[2].split(",")):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
if sys.argv[3] == "terminal":
    os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execvp(sys.argv[4], sys.argv[4:])
"""


def start(
    command: Command,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[Any] | int = subprocess.DEVNULL,
    stdout: IO[Any] | int | None = subprocess.PIPE,
    stderr: IO[Any] | int | None = None,
    pass_fds: Sequence[int] = (),
    ignored: Sequence[signal.Signals] = (),
    terminal: bool = False,
) -> Process:
    """Start a program in a process group of its own, with default signals but for those to be `ignored`.

    With `terminal` it leads a session, whose terminal its standard input is.  Whoever calls this must call `end`.
    """
    arguments = [os.fspath(part) for part in command]
    if ignored or terminal or _signals_are_unusual():
        names = ",".join(number.name for number in ignored)
        how = [",".join(RESTORED), names, "terminal" if terminal else "none"]
        arguments = [sys.executable, "-I", "-S", "-c", LAUNCHER, *how, *arguments]
    return subprocess.Popen(
        arguments,
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
        pass_fds=pass_fds,
        start_new_session=terminal,
        process_group=None if terminal else 0,
    )


def end(process: Process, *, patience: float = END_PATIENCE) -> None:
    """End a program that `start` started: politely, after `patience` seconds by force, and all of its process group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    kill(process)
    close(process)


def kill(process: Process) -> None:
    """Kill it and all of its process group; its output can still be read."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_PATIENCE)


def close(process: Process) -> None:
    """Close what is left open of its input and output."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextmanager
def started(command: Command, **options: Any) -> Iterator[Process]:
    """A program that runs at most as long as the block; the options are those of `start`."""
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)


class Terminal:
    """A terminal for one program, which is its session's leader there."""

    def __init__(self) -> None:
        self._mine, self._theirs = pty.openpty()
        self._shown = ""

    def started(self, command: Command, **options: Any) -> AbstractContextManager[Process]:
        """A program that has this terminal; the options are those of `start`."""
        ends = {"stdin": self._theirs, "stdout": self._theirs, "stderr": self._theirs}
        return started(command, terminal=True, **ends, **options)

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until this has been shown."""
        while text not in self._shown:
            self._shown += os.read(self._mine, 1000).decode(errors="replace")

    def close(self) -> None:
        """Hang up: the session's leader and whoever has the terminal get SIGHUP."""
        for number in (self._mine, self._theirs):
            with contextlib.suppress(OSError):
                os.close(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(
    command: Command,
    *,
    text: str = "",
    seconds: float = PATIENCE,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Result:
    """Run a program to its end with `text` as its input, and return its status and what it printed.

    Raises TimeoutExpired, with what it printed, after so many seconds; it is ended by then.
    """
    with started(command, env=env, cwd=cwd, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, errors = process.communicate(text, timeout=seconds)
    return Result(command, process.returncode, out, errors)


def output(command: Command, **options: Any) -> str:
    """What a program printed that succeeded; the options are those of `run`."""
    ran = run(command, **options)
    assert ran.returncode == 0, f"{command[0]} failed with status {ran.returncode}: {ran.stderr or ran.stdout}"
    return ran.stdout


def _signals_are_unusual() -> bool:
    """Whether a child of this program would start with signals ignored or blocked."""
    # Python ignores the others itself, and its children do not.
    watched = [getattr(signal, name) for name in RESTORED if name not in ("SIGPIPE", "SIGXFSZ")]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return bool(blocked) or any(signal.getsignal(number) is signal.SIG_IGN for number in watched)


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
