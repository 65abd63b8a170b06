"""Messages from a frontend, one class each: `decode` takes a body, `encode` gives the whole frame.

Source: PostgreSQL documentation, "Message Formats".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Self, TypeAlias

from proxy.wire import _codec as codec
from proxy.wire import framing
from proxy.wire._codec import BodyReader
from proxy.wire.errors import ProtocolError


class Target(StrEnum):
    """What Describe and Close are about."""

    STATEMENT = "S"
    PORTAL = "P"


@dataclass(frozen=True, slots=True)
class Query:
    """Run one string of SQL by the simple protocol."""

    sql: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "Query")
        sql = reader.text()
        reader.finish()
        return cls(sql)

    def encode(self) -> bytes:
        return codec.frame(framing.F_QUERY, codec.cstring(self.sql))


@dataclass(frozen=True, slots=True)
class Parse:
    """Prepare a statement; the empty name is the unnamed one, type 0 leaves a parameter's type open."""

    name: str
    sql: str
    parameter_types: tuple[int, ...] = ()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "Parse")
        name, sql, types = reader.text(), reader.text(), reader.uint32s()
        reader.finish()
        return cls(name, sql, types)

    def encode(self) -> bytes:
        body = codec.cstring(self.name) + codec.cstring(self.sql) + codec.uint32s(self.parameter_types)
        return codec.frame(framing.F_PARSE, body)


@dataclass(frozen=True, slots=True)
class Bind:
    """Make a portal of a statement and its parameters; None is NULL, formats are 0 text and 1 binary."""

    portal: str
    statement: str
    parameters: tuple[bytes | None, ...] = ()
    parameter_formats: tuple[int, ...] = ()
    result_formats: tuple[int, ...] = ()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "Bind")
        portal, statement = reader.text(), reader.text()
        parameter_formats, parameters, result_formats = reader.int16s(), reader.values(), reader.int16s()
        reader.finish()
        return cls(portal, statement, parameters, parameter_formats, result_formats)

    def encode(self) -> bytes:
        body = (
            codec.cstring(self.portal)
            + codec.cstring(self.statement)
            + codec.int16s(self.parameter_formats)
            + codec.values(self.parameters)
            + codec.int16s(self.result_formats)
        )
        return codec.frame(framing.F_BIND, body)


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask what a statement or portal returns."""

    target: Target
    name: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(*_decode_target(body, "Describe"))

    def encode(self) -> bytes:
        return codec.frame(framing.F_DESCRIBE, _encode_target(self.target, self.name))


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a statement or portal."""

    target: Target
    name: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(*_decode_target(body, "Close"))

    def encode(self) -> bytes:
        return codec.frame(framing.F_CLOSE, _encode_target(self.target, self.name))


@dataclass(frozen=True, slots=True)
class Execute:
    """Run a portal for at most `max_rows` rows; 0 (or less) is all of them."""

    portal: str
    max_rows: int = 0

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "Execute")
        portal, max_rows = reader.text(), reader.int32()
        reader.finish()
        return cls(portal, max_rows)

    def encode(self) -> bytes:
        return codec.frame(framing.F_EXECUTE, codec.cstring(self.portal) + codec.int32(self.max_rows))


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """Call a function by its oid; None is NULL, formats are 0 text and 1 binary."""

    function: int
    arguments: tuple[bytes | None, ...] = ()
    argument_formats: tuple[int, ...] = ()
    result_format: int = 0

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "FunctionCall")
        function, formats, arguments, result = reader.uint32(), reader.int16s(), reader.values(), reader.int16()
        reader.finish()
        return cls(function, arguments, formats, result)

    def encode(self) -> bytes:
        body = (
            codec.uint32(self.function)
            + codec.int16s(self.argument_formats)
            + codec.values(self.arguments)
            + codec.int16(self.result_format)
        )
        return codec.frame(framing.F_FUNCTION, body)


@dataclass(frozen=True, slots=True)
class CopyData:
    """A piece of a COPY stream, from either side."""

    data: bytes

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(body)

    def encode(self) -> bytes:
        return codec.frame(framing.F_COPY_DATA, self.data)


