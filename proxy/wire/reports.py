"""What a backend reports about itself and its session: errors, notices, parameters, keys, readiness.

Source: PostgreSQL documentation, "Message Formats" and "Error and Notice Message Fields".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from proxy.wire import _codec as codec
from proxy.wire import framing
from proxy.wire._codec import BodyReader
from proxy.wire.errors import ProtocolError

MIN_KEY_SIZE: Final = 4
MAX_KEY_SIZE: Final = 256


class TransactionStatus(StrEnum):
    """What ReadyForQuery says of the session's transaction."""

    IDLE = "I"
    IN_TRANSACTION = "T"
    FAILED = "E"


@dataclass(frozen=True, slots=True)
class _Fields:
    """Fields by their one-character code, in the order they came.

    Any field may be missing, the SQLSTATE too: the properties are None then.
    """

    fields: tuple[tuple[str, str], ...]

    def get(self, code: str) -> str | None:
        """The first field of this code, or None."""
        return next((text for key, text in self.fields if key == code), None)

    @property
    def severity(self) -> str | None:
        """The severity in English where the server says it (since 9.6), else as localised."""
        return self.get("V") or self.get("S")

    @property
    def sqlstate(self) -> str | None:
        return self.get("C")

    @property
    def message(self) -> str | None:
        return self.get("M")

    @property
    def detail(self) -> str | None:
        return self.get("D")

    @property
    def hint(self) -> str | None:
        return self.get("H")

    @classmethod
    def build(
        cls,
        severity: str,
        sqlstate: str,
        message: str,
        *,
        detail: str | None = None,
        hint: str | None = None,
        routine: str | None = None,
    ) -> Self:
        """Make the message from the fields that a proxy has something to say in.

        `routine` is that of PostgreSQL's which reports this error; some drivers tell errors apart by it.
        """
        fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", message)]
        if detail is not None:
            fields.append(("D", detail))
        if hint is not None:
            fields.append(("H", hint))
        if routine is not None:
            fields.append(("R", routine))
        return cls(tuple(fields))

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, cls.__name__)
        fields: list[tuple[str, str]] = []
        while code := reader.take(1):
            if code == b"\0":
                break
            fields.append((codec.decode_text(code), reader.text()))
        reader.finish()
        return cls(tuple(fields))

    def _body(self) -> bytes:
        parts: list[bytes] = []
        for code, text in self.fields:
            raw = codec.encode_text(code)
            if len(raw) != 1:
                raise ProtocolError("a field's code is one byte")
            parts.append(raw + codec.cstring(text))
        return b"".join(parts) + b"\0"


@dataclass(frozen=True, slots=True)
class ErrorResponse(_Fields):
    """Something failed."""

    def encode(self) -> bytes:
        return codec.frame(framing.B_ERROR, self._body())


@dataclass(frozen=True, slots=True)
class NoticeResponse(_Fields):
    """Something is worth knowing."""

    def encode(self) -> bytes:
        return codec.frame(framing.B_NOTICE, self._body())


@dataclass(frozen=True, slots=True)
class BackendKeyData:
    """What a CancelRequest for this session must carry: the process id (unsigned) and a key of 4 to 256 bytes.

    Keys longer than 4 bytes need protocol 3.2 on that connection; to send them only there is the caller's duty.
    """

    pid: int
    key: bytes = field(repr=False)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "BackendKeyData")
        pid, key = reader.uint32(), reader.take_all()
        check_key(key)
        return cls(pid, key)

    def encode(self) -> bytes:
        check_key(self.key)
        return codec.frame(framing.B_BACKEND_KEY_DATA, codec.uint32(self.pid) + self.key)


@dataclass(frozen=True, slots=True)
class ParameterStatus:
    """The present value of a parameter that the server reports."""

    name: str
    value: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "ParameterStatus")
        name, value = reader.text(), reader.text()
        reader.finish()
        return cls(name, value)

    def encode(self) -> bytes:
        return codec.frame(framing.B_PARAMETER_STATUS, codec.cstring(self.name) + codec.cstring(self.value))


@dataclass(frozen=True, slots=True)
class ReadyForQuery:
    """The backend waits for the next command."""

    status: TransactionStatus

    @classmethod
    def decode(cls, body: bytes) -> Self:
        if body not in {b"I", b"T", b"E"}:
            raise ProtocolError("ReadyForQuery message has no known transaction status")
        return cls(TransactionStatus(body.decode()))

    def encode(self) -> bytes:
        return codec.frame(framing.B_READY, self.status.value.encode())


@dataclass(frozen=True, slots=True)
class NotificationResponse:
    """A NOTIFY from the session of this process id."""

    pid: int
    channel: str
    payload: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "NotificationResponse")
        pid, channel, payload = reader.uint32(), reader.text(), reader.text()
        reader.finish()
        return cls(pid, channel, payload)

    def encode(self) -> bytes:
        body = codec.uint32(self.pid) + codec.cstring(self.channel) + codec.cstring(self.payload)
        return codec.frame(framing.B_NOTIFICATION, body)


@dataclass(frozen=True, slots=True)
class NegotiateProtocolVersion:
    """The newest version that the server speaks, and the protocol options that it does not know.

    `version` is the whole number, 0x00030000 for 3.0: PostgreSQL sends that, and drivers expect it.
    """

    version: int
    unknown_options: tuple[str, ...] = ()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = BodyReader(body, "NegotiateProtocolVersion")
        version = reader.uint32()
        options = tuple(reader.text() for _ in range(reader.count32(1)))
        reader.finish()
        return cls(version, options)

    def encode(self) -> bytes:
        options = codec.int32(len(self.unknown_options)) + codec.cstring_list(self.unknown_options)
        return codec.frame(framing.B_NEGOTIATE_VERSION, codec.uint32(self.version) + options)


def check_key(key: bytes) -> None:
    """Raise ProtocolError unless a cancel key has 4 to 256 bytes."""
    if not MIN_KEY_SIZE <= len(key) <= MAX_KEY_SIZE:
        raise ProtocolError("a cancel key has 4 to 256 bytes")
