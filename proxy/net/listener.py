"""Listening for clients: accepting a few at a time, so that a storm of connections stalls nobody."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Final, TypeAlias

import structlog

log = structlog.get_logger(__name__)

PAUSE_WHEN_EXHAUSTED: Final = 0.25
"""Seconds without accepting after the system had no descriptor or memory left."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

PeerAddress: TypeAlias = tuple[str, int]
Login: TypeAlias = Callable[[socket.socket, PeerAddress], Coroutine[object, object, None]]


class ListenError(Exception):
    """The address cannot be listened on; `hint` says what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class PortTaken(ListenError):
    """Another program listens on this port."""


class Listener:
    """Accepts clients and runs `login` as a task for each.

    `login` gets a connected, non-blocking socket (TCP_NODELAY and keepalive on) and the peer's address, owns the
    socket, and must not raise: it ends when the login is complete or refused.  At most `accepts_per_turn` clients are
    accepted in a turn of the loop, and none while `max_logins` logins are under way: the others wait in the
    system's queue of `backlog` connections.  An empty `host` or `*` means all interfaces, port 0 any free one.

    Call `start`, in the end `stop` and `close`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        login: Login,
        *,
        backlog: int = 1024,
        accepts_per_turn: int = 8,
        max_logins: int = 1000,
    ) -> None:
        self.accepted = 0
        self.exhausted = 0
        self._host = host
        self._port = port
        self._login = login
        self._backlog = backlog
        self._accepts_per_turn = accepts_per_turn
        self._max_logins = max_logins
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets: list[socket.socket] = []
        self._logins: set[asyncio.Task[None]] = set()
        self._watching = False
        self._pause: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; only between `start` and `stop`."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def logins(self) -> int:
        """How many logins are under way."""
        return len(self._logins)

    def start(self) -> None:
        """Bind and begin to accept; raises PortTaken, ListenError."""
        self._loop = asyncio.get_running_loop()
        try:
            self._bind()
        except BaseException:
            self.stop()
            raise
        self._watch()

    def stop(self) -> None:
        """Accept nobody any more and free the port; logins under way go on."""
        self._unwatch()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    async def close(self, grace: float = 0.0) -> None:
        """Stop, wait up to `grace` seconds for the logins under way, and cancel those that are left."""
        self.stop()
        # A task cancelled before its first step never runs, and would not close its socket.
        await asyncio.sleep(0)
        logins = set(self._logins)
        if logins and grace > 0:
            _, logins = await asyncio.wait(logins, timeout=grace)
        for login in logins:
            login.cancel()
        await asyncio.gather(*logins, return_exceptions=True)

    def _bind(self) -> None:
        host = None if self._host in {"", "*"} else self._host
        try:
            found = socket.getaddrinfo(host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError):
            raise ListenError(
                f"there is no address {self._host!r} to listen on",
                "Set listen.host to an address or name of this machine, 127.0.0.1 or *.",
            ) from None
        port = self._port
        for family, _, _, _, address in found:
            try:
                sock = _listen(family, (address[0], port, *address[2:]), self._backlog)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                    continue
                raise _listen_error(error, str(address[0]), port) from None
            self._sockets.append(sock)
            port = sock.getsockname()[1]

    def _watch(self) -> None:
        if self._watching or self._loop is None:
            return
        self._watching = True
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _unwatch(self) -> None:
        if not self._watching or self._loop is None:
            return
        self._watching = False
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())

    def _accept(self, listening: socket.socket) -> None:
        assert self._loop is not None, "only a started listener is watched"
        for _ in range(self._accepts_per_turn):
            if len(self._logins) >= self._max_logins:
                self._unwatch()
                return
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._take_a_break(error)
                    return
                # The client has gone again (ECONNABORTED), or its network has; accept(2) says to go on.
                continue
            sock.settimeout(0.0)
            self.accepted += 1
            task = self._loop.create_task(self._login(sock, (str(address[0]), int(address[1]))))
            self._logins.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._logins.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a login ended with an exception that was not handled", exc_info=error)
        if not self._watching and self._sockets and self._pause is None and len(self._logins) < self._max_logins:
            self._watch()

    def _take_a_break(self, error: OSError) -> None:
        """Stop for a moment: the descriptor would be reported as ready for ever, and to no use."""
        assert self._loop is not None, "only a started listener is watched"
        self._unwatch()
        if self.exhausted == 0:
            log.error(
                "clients cannot be accepted",
                reason=os.strerror(error.errno or 0).lower(),
                hint="raise the limit of open files (ulimit -n) above twice listen.max_clients",
            )
        self.exhausted += 1
        self._pause = self._loop.call_later(PAUSE_WHEN_EXHAUSTED, self._end_break)

    def _end_break(self) -> None:
        self._pause = None
        self._watch()


def _listen(family: int, address: tuple[str | int, ...], backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these two.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_error(error: OSError, host: str, port: int) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return PortTaken(
            f"port {port} on {host} is taken by another program",
            "Stop that program, or choose another port with listen.port (0: any free one).",
        )
    if error.errno == errno.EACCES:
        return ListenError(
            f"this user may not listen on port {port}", "Choose a port above 1023 with listen.port, such as 6432."
        )
    return ListenError(
        f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0).lower()}",
        "Set listen.host to an address of this machine, 127.0.0.1 or *.",
    )
