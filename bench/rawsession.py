"""A session at the level of the protocol: what is large is sent and read in pieces, and never held."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import psycopg

from bench.model import BenchError, Endpoint

CHUNK = 1 << 18
LONGEST_SHORT = 1 << 16
PATIENCE = 900.0
"""Seconds after which a session that hears nothing is given up."""


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message."""
    return kind + struct.pack("!I", len(body) + 4) + body


class RawSession:
    """Logged in by libpq; from then on the socket is this one's.

    Raises BenchError where the login or what is asked for fails; TimeoutError after `PATIENCE` seconds of silence.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        where = endpoint.environment()
        try:
            self._session = psycopg.connect(
                host=where["PGHOST"],
                port=where["PGPORT"],
                user=where["PGUSER"],
                password=where["PGPASSWORD"],
                dbname=where["PGDATABASE"],
                sslmode=where["PGSSLMODE"],
                gssencmode=where["PGGSSENCMODE"],
                autocommit=True,
            )
        except psycopg.Error as error:
            raise BenchError(f"no connection: {error}", "the proxy's log says why") from None
        self.sock = socket.socket(fileno=os.dup(self._session.fileno()))
        self.sock.settimeout(PATIENCE)

    def send(self, *parts: bytes) -> None:
        self.sock.sendall(b"".join(parts))

    def query(self, sql: str) -> None:
        """Ask, and leave the answer to `answer`."""
        self.send(message(b"Q", sql.encode() + b"\0"))

    def execute(self, sql: str, value_size: int) -> None:
        """Run a statement with one parameter of so many bytes in binary form."""
        head = b"\0\0" + struct.pack("!HHH", 1, 1, 1) + struct.pack("!I", value_size)
        tail = struct.pack("!H", 0)
        self.send(message(b"P", b"\0" + sql.encode() + b"\0\0\0"))
        self.send(b"B" + struct.pack("!I", 4 + len(head) + value_size + len(tail)) + head)
        piece = b"x" * CHUNK
        for start in range(0, value_size, CHUNK):
            self.send(piece[: min(CHUNK, value_size - start)])
        self.send(tail, message(b"E", bytes(5)), message(b"S"))

    def answer(self, until: bytes = b"Z") -> int:
        """Read up to a message of this type and return how many bytes of rows there were before it."""
        rows = 0
        for kind, size in self._messages():
            if kind in {b"D", b"d"}:
                rows += size
            if kind == until:
                return rows
        raise AssertionError("messages have no end")

    def some(self, size: int) -> int:
        """Read up to so many bytes, whatever they are."""
        return len(self.sock.recv(size))

    def _messages(self) -> Iterator[tuple[bytes, int]]:
        """Type and size of each message, whose body has been read by then."""
        held = b""
        while True:
            pos = 0
            while pos + 5 <= len(held):
                kind, size = held[pos : pos + 1], struct.unpack_from("!I", held, pos + 1)[0] - 4
                if pos + 5 + size > len(held) and size <= LONGEST_SHORT:
                    break
                if kind == b"E":
                    raise BenchError(f"the server said: {held[pos + 5 : pos + 300]!r}")
                missing = pos + 5 + size - len(held)
                while missing > 0:
                    missing -= len(self._read(min(missing, CHUNK)))
                pos = min(pos + 5 + size, len(held))
                yield kind, size
            held = held[pos:] + self._read(CHUNK)

    def _read(self, size: int) -> bytes:
        data = self.sock.recv(size)
        if not data:
            raise BenchError("the connection was closed")
        return data

    def close(self) -> None:
        self.sock.close()
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
