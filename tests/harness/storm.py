"""A storm of logins from a process of its own: `python -m harness.storm PORT USER DATABASE COUNT`, the password in its
standard input.

They are all connected first; then each message of all of them goes out in one burst, so that the proxy has the work of
all at once and not as it trickles in.  It says when they are logged in, and keeps them until its standard input ends.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.process import end, start
from harness.rawclient import Message, RawClient, ServerSaid, cstring, frame, startup
from harness.registries import TenantUnderTest
from proxy.auth import ScramClient, derive_keys

TESTS = Path(__file__).resolve().parents[1]
PATIENCE = 120.0
SASL, CONTINUE, FINAL = 10, 11, 12


class Storm:
    """So many logins at once; `wait` ends when all of them are logged in."""

    def __init__(self, port: int, tenant: TenantUnderTest, count: int) -> None:
        self._process = start(
            [sys.executable, "-m", "harness.storm", str(port), tenant.user, tenant.slug, str(count)],
            cwd=TESTS,
            env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
            stdin=subprocess.PIPE,
        )
        self._password = tenant.password

    def wait_for_connections(self) -> None:
        """Wait until they are connected, and have said nothing yet."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{self._password}\n")
        self._process.stdin.flush()
        self._expect("connected")

    def wait(self) -> None:
        """Wait until everybody is logged in; raises AssertionError where somebody is not."""
        self._expect("logged in")

    def _expect(self, what: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said == f"{what}\n", f"the storm said {said!r} and ended with {self._process.poll()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=PATIENCE)
        finally:
            end(self._process)


def _expect_proof(client: RawClient, step: int) -> bytes:
    message: Message = client.read()
    if message.kind == "E":
        raise ServerSaid(message)
    assert (message.kind, message.int32) == ("R", step), f"{message.kind} in place of step {step}"
    return message.body[4:]


def _blow(port: int, user: str, database: str, count: int) -> None:
    password = sys.stdin.readline().rstrip("\n")
    derive = cache(derive_keys)
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port, timeout=PATIENCE)) for _ in range(count)]
        proofs = [ScramClient(password, os.urandom(18), derive=derive) for _ in clients]
        _say("connected")
        hello = startup({"user": user, "database": database})
        for client in clients:
            client.send(hello)
        for client in clients:
            _expect_proof(client, SASL)
        for client, proof in zip(clients, proofs, strict=True):
            first = proof.first()
            client.send(frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", len(first)) + first))
        answers = [
            frame("p", proof.respond(_expect_proof(client, CONTINUE)))
            for client, proof in zip(clients, proofs, strict=True)
        ]
        for client, answer in zip(clients, answers, strict=True):
            client.send(answer)
        for client, proof in zip(clients, proofs, strict=True):
            proof.verify(_expect_proof(client, FINAL))
            client.read_until("Z")
        _say("logged in")
        sys.stdin.read()


def _say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _blow(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