@dataclass(frozen=True, slots=True)
class CopyDone:
    """The end of a COPY stream, from either side."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        codec.expect_empty(body, "CopyDone")
        return cls()

    def encode(self) -> bytes:
        return codec.frame(framing.F_COPY_DONE)


@dataclass(frozen=True, slots=True)
class CopyFail:
    """The frontend gives a COPY up, and says why."""

    reason: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "CopyFail")
        reason = reader.text()
        reader.finish()
        return cls(reason)

    def encode(self) -> bytes:
        return codec.frame(framing.F_COPY_FAIL, codec.cstring(self.reason))


@dataclass(frozen=True, slots=True)
class Sync:
    """Close the implicit transaction of the extended protocol and ask for ReadyForQuery."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        codec.expect_empty(body, "Sync")
        return cls()

    def encode(self) -> bytes:
        return codec.frame(framing.F_SYNC)


@dataclass(frozen=True, slots=True)
class Flush:
    """Ask for the replies so far."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        codec.expect_empty(body, "Flush")
        return cls()

    def encode(self) -> bytes:
        return codec.frame(framing.F_FLUSH)


@dataclass(frozen=True, slots=True)
class Terminate:
    """Say goodbye."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        codec.expect_empty(body, "Terminate")
        return cls()

    def encode(self) -> bytes:
        return codec.frame(framing.F_TERMINATE)


@dataclass(frozen=True, slots=True)
class PasswordMessage:
    """The answer to a cleartext or md5 request: the password, or `md5` and 32 hexadecimal digits."""

    password: bytes = field(repr=False)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        if body.find(b"\0") != len(body) - 1 or not body:
            raise ProtocolError("PasswordMessage message is not one terminated string")
        return cls(body[:-1])

    def encode(self) -> bytes:
        if b"\0" in self.password:
            raise ProtocolError("a password contains a zero byte")
        return codec.frame(framing.F_PASSWORD, self.password + b"\0")


@dataclass(frozen=True, slots=True)
class SASLInitialResponse:
    """The chosen mechanism, and its first data (None: the server is to begin)."""

    mechanism: str
    data: bytes | None = field(repr=False)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "SASLInitialResponse")
        mechanism, data = reader.text(), reader.value()
        reader.finish()
        return cls(mechanism, data)

    def encode(self) -> bytes:
        return codec.frame(framing.F_PASSWORD, codec.cstring(self.mechanism) + codec.value(self.data))


@dataclass(frozen=True, slots=True)
class SASLResponse:
    """The mechanism's further data."""

    data: bytes = field(repr=False)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(body)

    def encode(self) -> bytes:
        return codec.frame(framing.F_PASSWORD, self.data)


FrontendMessage: TypeAlias = (
    Query
    | Parse
    | Bind
    | Describe
    | Close
    | Execute
    | FunctionCall
    | CopyData
    | CopyDone
    | CopyFail
    | Sync
    | Flush
    | Terminate
    | PasswordMessage
    | SASLInitialResponse
    | SASLResponse
)

_CLASSES: Final[Mapping[int, type[FrontendMessage]]] = MappingProxyType(
    {
        framing.F_QUERY: Query,
        framing.F_PARSE: Parse,
        framing.F_BIND: Bind,
        framing.F_DESCRIBE: Describe,
        framing.F_CLOSE: Close,
        framing.F_EXECUTE: Execute,
        framing.F_FUNCTION: FunctionCall,
        framing.F_COPY_DATA: CopyData,
        framing.F_COPY_DONE: CopyDone,
        framing.F_COPY_FAIL: CopyFail,
        framing.F_SYNC: Sync,
        framing.F_FLUSH: Flush,
        framing.F_TERMINATE: Terminate,
    }
)


def decode_frontend(
    kind: int,
    body: bytes,
    password_as: type[PasswordMessage | SASLInitialResponse | SASLResponse] = PasswordMessage,
) -> FrontendMessage:
    """Decode a frame's body by its type byte.

    Type `p` stands for several messages; which one depends on what the server asked for last, so the caller says
    it in `password_as`.  Raises ProtocolError for an unknown type and for a body that does not fit.
    """
    message = password_as if kind == framing.F_PASSWORD else _CLASSES.get(kind)
    if message is None:
        raise ProtocolError(f"unknown frontend message type {kind}")
    return message.decode(body)


def _decode_target(body: bytes, name: str) -> tuple[Target, str]:
    reader = BodyReader(body, name)
    kind = reader.take(1)
    if kind not in {b"S", b"P"}:
        raise reader.error("is about neither a statement nor a portal")
    text = reader.text()
    reader.finish()
    return Target(kind.decode()), text


def _encode_target(target: Target, name: str) -> bytes:
    return target.value.encode() + codec.cstring(name)
