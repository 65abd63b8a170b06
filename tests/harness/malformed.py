"""Messages whose frames are whole and whose bodies are not what PostgreSQL reads."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from harness.rawclient import cstring, frame


class Refused(Exception):
    """PostgreSQL answers 08P01, or 22021 to text that is none."""


class Body:
    """The body of a message, read as `pq_getmsg*()` of PostgreSQL's pqformat.c do."""

    def __init__(self, body: bytes) -> None:
        self._left = body

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self._left):
            raise Refused
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def string(self) -> bytes:
        taken, zero, self._left = self._left.partition(b"\0")
        if not zero:
            raise Refused
        try:
            taken.decode()
        except UnicodeDecodeError:
            raise Refused from None
        return taken

    def number(self, size: int = 2) -> int:
        return int.from_bytes(self.take(size), "big")

    def values(self) -> None:
        """Formats, values and formats of results, as Bind has them."""
        formats = self.number()
        self.take(2 * formats)
        values = self.number()
        if formats > 1 and formats != values:
            raise Refused
        for _ in range(values):
            size = struct.unpack("!i", self.take(4))[0]
            if size != -1:
                self.take(size)

    def end(self) -> None:
        if self._left:
            raise Refused


def is_refused(kind: str, body: bytes) -> bool:
    """Whether `PostgresMain()` refuses a message for its form alone."""
    read = Body(body)
    try:
        _read(kind, read)
        if kind not in "dcfX":
            read.end()
    except Refused:
        return True
    return False


def _read(kind: str, read: Body) -> None:
    if kind in "DC" and read.take(1) not in {b"S", b"P"}:
        raise Refused
    if kind == "F":
        read.number(4)
        read.values()
        read.number()
    if kind in "QPBEDC":
        read.string()
    if kind in "PB":
        read.string()
    if kind == "P":
        read.take(4 * read.number())
    elif kind == "B":
        read.values()
        read.take(2 * read.number())
    elif kind == "E":
        read.number(4)


MALFORMED = [
    frame("H", b"yy"),
    frame("S", b"junk"),
    frame("Q", b"select"),
    frame("Q", b"select\0commit\0"),
    frame("Q"),
    frame("P"),
    frame("P", b"\0ok"),
    frame("P", b"\0ok\0"),
    frame("P", b"\0ok\0\0\1"),
    frame("P", b"\0ok\0\xff\xff\0\0\0\0"),
    frame("P", b"\0ok\0\0\0more"),
    frame("P", b"name\0ok\0\0\0\0"),
    frame("P", b"name"),
    frame("B"),
    frame("B", b"\0"),
    frame("B", b"\0ok\0\0\0\0\1\0\0\xff\xffx\0\0"),
    frame("B", b"\0\0\0\2\0\0\0\0\0\1\0\0\0\1x\0\0"),
    frame("B", b"\0\0\0\0\0\0\0\0more"),
    frame("D"),
    frame("D", b"P"),
    frame("D", b"Z\0"),
    frame("D", b"Sname"),
    frame("D", b"Sx"),
    frame("D", b"Sname\0\0"),
    frame("E", b"\0"),
    frame("E", b"\0\0\0"),
    frame("E", b"select"),
    frame("E", b"\0\0\0\0\0more"),
    frame("C"),
    frame("C", b"Z\0"),
    frame("C", b"Sname"),
    frame("C", b"Sx"),
    frame("C", b"Sname\0\0"),
    frame("F", b"\0\0"),
    frame("F", struct.pack("!IHHH", 1, 0, 0, 0) + b"more"),
]
"""What hand-written drivers have been seen to send, and near misses of what the relay itself reads."""


@st.composite
def damaged(draw: st.DrawFn, message: bytes) -> bytes:
    """This message with another body, and the length of that."""
    kind, body = message[:1].decode(), message[5:]
    at = draw(st.integers(0, len(body)))
    piece = draw(st.sampled_from([b"", b"\0", b"\0\0", b"S", b"Z", b"\xff\xff", b"\0\1", b"x", cstring("name")]))
    gone = draw(st.integers(0, 3))
    return frame(kind, body[:at] + piece + body[at + gone :])
