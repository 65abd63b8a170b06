"""What both kinds of links share: reading, writing, and keeping what a socket does not take at once.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any, Final

from mypy_extensions import i64

from proxy.net.relay_loop import EPOLLOUT, Link, RelaySelector
from proxy.net.syscalls import SocketIO

HIGH_WATER: Final = 65536
"""Unsent bytes beyond which the other side is no longer read."""
LOW_WATER: Final = 16384
"""Unsent bytes below which the other side is read again."""
TLS_PIECE: Final = 16384
"""Bytes read from or offered to TLS at a time: one record, which a retry has to offer again unchanged."""

_TLS_WAITS: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream(Link):
    """A socket with what is still to be written to it.

    `sock` is a connected, non-blocking socket, or an `ssl.SSLSocket` after its handshake.  Nothing else may use it.
    """

    def __init__(self, selector: RelaySelector, sock: Any) -> None:
        super().__init__(sock.fileno())
        self.selector: RelaySelector = selector
        self.sock: Any = sock
        self.tls: bool = isinstance(sock, ssl.SSLSocket)
        self._io: SocketIO = SocketIO(self.fd)
        self.receive: Any = self._io.receive
        self.send: Any = self._io.send
        self.unsent: list[bytes] | None = None
        self.unsent_size: int = 0
        self.broken: bool = False

    def read(self) -> bytes | None:
        """Read what there is; `b""` is the end of the stream or its loss, None is nothing now."""
        if self.tls:
            return self._read_tls()
        data: bytes | None = self.receive()
        return data

    def _read_tls(self) -> bytes | None:
        try:
            data: bytes = self.sock.recv(TLS_PIECE)
        except _TLS_WAITS:
            return None
        except OSError:
            return b""
        if self.sock.pending() > 0:
            self.selector.serve_buffered(self)
        return data

    def write(self, data: bytes) -> None:
        """Write, and keep what the socket does not take; a lost connection sets `broken` and forgets the data."""
        if self.unsent is not None:
            self._keep(data)
            return
        if self.tls:
            self.unsent = [data]
            self.unsent_size = len(data)
            self._flush_tls()
            return
        sent: i64 = self.send(data)
        if sent < 0:
            self.broken = True
        elif sent != len(data):
            self._keep(data[sent:])

    def flush(self) -> None:
        """Write what was kept, as far as the socket takes it."""
        if self.tls:
            self._flush_tls()
            return
        kept = self.unsent
        while kept:
            data = kept[0]
            sent: i64 = self.send(data)
            if sent < 0:
                self._forget()
                return
            self.unsent_size -= sent
            if sent != len(data):
                kept[0] = data[sent:]
                return
            kept.pop(0)
        self.unsent = None
        self.watch()

    def end_writing(self) -> None:
        """Tell the peer that nothing more will be written; what is still unsent is forgotten."""
        self._forget()
        try:
            if self.tls:
                say_tls_end(self.sock)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.broken = True

    def close_socket(self) -> None:
        """Stop serving this link and close its socket."""
        self.selector.remove(self)
        self.unsent = None
        self.unsent_size = 0
        self._io.close()
        self.sock.close()

    def reading(self) -> int:
        """The EPOLL bits for reading that apply now."""
        raise NotImplementedError

    def watch(self) -> None:
        """Bring the selector in line with what this link waits for."""
        mask = self.reading()
        if self.unsent is not None:
            mask |= EPOLLOUT
        if mask != self.mask:
            self.selector.watch(self, mask)

    def _keep(self, data: bytes) -> None:
        if self.unsent is None:
            self.unsent = [data]
            self.unsent_size = len(data)
            self.watch()
        else:
            self.unsent.append(data)
            self.unsent_size += len(data)

    def _forget(self) -> None:
        self.unsent = None
        self.unsent_size = 0
        self.broken = True
        self.watch()

    def _flush_tls(self) -> None:
        kept = self.unsent
        while kept:
            data = kept[0]
            if len(data) > TLS_PIECE:
                kept[0:1] = [data[i : i + TLS_PIECE] for i in range(0, len(data), TLS_PIECE)]
                data = kept[0]
            try:
                sent: int = self.sock.send(data)
            except _TLS_WAITS:
                self.watch()
                return
            except OSError:
                self._forget()
                return
            self.unsent_size -= sent
            if sent != len(data):
                kept[0] = data[sent:]
            else:
                kept.pop(0)
        self.unsent = None
        self.watch()


def say_tls_end(sock: ssl.SSLSocket) -> None:
    """Tell the peer by TLS's own means (close_notify) that the connection ends, as far as that is possible now.

    Without it drivers take the end for an accident, and libpq takes a cancel request for failed.
    """
    try:
        sock.unwrap()
    except (OSError, ValueError):
        # Also where all is well: the peer has not answered yet, and nobody waits for that.
        return
