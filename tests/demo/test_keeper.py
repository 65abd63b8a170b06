from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

from harness.process import started
from harness.waiting import wait_until

from proxy.demo import kept


def test_owner_that_goes_without_reading_the_answer_ends_the_command(tmp_path: Path) -> None:
    """An interrupt may strike between the start of a command and its answer: closing then resets the stream."""
    begun, mine, theirs = tmp_path / "begun", *socket.socketpair()
    command = [sys.executable, "-I", "-S", str(Path(kept.__file__).with_name("keeper.py")), str(theirs.fileno())]
    order = {
        "command": ["/bin/sh", "-c", f"echo $$ > {begun}; exec sleep 600"],
        "env": dict(os.environ),
        "cwd": None,
        "account": None,
        "end_signal": int(signal.SIGTERM),
        "end_patience": 5.0,
        "remove": [],
        "foreground": False,
        "sweep": True,
    }
    with started(command, stdout=None, pass_fds=[theirs.fileno()]) as keeper:
        theirs.close()
        mine.sendall(json.dumps(order).encode() + b"\n")
        wait_until(lambda: begun.exists() and begun.read_text() != "", what="the start of the command")
        wait_until(lambda: mine.recv(1, socket.MSG_PEEK) == b"p", what="the keeper's answer")
        mine.close()
        assert keeper.wait(30) == 128 + signal.SIGTERM
