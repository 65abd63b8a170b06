"""One session of the console: reads messages, does what they ask for, sends what comes of it.

Tables are rendered in slices of about a millisecond, and all sessions together get one slice per turn of the event
loop, so that the relay is never held up by what operators look at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.admin.commands import Accepted, Command, Constant, Do, Show
from proxy.admin.conversation import Conversation, Portal, Run
from proxy.admin.facts import FACTS, route
from proxy.admin.node import NodeView
from proxy.admin.tables import Row, encode_row
from proxy.admin.views import VIEWS
from proxy.errors import CONSOLE_IDLE, INTERNAL, PROTOCOL_VIOLATION, Failure
from proxy.net.handshake_io import HandshakeSocket
from proxy.wire import ProtocolError
from proxy.wire.backend import CommandComplete, PortalSuspended
from proxy.wire.framing import F_FLUSH, F_FUNCTION, F_QUERY, F_SYNC

log = structlog.get_logger(__name__)

MAX_MESSAGE: Final = 16_384
"""Longest body of a client's message in bytes."""
ENOUGH: Final = 32_768
"""Bytes after which an answer is sent before more of it is made."""
SLICE: Final = 0.001
"""Seconds of rendering before the loop gets its turn."""
SEND_PATIENCE: Final = 60.0
"""Seconds that a client has to take a piece of its answer."""

_SENT_AT_ONCE: Final = frozenset({F_QUERY, F_FUNCTION, F_SYNC, F_FLUSH})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the sessions of one console share.

    `order` does what an admin orders, in the name of a user, and returns notices about it; it raises Failure.
    `server_version` is what the console reports as PostgreSQL's.  `turn` is held while a slice is made.
    """

    node: NodeView
    server_version: str
    order: Callable[[str, Do], Awaitable[bytes]]
    turn: asyncio.Lock


class Session:
    """A session of `user`, from ReadyForQuery to its end; `io` is the caller's to close.

    It may ask nothing for `idle` seconds; 0: for ever.
    """

    def __init__(self, io: HandshakeSocket, user: str, around: Surroundings, *, idle: float = 0.0) -> None:
        self._io = io
        self._user = user
        self._around = around
        self._idle = idle
        self._conversation = Conversation()
        self._out = bytearray()

    async def serve(self) -> str:
        """Serve until the client leaves, and say why it ended.

        Raises PeerGone where the connection was lost, and Failure where it was idle for too long.
        """
        try:
            return await self._serve()
        except TimeoutError:
            return "it did not take its answer in time"

    async def _serve(self) -> str:
        while not self._conversation.over:
            try:
                kind, body = await self._read()
                await self._answer(kind, body)
            except ProtocolError as error:
                self._out += self._conversation.failed(Failure(PROTOCOL_VIOLATION, reason=error))
                await self._send()
                return "protocol violation"
            # Of TLS many messages may be here already, and reading one of them waits for nothing.
            await asyncio.sleep(0)
        return "the client disconnected"

    async def _read(self) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self._idle or None):
                return await self._io.read_frame(MAX_MESSAGE)
        except TimeoutError:
            raise Failure(CONSOLE_IDLE, seconds=self._idle) from None

    async def _answer(self, kind: int, body: bytes) -> None:
        try:
            for step in self._conversation.take(kind, body):
                if isinstance(step, Run):
                    await self._run(step.portal, step.limit)
                else:
                    self._out += step
        except Failure as failure:
            self._out += self._conversation.failed(failure)
        if kind in _SENT_AT_ONCE or len(self._out) >= ENOUGH or self._conversation.over:
            await self._send()

    async def _run(self, portal: Portal, limit: int) -> None:
        command = portal.command
        if portal.rows is None and not portal.finished:
            portal.rows = await self._open(command)
        before = portal.count
        while portal.rows is not None:
            async with self._around.turn:
                at_limit = self._render(portal, before + limit if limit else 0)
                await asyncio.sleep(0)
            if at_limit:
                self._out += PortalSuspended().encode()
                return
            if len(self._out) >= ENOUGH:
                await self._send()
        portal.finished = True
        self._out += CommandComplete(_tag(command)).encode()

    async def _open(self, command: Command) -> Iterator[Row | None] | None:
        """Begin what a command asks for; returns its rows, None where it has none."""
        node = self._around.node
        if isinstance(command, Do):
            self._out += await self._around.order(self._user, command)
            return None
        if isinstance(command, Constant):
            return iter([(self._version_as(command) if command.value is None else command.value,)])
        if not isinstance(command, Show):
            return None
        name = command.topic.name
        if name in VIEWS:
            return VIEWS[name](node, node.moment(), command.arguments)
        if name in FACTS:
            return FACTS[name](node)
        return iter(await route(node, command.arguments))

    def _version_as(self, command: Constant) -> str:
        """The version in the form that is asked for: drivers look for PostgreSQL's number in both."""
        version = self._around.server_version
        return f"PostgreSQL {version}" if command.column.name == "version" else version

    def _render(self, portal: Portal, until: int) -> bool:
        """Make rows for a slice of time; says whether `until` rows (0: no limit) have been reached.

        Where there are no more rows, `portal.rows` is None afterwards.
        """
        clock = self._around.node.clock
        columns = portal.command.columns
        end = clock() + SLICE
        assert portal.rows is not None, "somebody asks for rows"
        try:
            for row in portal.rows:
                if row is not None:
                    self._out += encode_row(columns, portal.formats, row)
                    portal.count += 1
                    if portal.count == until:
                        return True
                if clock() >= end or len(self._out) >= ENOUGH:
                    return False
        except Exception as error:
            log.exception("a table of the console failed", command=_tag(portal.command))
            raise Failure(INTERNAL) from error
        portal.rows = None
        return False

    async def _send(self) -> None:
        """Send what there is; raises TimeoutError where the client does not take it."""
        data = bytes(self._out)
        self._out.clear()
        async with asyncio.timeout(SEND_PATIENCE):
            await self._io.send(data)


def _tag(command: Command) -> str:
    if isinstance(command, Do):
        return command.order.verb
    return command.tag if isinstance(command, Constant | Accepted) else "SHOW"
