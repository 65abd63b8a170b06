"""Messages from a backend, one class each: `decode` takes a body, `encode` gives the whole frame.

Here are those that answer commands; the Authentication* family is in `authentication`, errors, parameters, keys
and readiness are in `reports`.  This module re-exports both.

Source: PostgreSQL documentation, "Message Formats".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, Self, TypeAlias

from proxy.wire import _codec as codec
from proxy.wire import framing
from proxy.wire._codec import BodyReader
from proxy.wire.authentication import (
    AuthenticationCleartextPassword,
    AuthenticationGSS,
    AuthenticationGSSContinue,
    AuthenticationKerberosV5,
    AuthenticationMD5Password,
    AuthenticationMessage,
    AuthenticationOk,
    AuthenticationSASL,
    AuthenticationSASLContinue,
    AuthenticationSASLFinal,
    AuthenticationSSPI,
    decode_authentication,
)
from proxy.wire.errors import ProtocolError
from proxy.wire.frontend import CopyData, CopyDone
from proxy.wire.reports import (
    BackendKeyData,
    ErrorResponse,
    NegotiateProtocolVersion,
    NoticeResponse,
    NotificationResponse,
    ParameterStatus,
    ReadyForQuery,
    TransactionStatus,
)

__all__ = [
    "AuthenticationCleartextPassword",
    "AuthenticationGSS",
    "AuthenticationGSSContinue",
    "AuthenticationKerberosV5",
    "AuthenticationMD5Password",
    "AuthenticationMessage",
    "AuthenticationOk",
    "AuthenticationSASL",
    "AuthenticationSASLContinue",
    "AuthenticationSASLFinal",
    "AuthenticationSSPI",
    "BackendKeyData",
    "BackendMessage",
    "BindComplete",
    "CloseComplete",
    "CommandComplete",
    "CopyBothResponse",
    "CopyData",
    "CopyDone",
    "CopyInResponse",
    "CopyOutResponse",
    "DataRow",
    "EmptyQueryResponse",
    "ErrorResponse",
    "FieldDescription",
    "FunctionCallResponse",
    "NegotiateProtocolVersion",
    "NoData",
    "NoticeResponse",
    "NotificationResponse",
    "ParameterDescription",
    "ParameterStatus",
    "ParseComplete",
    "PortalSuspended",
    "ReadyForQuery",
    "RowDescription",
    "TransactionStatus",
    "decode_authentication",
    "decode_backend",
]


@dataclass(frozen=True, slots=True)
class _Bare:
    """A message that is its type and nothing else."""

    KIND: ClassVar[int]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        codec.expect_empty(body, cls.__name__)
        return cls()

    def encode(self) -> bytes:
        return codec.frame(self.KIND)


@dataclass(frozen=True, slots=True)
class ParseComplete(_Bare):
    """A Parse succeeded."""

    KIND: ClassVar[int] = framing.B_PARSE_COMPLETE


@dataclass(frozen=True, slots=True)
class BindComplete(_Bare):
    """A Bind succeeded."""

    KIND: ClassVar[int] = framing.B_BIND_COMPLETE


@dataclass(frozen=True, slots=True)
class CloseComplete(_Bare):
    """A Close succeeded."""

    KIND: ClassVar[int] = framing.B_CLOSE_COMPLETE


@dataclass(frozen=True, slots=True)
class EmptyQueryResponse(_Bare):
    """The query string was empty."""

    KIND: ClassVar[int] = framing.B_EMPTY_QUERY


@dataclass(frozen=True, slots=True)
class NoData(_Bare):
    """What was described returns no rows."""

    KIND: ClassVar[int] = framing.B_NO_DATA


@dataclass(frozen=True, slots=True)
class PortalSuspended(_Bare):
    """Execute reached its row limit."""

    KIND: ClassVar[int] = framing.B_PORTAL_SUSPENDED


@dataclass(frozen=True, slots=True)
class CommandComplete:
    """A command ended; the tag says which, and how many rows it touched."""

    tag: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "CommandComplete")
        tag = reader.text()
        reader.finish()
        return cls(tag)

    def encode(self) -> bytes:
        return codec.frame(framing.B_COMMAND_COMPLETE, codec.cstring(self.tag))


@dataclass(frozen=True, slots=True)
class _CopyResponse:
    """A COPY begins: its overall format and each column's, 0 text and 1 binary."""

    KIND: ClassVar[int]

    overall_format: int
    column_formats: tuple[int, ...] = ()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, cls.__name__)
        overall, columns = reader.byte(), reader.int16s()
        if overall > 1:
            raise reader.error("has an unknown overall format")
        reader.finish()
        return cls(overall, columns)

    def encode(self) -> bytes:
        if self.overall_format not in {0, 1}:
            raise ProtocolError("a COPY's overall format is 0 or 1")
        return codec.frame(self.KIND, codec.byte(self.overall_format) + codec.int16s(self.column_formats))


@dataclass(frozen=True, slots=True)
class CopyInResponse(_CopyResponse):
    """The backend is ready for CopyData."""

    KIND: ClassVar[int] = framing.B_COPY_IN


@dataclass(frozen=True, slots=True)
class CopyOutResponse(_CopyResponse):
    """CopyData will follow."""

    KIND: ClassVar[int] = framing.B_COPY_OUT


