"""The relay rules between a client's messages and a real server, which another connection observes meanwhile.

What the rules say of a transaction is read off the replies; what the server itself thinks stands in
`pg_stat_activity`, and the rules never see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from harness.rawclient import RawClient, flush
from harness.relaymodel import RelayPair, frames


@dataclass(frozen=True, slots=True)
class Truth:
    """What the server thinks of a session: whether a transaction is open, and whether it has written something."""

    open: bool
    written: bool


class ObservedSession:
    """One session on the server at `port`, all of whose messages and replies pass the relay rules."""

    def __init__(self, port: int, user: str, password: str, database: str) -> None:
        self.pair = RelayPair()
        self._observer = RawClient(port)
        self._backend = RawClient(port)
        for client in (self._observer, self._backend):
            client.login(user, password, database)

    def say(self, message: bytes) -> str:
        """Send a message and a Flush; return the types of all replies that come, and of ReadyForQuery the status."""
        pair = self.pair
        pair.client(message, flush())
        answer = b""
        while True:
            self._backend.send(bytes(pair.to_server))
            pair.to_server.clear()
            if not pair.back.owes():
                break
            data = self._backend.sock.recv(1 << 16)
            assert data, "the server has closed"
            answer += data
            pair.server(data)
            assert not pair.back.fault, pair.back.fault
        return "".join(body.decode() if kind == "Z" else kind for kind, body in frames(answer))

    def truth(self) -> Truth:
        """Ask the server, which has nothing to do, what it thinks of the session."""
        ((is_open, written),) = self._observer.rows(
            "select xact_start is not null or state like 'idle in transaction%', backend_xid is not null"
            f" from pg_stat_activity where pid = {self._backend.pid}"
        )
        return Truth(is_open == "t", written == "t")

    def hand_on(self) -> list[tuple[str | None, ...]]:
        """Be the next client of this backend; return whether its first query began a transaction of its own.

        Raises ServerSaid where the server refuses the query.
        """
        return self._backend.rows("select pg_current_xact_id_if_assigned() is null and now() = statement_timestamp()")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._observer.close()
        self._backend.close()
