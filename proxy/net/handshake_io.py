"""A socket while somebody logs in over it: whole messages in coroutines, and nothing read that belongs to others.

Plain sockets and TLS are served alike, through the loop's readers and writers: asyncio's own helpers refuse an
`ssl.SSLSocket`, and its transports would not give the socket back.  Before TLS, and towards clients throughout, exactly
the bytes of a message are read; towards servers, which send many small messages at once, whole chunks are, and
`detach` fails if anything is left of them.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from proxy.net.stream import say_tls_end
from proxy.wire import ProtocolError
from proxy.wire.framing import MAX_SASL_BODY, MIN_STARTUP_BODY, FrameReader

T = TypeVar("T")

CHUNK: Final = 8192
"""Bytes read at a time from servers: more than a PostgreSQL with its default settings says at a login."""

DISCARD_MOST: Final = 1 << 20
"""Bytes a peer may still send after it has been told goodbye."""

LOOK_AGAIN: Final = 0.5
"""Seconds between two looks whether a peer has left that has said something which nobody reads yet."""

TLS_HANDSHAKE: Final = 0x16
"""First byte of a TLS client's first record."""
TLS_RECORD_HEAD: Final = 5
"""Bytes before a record's body: type, version, length."""
MAX_TLS_RECORD: Final = 1 << 14
"""Bytes that a record's body may have before it is encrypted."""

_NOTHING: Final = 0
_READ: Final = 1
_WRITE: Final = 2


class PeerGone(Exception):
    """The peer closed or lost the connection: at a login a normal end, which deserves no alarm."""


class TlsFailed(PeerGone):
    """TLS failed, so that nothing more can be said on this connection."""


