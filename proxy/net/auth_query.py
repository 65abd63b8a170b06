"""Asking servers for the verifiers of their roles, over one connection for each server.

The connection is the proxy's own: it logs in as the role that the registry names for this, with settings of its own,
and nothing that a client sends reaches it but the name of a role, as a parameter.  It is opened when somebody has to be
asked for and closed when nobody has been for a while.  Servers that have such a role have one backend less.

Source: PostgreSQL documentation, `pg_authid`, "Writing SECURITY DEFINER Functions Safely" and "Extended Query".
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.net.backend_handshake import BackendOpenFailed, open_backend, printable
from proxy.net.handshake_io import HandshakeSocket, PeerGone
from proxy.net.host_names import HostNames
from proxy.net.scram_keys import ScramKeyCache
from proxy.net.tls import ServerTlsContexts
from proxy.routing.server_logins import CannotAsk, ServerRole
from proxy.wire import ProtocolError, framing
from proxy.wire.backend import DataRow
from proxy.wire.frontend import Bind, Execute, Parse, Sync, Terminate
from proxy.wire.reports import ErrorResponse
from registry.contract import AuthQuery, ServerInfo

log = structlog.get_logger(__name__)

MAX_REPLY: Final = 65_536
"""Longest message that a server may answer with, in bytes."""
MAX_MESSAGES: Final = 100
"""Messages that an answer may have; six are usual."""
MAX_WAITING: Final = 1_000
"""Questions that may wait for one server's connection."""

_TEXT: Final = 25
"""The type oid of `text`: compared with a name it is not cut to 63 bytes."""
_TWO_ROWS: Final = 2
_CANNOT_BE_A_NAME: Final = frozenset({"22P05", "22021"})
"""What PostgreSQL says to a parameter that the database's encoding has no characters for."""
_MOST_DOUBLINGS: Final = 16


@dataclass(frozen=True, slots=True)
class AskSettings:
    """How servers are asked; times in seconds.

    `timeout` is for one question, waiting and connecting included.  An unused connection is closed after `idle`.  After
    a failure to connect the server is left alone for `retry_first`, doubling up to `retry_most`.
    """

    timeout: float = 5.0
    idle: float = 30.0
    retry_first: float = 0.2
    retry_most: float = 5.0


