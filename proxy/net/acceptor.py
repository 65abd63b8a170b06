"""Accepting connections: a few at a time, so that a storm of them stalls nobody, and calmly when nothing is left."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Final, TypeAlias

import structlog

from proxy.net.keepalive import notice_silence

log = structlog.get_logger(__name__)

PAUSE_WHEN_EXHAUSTED: Final = 0.25
"""Seconds without accepting after the system had no descriptor or memory left."""
EXHAUSTED_REPORT: Final = 10.0
"""Seconds between two lines in the log that say so."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

PeerAddress: TypeAlias = tuple[str, int]
Receive: TypeAlias = Callable[[socket.socket, PeerAddress], None]


class ListenError(Exception):
    """The address cannot be listened on; `hint` says what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class PortTaken(ListenError):
    """Another program listens on this port."""


class Acceptor:
    """Listens, and gives each accepted socket, non-blocking, to `receive`, whose it is then.

    At most `per_turn` are accepted in a turn of the loop; the others wait in the system's queue of `backlog`
    connections.  An empty `host` or `*` means all interfaces, port 0 any free one.  `section` is that of the settings
    in which host and port stand.  When the system has no descriptor left, it waits a moment and says so, now and then:
    asyncio's own servers try again at once and log each attempt.

    Call `start`, in the end `stop`.
    """

    def __init__(
        self, host: str, port: int, receive: Receive, *, section: str, backlog: int = 1024, per_turn: int = 8
    ) -> None:
        self.accepted = 0
        self.exhausted = 0
        self._host = host
        self._port = port
        self._receive = receive
        self._section = section
        self._backlog = backlog
        self._per_turn = per_turn
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets: list[socket.socket] = []
        self._pause: asyncio.TimerHandle | None = None
        self._last_report = -EXHAUSTED_REPORT

    @property
    def port(self) -> int:
        """The port that is listened on; only between `start` and `stop`."""
        return int(self._sockets[0].getsockname()[1])

    def start(self) -> None:
        """Bind and begin to accept; raises PortTaken, ListenError."""
        self._loop = asyncio.get_running_loop()
        try:
            self._bind()
        except BaseException:
            self.stop()
            raise
        self._watch(self._loop)

    def stop(self) -> None:
        """Accept nobody any more and free the port."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        elif self._loop is not None:
            self._unwatch(self._loop)
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def tune(self, *, backlog: int, per_turn: int) -> None:
        """Let that many connections wait, and accept that many in a turn, from now on."""
        self._backlog, self._per_turn = backlog, per_turn
        for sock in self._sockets:
            sock.listen(backlog)

    def _bind(self) -> None:
        host = None if self._host in {"", "*"} else self._host
        try:
            found = socket.getaddrinfo(host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError):
            raise ListenError(
                f"there is no address {self._host!r} to listen on",
                f"Set {self._section}.host to an address or name of this machine, 127.0.0.1 or *.",
            ) from None
        port = self._port
        for family, _, _, _, address in found:
            try:
                sock = _listen(family, (address[0], port, *address[2:]), self._backlog)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                    continue
                raise _listen_error(error, str(address[0]), port, self._section) from None
            self._sockets.append(sock)
            port = sock.getsockname()[1]

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        for sock in self._sockets:
            loop.add_reader(sock.fileno(), self._accept, loop, sock)

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        for sock in self._sockets:
            loop.remove_reader(sock.fileno())

    def _accept(self, loop: asyncio.AbstractEventLoop, listening: socket.socket) -> None:
        for _ in range(self._per_turn):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._take_a_break(loop, error)
                    return
                # The client has gone again (ECONNABORTED), or its network has; accept(2) says to go on.
                continue
            sock.settimeout(0.0)
            self.accepted += 1
            self._receive(sock, (str(address[0]), int(address[1])))

    def _take_a_break(self, loop: asyncio.AbstractEventLoop, error: OSError) -> None:
        """Stop for a moment: the descriptor would be reported as ready for ever, and to no use."""
        self.exhausted += 1
        if self._pause is not None:
            # Another socket of ours, in the same turn.
            return
        self._unwatch(loop)
        self._pause = loop.call_later(PAUSE_WHEN_EXHAUSTED, self._end_break, loop)
        if loop.time() - self._last_report >= EXHAUSTED_REPORT:
            self._last_report = loop.time()
            log.error(
                "connections cannot be accepted",
                to=f"{self._section}.port",
                reason=os.strerror(error.errno or 0).lower(),
                times=self.exhausted,
                hint="raise the hard limit of open files (systemd: LimitNOFILE=); docs/operations.md has the sum",
            )

    def _end_break(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pause = None
        self._watch(loop)


def _listen(family: int, address: tuple[str | int, ...], backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_silence(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_error(error: OSError, host: str, port: int, section: str) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return PortTaken(
            f"port {port} on {host} is taken by another program",
            f"Stop that program, or choose another port with {section}.port (0: any free one).",
        )
    if error.errno == errno.EACCES:
        return ListenError(
            f"this user may not listen on port {port}", f"Choose a port above 1023 with {section}.port, such as 6432."
        )
    return ListenError(
        f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0).lower()}",
        f"Set {section}.host to an address of this machine, 127.0.0.1 or *.",
    )
