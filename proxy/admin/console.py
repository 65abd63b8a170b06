"""The console of a node: who may use it, and its sessions.

Operators connect with any PostgreSQL client to the clients' port; the front door proves who they are (`side_door`) and
hands their sockets over.  A session is an ordinary coroutine beside the relay.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Final

import structlog

from proxy.admin.commands import PARAMETERS, Do
from proxy.admin.node import NodeView
from proxy.admin.session import Session, Surroundings
from proxy.auth import ScramVerifier
from proxy.errors import CONSOLE_FULL, CONSOLE_READ_ONLY, RELOAD_FAILED, SHUTTING_DOWN, TERMINATED, Failure
from proxy.net.client_handshake import farewell, login_complete, parameter_statuses
from proxy.net.failures import fatal_response
from proxy.net.handshake_io import HandshakeSocket, PeerGone
from proxy.net.side_door import Guest
from proxy.settings import Reloaded, ReloadFailed
from proxy.wire.reports import NoticeResponse

log = structlog.get_logger(__name__)

POSTGRES_VERSION: Final = "18.0"
"""What drivers are told that they talk to: the protocol's features depend on it."""
SUCCESS: Final = "00000"
WARNING: Final = "01000"
"""The SQLSTATEs of a notice and of a warning."""
NO_USER: Final = "the settings have no such console user any more"
KEPT_SHARE: Final = 4
"""One session of so many is kept for admins."""
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
    """By which database name the console is reached, by whom, by how many at once, and how long one may be idle."""

    database: str
    users: Mapping[str, ConsoleUser]
    max_sessions: int
    idle_timeout: float

    @property
    def max_lookers(self) -> int:
        """The sessions that users who may only look may have: they must not shut admins out."""
        if self.max_sessions == 1 or not any(user.right is Right.ORDER for user in self.users.values()):
            return self.max_sessions
        return self.max_sessions - max(1, self.max_sessions // KEPT_SHARE)


class Console:
    """The console of a node.  `logins` are its sessions so far, `sessions` those that it has now."""

    def __init__(self, rules: ConsoleRules, node: NodeView) -> None:
        self._rules = rules
        self._node = node
        self._entering: list[str] = []
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._why: dict[asyncio.Task[None], str] = {}
        version = f"{POSTGRES_VERSION} (pgtenant {node.build.version})"
        self._statuses = (("server_version", version), *PARAMETERS.items())
        self._around = Surroundings(node, version, self._order, asyncio.Lock())
        self.logins = 0

    @property
    def database(self) -> str:
        return self._rules.database

    @property
    def is_open(self) -> bool:
        return bool(self._rules.users)

    @property
    def sessions(self) -> int:
        return len(self._tasks) + len(self._entering)

    def follow(self, rules: ConsoleRules | None) -> None:
        """Let other users in from now on, or nobody; sessions of users who are none any more end with a message."""
        self._rules = rules or replace(self._rules, users={})
        for task, user in self._tasks.items():
            if user not in self._rules.users:
                self._why[task] = NO_USER
                task.cancel()

    def verifier(self, user: str) -> ScramVerifier | None:
        """The verifier of one of the console's users, None for everybody else."""
        found = self._rules.users.get(user)
        return None if found is None else found.verifier

    async def receive(self, guest: Guest) -> None:
        """Complete a login and take the socket over; raises Failure where the console is full, and PeerGone."""
        self._check_room(guest.user)
        self._entering.append(guest.user)
        try:
            own = (("session_authorization", guest.user), ("application_name", ""))
            statuses = parameter_statuses((*self._statuses, *own)) + self._warning(guest)
            await guest.io.send(guest.proof.final + login_complete(statuses, guest.key.pid, guest.key.secret))
            if guest.user not in self._rules.users:
                raise Failure(TERMINATED, reason=NO_USER)
            sock = guest.io.detach()
        finally:
            self._entering.remove(guest.user)
        self.logins += 1
        task = asyncio.get_running_loop().create_task(self._serve(sock, guest))
        self._tasks[task] = guest.user
        task.add_done_callback(partial(self._ended, sock))

    async def close(self) -> None:
        """End all sessions, each with a last message."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, sock: socket.socket, guest: Guest) -> None:
        right = self._right(guest.user).value
        log.info(
            "console connected", user=guest.user, right=right, address=guest.address, tls=guest.greeting.tls is not None
        )
        io = HandshakeSocket(sock)
        reason = "internal error"
        try:
            reason = await Session(io, guest.user, self._around, idle=self._rules.idle_timeout).serve()
        except Failure as ended:
            reason = ended.message
            await farewell(io, fatal_response(ended), seconds=LAST_WORDS)
        except PeerGone as gone:
            reason = str(gone)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            told = None if task is None else self._why.pop(task, None)
            reason = told or "the node is shutting down"
            failure = Failure(SHUTTING_DOWN) if told is None else Failure(TERMINATED, reason=told)
            await farewell(io, fatal_response(failure), seconds=LAST_WORDS)
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
            WARNING,
            f'this is the console: it hides tenant "{guest.shadowed}" from user "{guest.user}"',
            hint="Give the console's user another name, or the console another one with console.database.",
        )
        return notice.encode()

    def _check_room(self, user: str) -> None:
        rules = self._rules
        if self.sessions >= rules.max_sessions:
            raise Failure(CONSOLE_FULL, limit=rules.max_sessions, whose="")
        looking = sum(self._right(one) is Right.LOOK for one in (*self._tasks.values(), *self._entering))
        if self._right(user) is Right.LOOK and looking >= rules.max_lookers:
            raise Failure(CONSOLE_FULL, limit=rules.max_lookers, whose=" of users who may only look")

    def _right(self, user: str) -> Right:
        """What a user may do now: nobody keeps a right that the settings have taken away."""
        found = self._rules.users.get(user)
        return Right.LOOK if found is None else found.right

    async def _order(self, user: str, do: Do) -> bytes:
        """Do what an admin orders; RELOAD is all there is.  Returns notices about it, and raises Failure."""
        if self._right(user) is not Right.ORDER:
            raise Failure(CONSOLE_READ_ONLY, user=user, command=do.order.verb)
        try:
            return _notices(await self._node.reload(user))
        except ReloadFailed as failed:
            raise Failure(RELOAD_FAILED, hint=failed.hint, reason=failed) from None

    def _ended(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._why.pop(task, None)
        if task.cancelled():
            # It had not begun, and nobody else knows the socket.
            sock.close()
        elif task.exception() is not None:
            log.error("a session of the console failed", exc_info=task.exception())


def _notices(reloaded: Reloaded) -> bytes:
    """What a reload has changed, for who asked for it."""
    said = b""
    if reloaded.changed:
        said += NoticeResponse.build("NOTICE", SUCCESS, f"in force now: {', '.join(reloaded.changed)}").encode()
    if reloaded.needs_restart:
        text = f"these settings need a restart, and stay as they were: {', '.join(reloaded.needs_restart)}"
        said += NoticeResponse.build("WARNING", WARNING, text).encode()
    return said
