"""A small process which stands between this program and a child, so that the child never outlives it.

Run as a script with nothing but the standard library: `python -I -S keeper.py CONTROL_FD`.  The first line that
comes down its control socket is the order, in JSON (its keys are those of `KeptProcess`).  The keeper starts the
command, answers `pid N` (or `error TEXT`), and from then on obeys the socket: `signal N` sends that signal to the
command, and the end of the stream, which also comes when the program that started it was killed, ends it.
The keeper exits as the command did: with its status, or 128+n for a signal.  Where the kernel can do it (Linux),
the command also dies when the keeper itself is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
FOR_THE_CHILD_ALONE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTOU)


def keep(control: socket.socket) -> int:
    """Run the ordered command until it ends and return its exit status."""
    inherited = [signal.signal(number, signal.SIG_IGN) for number in FOR_THE_CHILD_ALONE]
    ignored = [number for number, how in zip(FOR_THE_CHILD_ALONE, inherited, strict=True) if how is signal.SIG_IGN]
    lines = control.makefile("r")
    order = json.loads(lines.readline())
    try:
        child = _start(order, ignored)
    except (OSError, subprocess.SubprocessError) as error:
        control.sendall(f"error {error}\n".encode())
        return 127
    control.sendall(f"pid {child.pid}\n".encode())
    abandoned = threading.Event()
    threading.Thread(target=_obey, args=(lines, child, order, abandoned), daemon=True).start()
    status = child.wait()
    if order["sweep"]:
        _sweep_group(child.pid)
    if order["foreground"]:
        _take_terminal_back()
    if abandoned.is_set():
        for directory in order["remove"]:
            shutil.rmtree(directory, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _start(order: dict[str, Any], ignored: Sequence[signal.Signals]) -> subprocess.Popen[bytes]:
    """Start the command, with default signals; one in the foreground goes on ignoring what its caller ignores."""
    foreground = bool(order["foreground"]) and _owns_terminal()
    kept = ignored if order["foreground"] else ()
    keeper = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and order["sweep"]:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    identity: dict[str, Any] = {}
    if order["account"] is not None:
        user, group = order["account"]
        identity = {"user": user, "group": group, "extra_groups": []}

    def prepare() -> None:
        if foreground:
            os.tcsetpgrp(0, os.getpid())
            # Nobody here could wake it again.
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        for number in FOR_THE_CHILD_ALONE:
            signal.signal(number, signal.SIG_IGN if number in kept else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Changing the user clears this setting, and Popen calls here only after that.
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, int(order["end_signal"]))
            if os.getppid() != keeper:
                os._exit(127)

    return subprocess.Popen(
        order["command"],
        env=order["env"],
        cwd=order["cwd"],
        stdin=None if order["foreground"] else subprocess.DEVNULL,
        process_group=0,
        # This process has no other thread yet, so that Python may run between fork and exec.
        preexec_fn=prepare,  # noqa: PLW1509
        **identity,
    )


def _obey(
    lines: TextIO,
    child: subprocess.Popen[bytes],
    order: dict[str, Any],
    abandoned: threading.Event,
) -> None:
    # A stream that was closed with our answer still unread ends with a reset.
    with contextlib.suppress(ConnectionResetError):
        for line in lines:
            _signal(child, int(line.split()[1]), whole_group=order["sweep"])
    abandoned.set()
    _signal(child, int(order["end_signal"]), whole_group=order["sweep"])
    try:
        child.wait(timeout=float(order["end_patience"]))
    except subprocess.TimeoutExpired:
        _signal(child, signal.SIGKILL, whole_group=order["sweep"])


def _signal(child: subprocess.Popen[bytes], number: int, *, whole_group: bool) -> None:
    if whole_group and child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
    else:
        child.send_signal(number)


def _sweep_group(group: int) -> None:
    """End what the command left behind in its process group: politely, and after a second by force."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        os.killpg(group, signal.SIGCONT)
        for _ in range(50):
            # What the command left behind is the keeper's to bury, or it would look alive.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-group, os.WNOHANG)
            os.killpg(group, 0)
            threading.Event().wait(0.02)
        os.killpg(group, signal.SIGKILL)


def _owns_terminal() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _take_terminal_back() -> None:
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as stream:
        sys.exit(keep(stream))
