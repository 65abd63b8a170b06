"""The three system calls of the relay, without what Python puts around them.

Four calls read and write a transaction, and a poll or two find out for whom.  Python's own methods for them build and
take apart a tuple of arguments, look at the socket's timeout, give up the interpreter's lock and take it again, and
raise an exception for "not now"; together that cost as much as all else that the relay does.  Compiled by Cython
(ADR 4), these functions call the C library at once; interpreted they call `os` and `select`, and do the same.

Nothing here waits except `Poller.wait`, and only that lets other threads run meanwhile.
"""

from __future__ import annotations

import os
import select

try:
    import cython
except ModuleNotFoundError:
    from proxy.wire import uncompiled as cython

if cython.compiled:
    from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
    from cython.cimports.libc.errno import EAGAIN, EINTR, errno
    from cython.cimports.proxy.net.libc import MSG_NOSIGNAL, epoll_event, epoll_wait, recv, recv_bytes, send

    # All sockets share it: what was read into it has left it before another thread may run.
    buffer = cython.declare(cython.char[65536])

MAX_READ = 65536
"""Bytes that one `receive` returns at most."""
BULK = 2048
"""A read of more bytes is followed by one into memory of its own: copying what is shorter costs less."""
MAX_EVENTS = 512
"""Events that one `wait` returns at most."""


class SocketIO:
    """Reads and writes the descriptor of a connected, non-blocking socket.

    The socket keeps the descriptor and is the one to close it; call `close` before that.  From then on the number may
    be that of another socket, which this object must never touch.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._bulk = False

    def receive(self) -> bytes | None:
        """Read what there is, up to `MAX_READ` bytes; `b""` is the end of the stream or its loss, None nothing yet."""
        if cython.compiled:
            if self._bulk:
                much: bytes | None = recv_bytes(self._fd, MAX_READ)
                self._bulk = much is not None and len(much) > BULK
                return much
            count = recv(self._fd, buffer, cython.sizeof(buffer), 0)
            if count >= 0:
                self._bulk = count > BULK
                data: bytes = PyBytes_FromStringAndSize(buffer, count)
                return data
            return None if errno == EAGAIN or errno == EINTR else b""
        try:
            return os.read(self._fd, MAX_READ)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, data: bytes) -> int:
        """Write what the socket takes, and return how many bytes that was; -1 says that the connection is lost."""
        if cython.compiled:
            count = send(self._fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_NOSIGNAL)
            return 0 if count < 0 and (errno == EAGAIN or errno == EINTR) else count
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            return -1

    def close(self) -> None:
        """Forget the descriptor: all that is read from now on is the end, and nothing can be written."""
        self._fd = -1


class Poller:
    """Waits for the descriptors that are registered with `epoll`."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self._fd = self.epoll.fileno()

    def wait(self, milliseconds: int, most: int) -> list[int]:
        """Wait at most `milliseconds` (-1: for ever) for ready descriptors, and return at most `most` of them.

        The answer is flat: a descriptor, its EPOLL bits, the next descriptor, its bits.  It may be empty early, when a
        signal has come.  Raises OSError, or ValueError, when the epoll is closed.
        """
        if cython.compiled:
            events = cython.declare(epoll_event[512])
            timeout = cython.declare(cython.int, milliseconds)
            size = cython.declare(cython.int, min(most, cython.sizeof(events) // cython.sizeof(epoll_event)))
            with cython.nogil:
                count = epoll_wait(self._fd, events, size, timeout)
                failure = errno if count < 0 else EINTR
            if failure != EINTR:
                raise OSError(failure, os.strerror(failure))
            ready = []
            for i in range(count):
                ready.append(events[i].data.fd)
                ready.append(events[i].events)
            return ready
        pairs = self.epoll.poll(milliseconds / 1000 if milliseconds > 0 else milliseconds, min(most, MAX_EVENTS))
        return [number for pair in pairs for number in pair]

    def close(self) -> None:
        """Close the epoll."""
        self._fd = -1
        self.epoll.close()
