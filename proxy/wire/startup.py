"""What a client may send first: SSLRequest, GSSENCRequest, CancelRequest or StartupMessage.

These have no type byte: a length that counts itself, then a 32-bit code.  Read them with an untyped
`framing.FrameReader` and a limit of `framing.MAX_STARTUP_BODY`.

Source: PostgreSQL documentation, "Message Formats"; the rules for odd packets are those of the server itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self, TypeAlias

from proxy.wire import _codec as codec
from proxy.wire._codec import BodyReader
from proxy.wire.errors import ProtocolError, UnsupportedProtocol
from proxy.wire.framing import MAX_STARTUP_BODY
from proxy.wire.reports import NegotiateProtocolVersion, check_key

CANCEL_CODE: Final = 80877102
SSL_CODE: Final = 80877103
GSSENC_CODE: Final = 80877104

PROTOCOL_3_0: Final = 0x00030000
PROTOCOL_3_2: Final = 0x00030002


class ReplicationMode(StrEnum):
    """What a session is for: queries, the server's whole WAL (physical), or one database's changes (logical)."""

    NONE = "false"
    PHYSICAL = "true"
    LOGICAL = "database"


_PROTOCOL_OPTION_PREFIX: Final = "_pq_."
_SPELLINGS: Final = {
    ReplicationMode.PHYSICAL: ("true", "yes", "on", "1"),
    ReplicationMode.NONE: ("false", "no", "off", "0"),
}
_OWN_PARAMETERS: Final = frozenset({"user", "database", "options", "replication"})


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """May TLS begin?  The answer is one byte, `S` or `N`."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        _open(body, SSL_CODE, "SSLRequest").finish()
        return cls()

    def encode(self) -> bytes:
        return _frame(codec.int32(SSL_CODE))


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """May GSSAPI encryption begin?  The answer is one byte, `G` or `N`."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        _open(body, GSSENC_CODE, "GSSENCRequest").finish()
        return cls()

    def encode(self) -> bytes:
        return _frame(codec.int32(GSSENC_CODE))


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Cancel what the session with this process id (unsigned) and key does; the key has 4 to 256 bytes."""

    pid: int
    key: bytes = field(repr=False)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = _open(body, CANCEL_CODE, "CancelRequest")
        pid, key = reader.uint32(), reader.take_all()
        check_key(key)
        return cls(pid, key)

    def encode(self) -> bytes:
        check_key(self.key)
        return _frame(codec.int32(CANCEL_CODE) + codec.uint32(self.pid) + self.key)


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """Begin a session: the protocol version as a whole number (0x00030000 is 3.0), and parameters in their order."""

    version: int
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def minor(self) -> int:
        return self.version & 0xFFFF

    @property
    def user(self) -> str | None:
        """The user name; None when it is missing or empty, which PostgreSQL refuses with 28000."""
        return self.get("user") or None

    @property
    def database(self) -> str | None:
        """The database, which defaults to the user name as in PostgreSQL."""
        return self.get("database") or self.user

    @property
    def options(self) -> str:
        """The command-line switches, empty when there are none; `options.parse_startup_options` takes them apart."""
        return self.get("options") or ""

    @property
    def replication(self) -> ReplicationMode:
        """What was asked of replication; raises ValueError for a word that PostgreSQL does not know either."""
        return replication_mode(self.get("replication"))

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """The parameters that are session settings: all but user, database, options, replication and `_pq_.` ones."""
        return tuple(
            (name, value)
            for name, value in self.parameters
            if name not in _OWN_PARAMETERS and not name.startswith(_PROTOCOL_OPTION_PREFIX)
        )

    @property
    def protocol_options(self) -> tuple[str, ...]:
        """The names of the protocol extensions asked for (`_pq_.something`)."""
        return tuple(name for name, _ in self.parameters if name.startswith(_PROTOCOL_OPTION_PREFIX))

    def get(self, name: str) -> str | None:
        """The value of a parameter, the last one where it is given twice, as in PostgreSQL."""
        return next((value for key, value in reversed(self.parameters) if key == name), None)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Decode a body; raises UnsupportedProtocol unless the major version is 3."""
        reader = BodyReader(body, "StartupMessage")
        version = reader.uint32()
        if version >> 16 != 3:
            raise UnsupportedProtocol(version >> 16, version & 0xFFFF)
        parameters: list[tuple[str, str]] = []
        while name := reader.text():
            parameters.append((name, reader.text()))
        reader.finish()
        return cls(version, tuple(parameters))

    def encode(self) -> bytes:
        parts = [codec.uint32(self.version)]
        for name, value in self.parameters:
            if not name:
                raise ProtocolError("a parameter without a name would end the list")
            parts.append(codec.cstring(name) + codec.cstring(value))
        return _frame(b"".join(parts) + b"\0")


FirstMessage: TypeAlias = SSLRequest | GSSENCRequest | CancelRequest | StartupMessage


def decode_startup(body: bytes) -> FirstMessage:
    """Decode an untyped packet's body by its code.

    Raises UnsupportedProtocol for a StartupMessage of another major version, ProtocolError for anything else that
    does not fit.
    """
    code = BodyReader(body, "startup").uint32()
    if code == SSL_CODE:
        return SSLRequest.decode(body)
    if code == GSSENC_CODE:
        return GSSENCRequest.decode(body)
    if code == CANCEL_CODE:
        return CancelRequest.decode(body)
    return StartupMessage.decode(body)


def is_cancel_request(body: bytes) -> bool:
    """Whether a packet's body has the code of a cancel request, whatever else it has."""
    return int.from_bytes(body[:4], "big") == CANCEL_CODE


def negotiate(startup: StartupMessage, newest: int = PROTOCOL_3_2) -> tuple[int, NegotiateProtocolVersion | None]:
    """Settle the version to speak, and what to tell the client first where it asked for something unknown.

    The message names the version settled on, never a higher one than was asked for: libpq takes that for an attack.

    Source: PostgreSQL documentation, "Protocol Flow", section "Start-up".
    """
    version = min(startup.version, newest)
    unknown = startup.protocol_options
    if version == startup.version and not unknown:
        return version, None
    return version, NegotiateProtocolVersion(version, unknown)


def replication_mode(word: str | None) -> ReplicationMode:
    """Read the parameter `replication`: `database`, or any spelling of yes and no; raises ValueError for others.

    Source: PostgreSQL's `ProcessStartupPacket` and `parse_bool`, which takes the beginnings of words as well.
    """
    if word is None:
        return ReplicationMode.NONE
    if word == ReplicationMode.LOGICAL.value:
        return ReplicationMode.LOGICAL
    low = word.lower()
    for mode, spellings in _SPELLINGS.items():
        if low in spellings or (low not in {"", "o"} and any(full.startswith(low) for full in spellings)):
            return mode
    raise ValueError(f"no value for replication: {word!r}")


def _open(body: bytes, code: int, name: str) -> BodyReader:
    reader = BodyReader(body, name)
    if reader.int32() != code:
        raise reader.error("has another request code")
    return reader


def _frame(body: bytes) -> bytes:
    if len(body) > MAX_STARTUP_BODY:
        raise ProtocolError(f"a startup packet is limited to {MAX_STARTUP_BODY} bytes")
    return codec.int32(len(body) + 4) + body
