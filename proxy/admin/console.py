"""The console of a node: who may use it, and its sessions.

Operators connect with any PostgreSQL client to the clients' port; the front door proves who they are (`side_door`) and
hands their sockets over.  A session is an ordinary coroutine beside the relay.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Final

import structlog

from proxy.admin.commands import PARAMETERS, Do
from proxy.admin.node import NodeView
from proxy.admin.session import Session, Surroundings
from proxy.auth import ScramVerifier
from proxy.errors import CONSOLE_FULL, CONSOLE_READ_ONLY, RELOAD_FAILED, SHUTTING_DOWN, Failure
from proxy.net.client_handshake import farewell, login_complete, parameter_statuses
from proxy.net.failures import fatal_response
from proxy.net.handshake_io import HandshakeSocket, PeerGone
from proxy.net.side_door import Guest
from proxy.net.tls import TlsConfigError
from proxy.wire.reports import NoticeResponse
from registry.contract import RegistryUnavailable

log = structlog.get_logger(__name__)

POSTGRES_VERSION: Final = "18.0"
"""What drivers are told that they talk to: the protocol's features depend on it."""
SHADOWS: Final = "01000"
"""The SQLSTATE of a warning."""
LAST_WORDS: Final = 0.5
"""Seconds that a session has to take its last message when the node ends."""


class Right(Enum):
    """What a user of the console may do."""

    LOOK = "stats"
    ORDER = "admin"


@dataclass(frozen=True, slots=True)
class ConsoleUser:
    """One of the console's users; the console has no passwords, only verifiers."""

    name: str
    right: Right
    verifier: ScramVerifier = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConsoleRules:
    """By which database name the console is reached, by whom, and by how many at once."""

    database: str
    users: Mapping[str, ConsoleUser]
    max_sessions: int


class Console:
    """The console of a node.  `logins` are its sessions so far, `sessions` those that it has now."""

    def __init__(self, rules: ConsoleRules, node: NodeView) -> None:
        self._rules = rules
        self._node = node
        self._entering = 0
        self._tasks: set[asyncio.Task[None]] = set()
        version = f"{POSTGRES_VERSION} (pgtenant {node.build.version})"
        self._statuses = (("server_version", version), *PARAMETERS.items())
        self._around = Surroundings(node, version, self._order, asyncio.Lock())
        self.logins = 0

    @property
    def database(self) -> str:
        return self._rules.database

    @property
    def sessions(self) -> int:
        return len(self._tasks) + self._entering

    def verifier(self, user: str) -> ScramVerifier | None:
        """The verifier of one of the console's users, None for everybody else."""
        found = self._rules.users.get(user)
        return None if found is None else found.verifier

    async def receive(self, guest: Guest) -> None:
        """Complete a login and take the socket over; raises Failure where the console is full, and PeerGone."""
        if self.sessions >= self._rules.max_sessions:
            raise Failure(CONSOLE_FULL, limit=self._rules.max_sessions)
        self._entering += 1
        try:
            own = (("session_authorization", guest.user), ("application_name", ""))
            statuses = parameter_statuses((*self._statuses, *own)) + self._warning(guest)
            await guest.io.send(guest.proof.final + login_complete(statuses, guest.pid, guest.key))
            sock = guest.io.detach()
        finally:
            self._entering -= 1
        self.logins += 1
        task = asyncio.get_running_loop().create_task(self._serve(sock, guest))
        self._tasks.add(task)
        task.add_done_callback(partial(_ended, self._tasks, sock))

    async def close(self) -> None:
        """End all sessions, each with a last message."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, sock: socket.socket, guest: Guest) -> None:
        right = self._rules.users[guest.user].right.value
        log.info(
            "console connected", user=guest.user, right=right, address=guest.address, tls=guest.greeting.tls is not None
        )
        io = HandshakeSocket(sock)
        reason = "internal error"
        try:
            reason = await Session(io, guest.user, self._around).serve()
        except PeerGone as gone:
            reason = str(gone)
        except asyncio.CancelledError:
            reason = "the node is shutting down"
            await farewell(io, fatal_response(Failure(SHUTTING_DOWN)), seconds=LAST_WORDS)
        finally:
            io.close()
            duration = round(self._node.clock() - guest.started, 3)
            log.info("console disconnected", user=guest.user, address=guest.address, reason=reason, duration=duration)

    def _warning(self, guest: Guest) -> bytes:
        """Say so, to the log and the client, where the console stands in a tenant's way."""
        if guest.shadowed is None:
            return b""
        log.warning("the console hides a tenant", tenant=guest.shadowed, user=guest.user, database=self.database)
        notice = NoticeResponse.build(
            "WARNING",
            SHADOWS,
            f'this is the console: it hides tenant "{guest.shadowed}" from user "{guest.user}"',
            hint="Give the console's user another name, or the console another one with console.database.",
        )
        return notice.encode()

    async def _order(self, user: str, do: Do) -> None:
        """Do what an admin orders; RELOAD is all there is.  Raises Failure."""
        if self._rules.users[user].right is not Right.ORDER:
            raise Failure(CONSOLE_READ_ONLY, user=user, command=do.order.verb)
        try:
            version = await self._node.reload()
        except (RegistryUnavailable, TlsConfigError) as error:
            log.error("reload failed, what was in force stays in force", user=user, reason=str(error))
            raise Failure(RELOAD_FAILED, reason=error) from None
        log.info("reloaded", user=user, registry_version=version)


def _ended(tasks: set[asyncio.Task[None]], sock: socket.socket, task: asyncio.Task[None]) -> None:
    tasks.discard(task)
    if task.cancelled():
        # It had not begun, and nobody else knows the socket.
        sock.close()
    elif task.exception() is not None:
        log.error("a session of the console failed", exc_info=task.exception())
