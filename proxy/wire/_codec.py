"""Reading a message's body and building a frame: the parts that every message shares.

Text is `str` decoded as UTF-8 with surrogate escapes, so that names in any client encoding come back out as the
very bytes that came in.  Data (values, passwords, keys) is `bytes`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from proxy.wire.errors import ProtocolError

_INT16 = struct.Struct("!h")
_UINT16 = struct.Struct("!H")
_INT32 = struct.Struct("!i")
_UINT32 = struct.Struct("!I")


class BodyReader:
    """Takes fields off the front of a message's body; every method raises ProtocolError where the body ends early.

    Call `finish` after the last field: bytes left over are an error too.
    """

    __slots__ = ("_body", "_name", "_pos")

    def __init__(self, body: bytes, name: str) -> None:
        self._body = body
        self._name = name
        self._pos = 0

    def left(self) -> int:
        return len(self._body) - self._pos

    def take(self, count: int) -> bytes:
        if count < 0 or count > self.left():
            raise self.error("ends early")
        start = self._pos
        self._pos += count
        return self._body[start : self._pos]

    def take_all(self) -> bytes:
        return self.take(self.left())

    def byte(self) -> int:
        return self.take(1)[0]

    def int16(self) -> int:
        return int(_INT16.unpack(self.take(2))[0])

    def int32(self) -> int:
        return int(_INT32.unpack(self.take(4))[0])

    def uint32(self) -> int:
        return int(_UINT32.unpack(self.take(4))[0])

    def count16(self, item_size: int) -> int:
        """Read a 16-bit count of items of at least `item_size` bytes each; it is refused when they cannot fit.

        Unsigned, as PostgreSQL reads it: 65,535 parameters are legal.
        """
        count = int(_UINT16.unpack(self.take(2))[0])
        if count * item_size > self.left():
            raise self.error("counts more items than it holds")
        return count

    def count32(self, item_size: int) -> int:
        """Read a 32-bit count of items of at least `item_size` bytes each; it is refused when they cannot fit."""
        count = self.int32()
        if count < 0 or count * item_size > self.left():
            raise self.error("counts more items than it holds")
        return count

    def text(self) -> str:
        """Read a string that ends with a zero byte."""
        end = self._body.find(b"\0", self._pos)
        if end < 0:
            raise self.error("has a string without its terminator")
        raw = self._body[self._pos : end]
        self._pos = end + 1
        return decode_text(raw)

    def value(self) -> bytes | None:
        """Read a value behind its 32-bit length; length -1 is NULL."""
        length = self.int32()
        return None if length == -1 else self.take(length)

    def int16s(self) -> tuple[int, ...]:
        count = self.count16(2)
        return struct.unpack(f"!{count}h", self.take(2 * count))

    def uint32s(self) -> tuple[int, ...]:
        count = self.count16(4)
        return struct.unpack(f"!{count}I", self.take(4 * count))

    def values(self) -> tuple[bytes | None, ...]:
        return tuple(self.value() for _ in range(self.count16(4)))

    def finish(self) -> None:
        if self.left():
            raise self.error("goes on after its last field")

    def error(self, problem: str) -> ProtocolError:
        return ProtocolError(f"{self._name} message {problem}")


def decode_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def encode_text(text: str) -> bytes:
    """Encode without a terminator; raises ProtocolError for a zero character, which would cut the field short."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ProtocolError("a text field has a character that cannot be encoded") from None
    if b"\0" in raw:
        raise ProtocolError("a text field contains a zero byte")
    return raw


def cstring(text: str) -> bytes:
    return encode_text(text) + b"\0"


def cstring_list(texts: Iterable[str]) -> bytes:
    return b"".join(map(cstring, texts))


def int16(value: int) -> bytes:
    return _pack(_INT16, value)


def count16(value: int) -> bytes:
    return _pack(_UINT16, value)


def int32(value: int) -> bytes:
    return _pack(_INT32, value)


def uint32(value: int) -> bytes:
    return _pack(_UINT32, value)


def byte(value: int) -> bytes:
    if not 0 <= value <= 0xFF:
        raise ProtocolError("a field is out of its range")
    return bytes((value,))


def int16s(values: tuple[int, ...]) -> bytes:
    return count16(len(values)) + b"".join(map(int16, values))


def uint32s(values: tuple[int, ...]) -> bytes:
    return count16(len(values)) + b"".join(map(uint32, values))


def value(data: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if data is None else int32(len(data)) + data


def values(items: tuple[bytes | None, ...]) -> bytes:
    return count16(len(items)) + b"".join(map(value, items))


def frame(kind: int, body: bytes = b"") -> bytes:
    """Put type and length before a body."""
    return byte(kind) + int32(len(body) + 4) + body


def expect_empty(body: bytes, name: str) -> None:
    BodyReader(body, name).finish()


def _pack(layout: struct.Struct, number: int) -> bytes:
    try:
        return layout.pack(number)
    except struct.error:
        raise ProtocolError("a field is out of its range") from None
