"""Child processes which end when this program ends, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

START_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, by number, as which a child is to run."""

    name: str
    user_id: int
    group_id: int


class KeptProcess:
    """A command run under a keeper: it has a process group of its own and never outlives this program.

    Its own process group means that Ctrl-C in a terminal does not reach it: the owner decides when it ends.
    When this object's owner is killed, the command gets `end_signal`, and SIGKILL after `end_patience` seconds;
    then the directories in `remove` are deleted.  Standard output and error are appended to `log` (None: shared
    with this program).  With `foreground` it gets the terminal's input and its Ctrl-C, and ignores the signals that
    this program ignores (as under nohup); else it starts with default signals.  With `sweep` signals go to all of
    its process group, whose last members are ended with it.  Thread-safe.

    Raises OSError when the command cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        log: Path | None = None,
        account: Account | None = None,
        end_signal: signal.Signals = signal.SIGTERM,
        end_patience: float = 10.0,
        remove: Sequence[Path] = (),
        foreground: bool = False,
        sweep: bool = False,
    ) -> None:
        order = {
            "command": list(command),
            "env": dict(env),
            "cwd": None if cwd is None else os.fspath(cwd),
            "account": None if account is None else [account.user_id, account.group_id],
            "end_signal": int(end_signal),
            "end_patience": end_patience,
            "remove": [os.fspath(path) for path in remove],
            "foreground": foreground,
            "sweep": sweep,
        }
        with contextlib.ExitStack() as undo:
            self._control, theirs = socket.socketpair()
            undo.callback(self._control.close)
            with theirs:
                self._keeper = self._start_keeper(theirs.fileno(), log, foreground=foreground)
            undo.callback(self._abandon)
            self.pid = self._place(order)
            undo.pop_all()

    def _start_keeper(self, control: int, log: Path | None, *, foreground: bool) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as files:
            output = None if log is None else files.enter_context(log.open("ab"))
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py")), str(control)],
                stdin=None if foreground else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[control],
                start_new_session=not foreground,
            )

    def _abandon(self) -> None:
        self._control.close()
        self._keeper.wait()

    def _place(self, order: Mapping[str, object]) -> int:
        self._control.settimeout(START_PATIENCE)
        self._control.sendall(json.dumps(order).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self._control.recv(4096)
            if not piece:
                break
            answer += piece
        self._control.settimeout(None)
        word, _, rest = answer.decode().strip().partition(" ")
        if word != "pid":
            raise OSError(rest or "the keeper process ended before it started the command")
        return int(rest)

    def poll(self) -> int | None:
        """The exit status if the command has ended (128+n for a signal), else None."""
        status = self._keeper.poll()
        if status is not None:
            self._control.close()
        return status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status (128+n for a signal).

        Raises TimeoutError after `timeout` seconds.
        """
        try:
            status = self._keeper.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s") from None
        self._control.close()
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal to the command; nothing happens when it has ended."""
        with contextlib.suppress(OSError):
            self._control.sendall(f"signal {int(number)}\n".encode())

    def end(self, number: int | None = None, *, patience: float = 10.0) -> int:
        """Send `number` (default SIGTERM), wait `patience` seconds, then SIGKILL; return the exit status."""
        self.send_signal(signal.SIGTERM if number is None else number)
        try:
            return self.wait(patience)
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            return self.wait(patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.poll() is None:
            self.end()