class Turnstile:
    """Limits how much of the handshakes is done in one turn of the event loop, so that a storm of logins does not stall
    the established sessions.

    A turn lets at most `steps` handshakes go on, and none once `seconds` have gone by since its first.  The others
    queue.  Their descriptors are not to be watched meanwhile: the system tells of those that are ready one after the
    other, and established sessions would be behind all that only wait for their turn.
    """

    def __init__(self, steps: int = 8, seconds: float = 0.0015, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = steps
        self._seconds = seconds
        self._clock = clock
        self._taken = 0
        self._since = 0.0
        self._queue: deque[Callable[[], None]] = deque()
        self._is_turning = False

    def enter(self, loop: asyncio.AbstractEventLoop, go_on: Callable[[], None]) -> bool:
        """Call `go_on` now, or in the turn that it gets by queueing; says whether it has been called."""
        if not self._is_turning:
            self._is_turning = True
            self._taken = 0
            loop.call_soon(self._next_turn, loop)
        if self._queue or not self._has_room():
            self._queue.append(go_on)
            return False
        self._take(go_on)
        return True

    def _has_room(self) -> bool:
        return self._taken == 0 or (self._taken < self._steps and self._clock() - self._since <= self._seconds)

    def _take(self, go_on: Callable[[], None]) -> None:
        if self._taken == 0:
            self._since = self._clock()
        self._taken += 1
        go_on()

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._taken = 0
        self._is_turning = bool(self._queue)
        if self._is_turning:
            loop.call_soon(self._next_turn, loop)
        while self._queue and self._has_room():
            self._take(self._queue.popleft())


class HandshakeSocket:
    """A connected, non-blocking socket during a login; one task at a time may use it.

    `greedy` reads whole chunks instead of exact messages.  Coroutines raise PeerGone when the connection ends,
    TlsFailed (which is a PeerGone) when TLS goes wrong, ProtocolError for lengths that cannot be; never OSError.  Time
    limits are the caller's (`asyncio.timeout`), and cancelling is safe at any point.  At the end call `detach` or
    `close`: both leave the descriptor unknown to the loop.
    """

    def __init__(self, sock: socket.socket, *, greedy: bool = False, turnstile: Turnstile | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._greedy = greedy
        self._turnstile = turnstile
        self._watched = _NOTHING
        self._step: Callable[[], None] | None = None
        self._frames: FrameReader | None = None
        self._queued = b""
        self._cut_short = False
        self._detached = False
        self._data_waits = False

    @property
    def sock(self) -> socket.socket:
        """The socket itself, to ask for addresses; reading and writing are this object's."""
        return self._sock

    @property
    def tls(self) -> ssl.SSLSocket | None:
        """The TLS socket once TLS has begun."""
        return self._sock if isinstance(self._sock, ssl.SSLSocket) else None

    def has_left(self) -> bool:
        """Whether the peer has closed its side, or lost the connection, as far as that is known."""
        poll = select.poll()
        poll.register(self._fd, select.POLLRDHUP)
        return bool(poll.poll(0))

    async def until_left(self) -> None:
        """Wait until the peer has closed its side, or lost the connection; what it has said stays unread.

        While there is something unread, it is looked at every `LOOK_AGAIN` seconds.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)

        def look() -> None:
            if not poll.poll(0):
                raise BlockingIOError

        while not self.has_left():
            await self._perform(look, _READ, at_once=True)
            if not self.has_left():
                await asyncio.sleep(LOOK_AGAIN)

    async def peek(self, size: int) -> bytes:
        """Look at the next bytes, at least one and at most `size`, without taking them; only before TLS."""
        seen = await self._perform(lambda: self._sock.recv(size, socket.MSG_PEEK), _READ)
        if not seen:
            raise PeerGone("the connection was closed")
        self._data_waits = True
        return seen

    async def peek_tls_record(self) -> None:
        """Wait until a TLS client's first record is there in whole, without taking it: OpenSSL takes memory for whoever
        begins.

        What is no such record is for OpenSSL to refuse, and there at once.
        """
        head = await self._peek_whole(TLS_RECORD_HEAD)
        size = int.from_bytes(head[3:])
        if head[0] == TLS_HANDSHAKE and size <= MAX_TLS_RECORD:
            await self._peek_whole(TLS_RECORD_HEAD + size)

    async def _peek_whole(self, size: int) -> bytes:
        """Look at the next bytes once there are that many; the system wakes nobody before."""

        def look() -> bytes:
            seen = self._sock.recv(size, socket.MSG_PEEK)
            if len(seen) < size:
                if not seen or self.has_left():
                    raise PeerGone("the connection was closed")
                raise BlockingIOError
            return seen

        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            seen = await self._perform(look, _READ, at_once=True)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except OSError as error:
            raise PeerGone(reason_of(error)) from None
        self._data_waits = True
        return seen

    async def read_exactly(self, size: int) -> bytes:
        """Read that many bytes and no more."""
        taken = bytearray()

        def read() -> bytes:
            while len(taken) < size:
                taken.extend(self._receive(size - len(taken)))
            return bytes(taken)

        return await self._perform(read, _READ, at_once=self._reads_at_once())

    async def read_packet(self, limit: int) -> bytes:
        """Read one untyped packet, as clients begin with, and return its body of at most `limit` bytes."""
        reader = FrameReader(limit, typed=False, least=MIN_STARTUP_BODY)
        _, body = await self._read_with(reader, greedy=False)
        return body

    async def read_frame(self, limit: int = MAX_SASL_BODY) -> tuple[int, bytes]:
        """Read one message and return its type byte and its body of at most `limit` bytes."""
        if self._frames is None:
            self._frames = FrameReader(limit)
        reader = self._frames
        reader.set_limit(limit)
        if self._greedy and (frame := reader.next_frame()) is not None:
            return frame
        return await self._read_with(reader, greedy=self._greedy)

    def queue(self, data: bytes) -> None:
        """Keep a message to go out together with the next one that is sent."""
        self._queued += data

    async def send(self, data: bytes = b"") -> None:
        """Send what was queued, then `data`, in one piece as far as the socket takes it.

        After a cancelled `send` the stream may end within a message, so that every later one raises PeerGone.
        """
        if self._cut_short:
            raise PeerGone("a message could not be sent to its end")
        rest = self._queued + data
        self._queued = b""
        if not rest:
            return

        def write() -> None:
            nonlocal rest
            while rest:
                rest = rest[self._sock.send(rest) :]

        self._cut_short = True
        await self._perform(write, _WRITE, at_once=True)
        self._cut_short = False

    def say_at_once(self, data: bytes) -> None:
        """Send a last message if the socket takes it now; nobody waits for the peer, nor learns whether it was read."""
        with suppress(OSError):
            self._sock.send(data)

    async def start_tls(
        self, context: ssl.SSLContext, *, server_side: bool = False, server_hostname: str | None = None
    ) -> None:
        """Go over to TLS; plain bytes of the peer's that follow its request end up in the handshake, which then fails.

        Raises TlsFailed with OpenSSL's reason.
        """
        at_once = self._reads_at_once() or not server_side
        try:
            wrapped = context.wrap_socket(
                self._sock, server_side=server_side, do_handshake_on_connect=False, server_hostname=server_hostname
            )
        except ssl.SSLError as error:
            raise TlsFailed(tls_reason(error)) from None
        except OSError as error:
            raise PeerGone(reason_of(error)) from None
        except ValueError as error:
            raise TlsFailed(str(error)) from None
        self._sock = wrapped
        await self._perform(wrapped.do_handshake, _READ, at_once=at_once)

    async def wait_for_end(self) -> None:
        """Read and forget until the peer closes; raises PeerGone only if it goes on beyond `DISCARD_MOST` bytes."""
        left = DISCARD_MOST

        def discard() -> None:
            nonlocal left
            while data := self._sock.recv(CHUNK):
                left -= len(data)
                if left <= 0:
                    raise PeerGone("the peer went on sending")

        await self._perform(discard, _READ, at_once=self._reads_at_once())

    async def discard_to_end(self) -> None:
        """Say that nothing more will be sent and wait for the peer to close, so that the last message reaches it.

        Closing with bytes unread would reset the connection, and the peer might lose what it was told.
        """
        try:
            self._end_tls()
            self._sock.shutdown(socket.SHUT_WR)
            await self.wait_for_end()
        except (OSError, PeerGone):
            return

    def detach(self) -> socket.socket:
        """Hand the socket over, unknown to the loop and with every byte unread that belongs to the new owner.

        Raises ProtocolError when a greedy read took more than the login; the socket is still this object's then.
        """
        if self._frames is not None and self._frames.rest():
            raise ProtocolError("the peer sent more than belongs to the login")
        self._unwatch()
        self._detached = True
        return self._sock

    def close(self) -> None:
        """Close the connection; after `detach` it is the new owner's to close, and nothing happens."""
        self._step = None
        self._unwatch()
        if not self._detached:
            self._end_tls()
            self._sock.close()

    def _end_tls(self) -> None:
        if self.tls is not None and not self._cut_short:
            say_tls_end(self.tls)

    async def _read_with(self, reader: FrameReader, *, greedy: bool) -> tuple[int, bytes]:
        def read() -> tuple[int, bytes]:
            while (frame := reader.next_frame()) is None:
                reader.push(self._receive(CHUNK if greedy else reader.wanted()))
            return frame

        return await self._perform(read, _READ, at_once=self._reads_at_once())

    def _receive(self, size: int) -> bytes:
        data = self._sock.recv(size)
        if not data:
            raise PeerGone("the connection was closed")
        return data

    def _reads_at_once(self) -> bool:
        """Whether to try before waiting: with TLS, whose layer may hold bytes already, and after a peek."""
        waits = self._data_waits
        self._data_waits = False
        return waits or self.tls is not None

    async def _perform(self, operation: Callable[[], T], needs: int, *, at_once: bool = False) -> T:
        """Run an operation on the socket, again each time it is ready, until it need not wait for it any more.

        It runs in the loop's callback, not in the task: so the descriptor has been read when the loop polls again.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        step = partial(self._attempt, operation, future, needs)
        self._step = step
        try:
            if at_once:
                step()
            else:
                self._watch(needs)
            return await future
        finally:
            self._step = None
            if self._watched == _WRITE:
                self._unwatch()

    def _attempt(self, operation: Callable[[], T], future: asyncio.Future[T], needs: int) -> None:
        if future.done():
            return
        try:
            result = operation()
        except ssl.SSLWantReadError:
            self._watch(_READ)
        except ssl.SSLWantWriteError:
            self._watch(_WRITE)
        except BlockingIOError:
            self._watch(needs)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            future.set_exception(PeerGone("the connection was closed"))
        except ssl.SSLError as error:
            future.set_exception(TlsFailed(tls_reason(error)))
        except OSError as error:
            future.set_exception(PeerGone(reason_of(error)))
        except (PeerGone, ProtocolError) as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _ready(self) -> None:
        if self._step is None:
            # Early bytes, or a hang-up, while nobody reads: without this the loop would spin.
            self._unwatch()
        elif self._turnstile is None:
            self._step()
        elif not self._turnstile.enter(self._loop, self._go_on):
            self._unwatch()

    def _go_on(self) -> None:
        if self._step is not None:
            self._step()

    def _watch(self, what: int) -> None:
        if self._watched == what:
            return
        self._unwatch()
        if what == _READ:
            self._loop.add_reader(self._fd, self._ready)
        else:
            self._loop.add_writer(self._fd, self._ready)
        self._watched = what

    def _unwatch(self) -> None:
        if self._watched == _READ:
            self._loop.remove_reader(self._fd)
        elif self._watched == _WRITE:
            self._loop.remove_writer(self._fd)
        self._watched = _NOTHING


def reason_of(error: OSError) -> str:
    """Say in few words what went wrong with a socket."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def tls_reason(error: ssl.SSLError) -> str:
    """Say in few words what went wrong with TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()