@dataclass(frozen=True, slots=True)
class CopyBothResponse(_CopyResponse):
    """CopyData goes both ways (replication)."""

    KIND: ClassVar[int] = framing.B_COPY_BOTH


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row; None is NULL."""

    values: tuple[bytes | None, ...]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "DataRow")
        values = reader.values()
        reader.finish()
        return cls(values)

    def encode(self) -> bytes:
        return codec.frame(framing.B_DATA_ROW, codec.values(self.values))


@dataclass(frozen=True, slots=True)
class FunctionCallResponse:
    """A FunctionCall's result; None is NULL."""

    value: bytes | None

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "FunctionCallResponse")
        value = reader.value()
        reader.finish()
        return cls(value)

    def encode(self) -> bytes:
        return codec.frame(framing.B_FUNCTION_RESULT, codec.value(self.value))


@dataclass(frozen=True, slots=True)
class ParameterDescription:
    """The type oids of a prepared statement's parameters."""

    types: tuple[int, ...]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "ParameterDescription")
        types = reader.uint32s()
        reader.finish()
        return cls(types)

    def encode(self) -> bytes:
        return codec.frame(framing.B_PARAMETER_DESCRIPTION, codec.uint32s(self.types))


@dataclass(frozen=True, slots=True)
class FieldDescription:
    """One column of a RowDescription; table and attribute are 0 where the column is not a table's."""

    name: str
    table: int
    attribute: int
    type: int
    type_size: int
    type_modifier: int
    format: int


# The least a column takes: an empty name's terminator and 18 bytes of numbers.
_MIN_FIELD_SIZE: Final = 19


@dataclass(frozen=True, slots=True)
class RowDescription:
    """The columns of the rows to come."""

    fields: tuple[FieldDescription, ...]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "RowDescription")
        fields = tuple(_read_field(reader) for _ in range(reader.count16(_MIN_FIELD_SIZE)))
        reader.finish()
        return cls(fields)

    def encode(self) -> bytes:
        return codec.frame(
            framing.B_ROW_DESCRIPTION, codec.count16(len(self.fields)) + b"".join(map(_write_field, self.fields))
        )


BackendMessage: TypeAlias = (
    AuthenticationMessage
    | BackendKeyData
    | BindComplete
    | CloseComplete
    | CommandComplete
    | CopyBothResponse
    | CopyData
    | CopyDone
    | CopyInResponse
    | CopyOutResponse
    | DataRow
    | EmptyQueryResponse
    | ErrorResponse
    | FunctionCallResponse
    | NegotiateProtocolVersion
    | NoData
    | NoticeResponse
    | NotificationResponse
    | ParameterDescription
    | ParameterStatus
    | ParseComplete
    | PortalSuspended
    | ReadyForQuery
    | RowDescription
)

_CLASSES: Final[Mapping[int, type[BackendMessage]]] = MappingProxyType(
    {
        framing.B_BACKEND_KEY_DATA: BackendKeyData,
        framing.B_BIND_COMPLETE: BindComplete,
        framing.B_CLOSE_COMPLETE: CloseComplete,
        framing.B_COMMAND_COMPLETE: CommandComplete,
        framing.B_COPY_BOTH: CopyBothResponse,
        framing.B_COPY_DATA: CopyData,
        framing.B_COPY_DONE: CopyDone,
        framing.B_COPY_IN: CopyInResponse,
        framing.B_COPY_OUT: CopyOutResponse,
        framing.B_DATA_ROW: DataRow,
        framing.B_EMPTY_QUERY: EmptyQueryResponse,
        framing.B_ERROR: ErrorResponse,
        framing.B_FUNCTION_RESULT: FunctionCallResponse,
        framing.B_NEGOTIATE_VERSION: NegotiateProtocolVersion,
        framing.B_NO_DATA: NoData,
        framing.B_NOTICE: NoticeResponse,
        framing.B_NOTIFICATION: NotificationResponse,
        framing.B_PARAMETER_DESCRIPTION: ParameterDescription,
        framing.B_PARAMETER_STATUS: ParameterStatus,
        framing.B_PARSE_COMPLETE: ParseComplete,
        framing.B_PORTAL_SUSPENDED: PortalSuspended,
        framing.B_READY: ReadyForQuery,
        framing.B_ROW_DESCRIPTION: RowDescription,
    }
)


def decode_backend(kind: int, body: bytes) -> BackendMessage:
    """Decode a frame's body by its type byte; raises ProtocolError for an unknown type and a body that does not fit."""
    if kind == framing.B_AUTHENTICATION:
        return decode_authentication(body)
    message = _CLASSES.get(kind)
    if message is None:
        raise ProtocolError(f"unknown backend message type {kind}")
    return message.decode(body)


def _read_field(reader: BodyReader) -> FieldDescription:
    return FieldDescription(
        name=reader.text(),
        table=reader.uint32(),
        attribute=reader.int16(),
        type=reader.uint32(),
        type_size=reader.int16(),
        type_modifier=reader.int32(),
        format=reader.int16(),
    )


def _write_field(column: FieldDescription) -> bytes:
    return (
        codec.cstring(column.name)
        + codec.uint32(column.table)
        + codec.int16(column.attribute)
        + codec.uint32(column.type)
        + codec.int16(column.type_size)
        + codec.int32(column.type_modifier)
        + codec.int16(column.format)
    )