class AuthQueries:
    """The connections over which servers are asked, at most one for each."""

    def __init__(
        self,
        settings: AskSettings,
        *,
        clock: Callable[[], float],
        tls_contexts: ServerTlsContexts,
        keys: ScramKeyCache,
        names: HostNames,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._tls = tls_contexts
        self._keys = keys
        self._names = names
        self._lines: dict[int, _Line] = {}

    def follow(self, settings: AskSettings) -> None:
        """Ask in another way from the next question on."""
        self._settings = settings
        for line in self._lines.values():
            line.settings = settings

    async def ask(self, server: ServerInfo, user: str) -> ServerRole | None:
        """Ask for a role that may log in, None where there is none; raises CannotAsk."""
        line = self._lines.get(server.server_id)
        if line is None:
            line = self._lines[server.server_id] = _Line(
                self._settings, self._clock, self._tls, self._keys, self._names
            )
        if line.waiting >= MAX_WAITING:
            raise CannotAsk(f"{MAX_WAITING} logins wait for its answer already")
        line.waiting += 1
        line.keep()
        try:
            async with asyncio.timeout(self._settings.timeout), line.lock:
                return await line.ask(server, user)
        except TimeoutError:
            raise CannotAsk(f"it did not answer within {self._settings.timeout:g} s") from None
        finally:
            line.waiting -= 1
            self._rest(server.server_id, line)

    @property
    def connections(self) -> int:
        """How many servers are connected to now."""
        return sum(line.io is not None for line in self._lines.values())

    def close(self) -> None:
        """Hang up on all servers."""
        for line in self._lines.values():
            line.keep()
            line.hang_up()
        self._lines.clear()

    def _rest(self, server_id: int, line: _Line) -> None:
        """Let go of a line that nobody needs, now or after a while."""
        line.keep()
        if line.waiting == 0:
            line.timer = asyncio.get_running_loop().call_later(self._settings.idle, self._let_go, server_id, line)

    def _let_go(self, server_id: int, line: _Line) -> None:
        line.hang_up()
        if self._lines.get(server_id) is line:
            del self._lines[server_id]


class _Line:
    """The connection to one server, and when it may be tried again."""

    def __init__(
        self,
        settings: AskSettings,
        clock: Callable[[], float],
        tls: ServerTlsContexts,
        keys: ScramKeyCache,
        names: HostNames,
    ) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0
        self.timer: asyncio.TimerHandle | None = None
        self.io: HandshakeSocket | None = None
        self.settings = settings
        self._clock = clock
        self._tls = tls
        self._keys = keys
        self._names = names
        self._server: ServerInfo | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._reason = ""

    async def ask(self, server: ServerInfo, user: str) -> ServerRole | None:
        if server != self._server:
            self.hang_up()
            self._server, self._retry_at = server, 0.0
        assert server.auth is not None, "only servers that have a role for this are asked"
        is_fresh = self.io is None
        try:
            return await self._ask(server, server.auth, user)
        except PeerGone as gone:
            if is_fresh:
                raise CannotAsk(f"it has ended the connection: {gone}") from None
        # The server has ended the connection since it was last used, as servers do when they restart.
        try:
            return await self._ask(server, server.auth, user)
        except PeerGone as gone:
            raise CannotAsk(f"it has ended the connection: {gone}") from None

    def keep(self) -> None:
        """Do not let go of it after a while: somebody asks."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def hang_up(self) -> None:
        """Close the connection, saying so where that can be done at once."""
        io, self.io = self.io, None
        if io is None:
            return
        with suppress(OSError):
            io.sock.send(Terminate().encode())
        io.close()

    async def _ask(self, server: ServerInfo, auth: AuthQuery, user: str) -> ServerRole | None:
        if self.io is None:
            self.io = await self._connect(server, auth)
        done = False
        try:
            role = await _converse(self.io, auth.query, user)
            done = True
            return role
        except ProtocolError as error:
            raise CannotAsk(f"its answer is not PostgreSQL's protocol: {error}") from None
        except _Refused as refused:
            done = True
            log.warning("a server refuses to tell verifiers", server=server.name, reason=str(refused))
            raise CannotAsk(str(refused)) from None
        finally:
            if not done:
                # Also when somebody has lost patience: what is still to come would be taken for the next answer.
                self.hang_up()

    async def _connect(self, server: ServerInfo, auth: AuthQuery) -> HandshakeSocket:
        if self._clock() < self._retry_at:
            raise CannotAsk(self._reason)
        milliseconds = str(max(1, math.ceil(self.settings.timeout * 1000)))
        own_settings = (
            ("search_path", "pg_catalog, pg_temp"),
            ("client_encoding", "UTF8"),
            ("application_name", "pgtenant verifiers"),
            ("statement_timeout", milliseconds),
        )
        try:
            ready = await open_backend(
                server,
                auth.database,
                auth.credentials,
                connect_timeout=self.settings.timeout,
                tls_contexts=self._tls,
                keys=self._keys,
                names=self._names,
                startup_parameters=own_settings,
            )
        except BackendOpenFailed as failure:
            pause = self.settings.retry_first * 2.0 ** min(self._failures, _MOST_DOUBLINGS)
            self._retry_at = self._clock() + min(pause, self.settings.retry_most)
            self._failures += 1
            self._reason = failure.text
            log.warning("a server cannot be asked for verifiers", server=server.name, reason=failure.text)
            raise CannotAsk(failure.text) from None
        self._failures = 0
        return HandshakeSocket(ready.sock, greedy=True)


class _Refused(Exception):
    """The server answered with an error, or with something that is no verifier."""


async def _converse(io: HandshakeSocket, query: str, user: str) -> ServerRole | None:
    """Ask one question; raises _Refused, after which the next may follow, PeerGone and ProtocolError."""
    messages = (
        Parse("", query, (_TEXT,)),
        Bind("", "", (user.encode("utf-8"),)),
        Execute("", _TWO_ROWS),
        Sync(),
    )
    await io.send(b"".join(message.encode() for message in messages))
    rows: list[tuple[bytes | None, ...]] = []
    error: _Refused | None = None
    for _ in range(MAX_MESSAGES):
        kind, body = await io.read_frame(MAX_REPLY)
        if kind == framing.B_DATA_ROW:
            rows.append(DataRow.decode(body).values)
        elif kind == framing.B_ERROR:
            said = ErrorResponse.decode(body)
            if said.sqlstate in _CANNOT_BE_A_NAME:
                # Another answer than the one to a name that nobody has would tell strangers that the tenant exists.
                rows.clear()
                continue
            text = printable(f"{said.message or 'an error'} (SQLSTATE {said.sqlstate or 'missing'})")
            if said.severity in {"FATAL", "PANIC"}:
                raise PeerGone(text)
            error = _Refused(text)
        elif kind == framing.B_READY:
            if error is not None:
                raise error
            return _role(rows)
    raise ProtocolError("the answer has too many messages")


def _role(rows: list[tuple[bytes | None, ...]]) -> ServerRole | None:
    """Read the answer: the verifier, and beside it, where it has two columns, the seconds that it is valid."""
    if not rows:
        return None
    if len(rows) > 1 or not 1 <= len(rows[0]) <= len(("verifier", "seconds")):
        raise _Refused("the query has to give one row at most, with a verifier and the seconds that it is valid")
    verifier, seconds = (*rows[0], None)[:2]
    if verifier is None:
        return None
    try:
        left = None if seconds is None else float(seconds)
        text = verifier.decode("ascii")
    except ValueError:
        raise _Refused("the query has to give a verifier, and the seconds that it is valid as a number") from None
    if left is not None and not left > 0:
        return None
    return ServerRole(text, left)
