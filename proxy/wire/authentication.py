"""The Authentication* messages, which share type `R` and differ by a 32-bit code.

Source: PostgreSQL documentation, "Message Formats".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Self, TypeAlias

from proxy.wire import _codec as codec
from proxy.wire import framing
from proxy.wire._codec import BodyReader
from proxy.wire.errors import ProtocolError

OK: Final = 0
KERBEROS_V5: Final = 2
CLEARTEXT: Final = 3
MD5: Final = 5
GSS: Final = 7
GSS_CONTINUE: Final = 8
SSPI: Final = 9
SASL: Final = 10
SASL_CONTINUE: Final = 11
SASL_FINAL: Final = 12


@dataclass(frozen=True, slots=True)
class AuthenticationOk:
    """The frontend is who it says."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        _open(body, OK, "AuthenticationOk").finish()
        return cls()

    def encode(self) -> bytes:
        return _frame(OK)


@dataclass(frozen=True, slots=True)
class AuthenticationKerberosV5:
    """Kerberos is wanted; no PostgreSQL has sent this since 9.3."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        _open(body, KERBEROS_V5, "AuthenticationKerberosV5").finish()
        return cls()

    def encode(self) -> bytes:
        return _frame(KERBEROS_V5)


@dataclass(frozen=True, slots=True)
class AuthenticationCleartextPassword:
    """The password itself is wanted."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        _open(body, CLEARTEXT, "AuthenticationCleartextPassword").finish()
        return cls()

    def encode(self) -> bytes:
        return _frame(CLEARTEXT)


@dataclass(frozen=True, slots=True)
class AuthenticationMD5Password:
    """An md5 answer is wanted, made with these 4 bytes of salt."""

    salt: bytes

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = _open(body, MD5, "AuthenticationMD5Password")
        salt = reader.take(4)
        reader.finish()
        return cls(salt)

    def encode(self) -> bytes:
        if len(self.salt) != 4:
            raise ProtocolError("an md5 salt has 4 bytes")
        return _frame(MD5, self.salt)


@dataclass(frozen=True, slots=True)
class AuthenticationGSS:
    """GSSAPI is wanted."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        _open(body, GSS, "AuthenticationGSS").finish()
        return cls()

    def encode(self) -> bytes:
        return _frame(GSS)


@dataclass(frozen=True, slots=True)
class AuthenticationGSSContinue:
    """GSSAPI or SSPI data."""

    data: bytes = field(repr=False)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(_open(body, GSS_CONTINUE, "AuthenticationGSSContinue").take_all())

    def encode(self) -> bytes:
        return _frame(GSS_CONTINUE, self.data)


@dataclass(frozen=True, slots=True)
class AuthenticationSSPI:
    """SSPI is wanted."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        _open(body, SSPI, "AuthenticationSSPI").finish()
        return cls()

    def encode(self) -> bytes:
        return _frame(SSPI)


@dataclass(frozen=True, slots=True)
class AuthenticationSASL:
    """SASL is wanted, by one of these mechanisms, the server's favourite first."""

    mechanisms: tuple[str, ...]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        reader = _open(body, SASL, "AuthenticationSASL")
        mechanisms: list[str] = []
        while name := reader.text():
            mechanisms.append(name)
        reader.finish()
        return cls(tuple(mechanisms))

    def encode(self) -> bytes:
        if "" in self.mechanisms:
            raise ProtocolError("a mechanism without a name would end the list")
        return _frame(SASL, codec.cstring_list(self.mechanisms) + b"\0")


@dataclass(frozen=True, slots=True)
class AuthenticationSASLContinue:
    """The mechanism's challenge."""

    data: bytes = field(repr=False)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(_open(body, SASL_CONTINUE, "AuthenticationSASLContinue").take_all())

    def encode(self) -> bytes:
        return _frame(SASL_CONTINUE, self.data)


@dataclass(frozen=True, slots=True)
class AuthenticationSASLFinal:
    """The mechanism's outcome."""

    data: bytes = field(repr=False)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(_open(body, SASL_FINAL, "AuthenticationSASLFinal").take_all())

    def encode(self) -> bytes:
        return _frame(SASL_FINAL, self.data)


AuthenticationMessage: TypeAlias = (
    AuthenticationOk
    | AuthenticationKerberosV5
    | AuthenticationCleartextPassword
    | AuthenticationMD5Password
    | AuthenticationGSS
    | AuthenticationGSSContinue
    | AuthenticationSSPI
    | AuthenticationSASL
    | AuthenticationSASLContinue
    | AuthenticationSASLFinal
)

_CLASSES: Final[Mapping[int, type[AuthenticationMessage]]] = MappingProxyType(
    {
        OK: AuthenticationOk,
        KERBEROS_V5: AuthenticationKerberosV5,
        CLEARTEXT: AuthenticationCleartextPassword,
        MD5: AuthenticationMD5Password,
        GSS: AuthenticationGSS,
        GSS_CONTINUE: AuthenticationGSSContinue,
        SSPI: AuthenticationSSPI,
        SASL: AuthenticationSASL,
        SASL_CONTINUE: AuthenticationSASLContinue,
        SASL_FINAL: AuthenticationSASLFinal,
    }
)


def decode_authentication(body: bytes) -> AuthenticationMessage:
    """Decode the body of a type `R` frame by its code; raises ProtocolError for an unknown code."""
    code = BodyReader(body, "Authentication").int32()
    message = _CLASSES.get(code)
    if message is None:
        raise ProtocolError(f"unknown authentication request {code}")
    return message.decode(body)


def _open(body: bytes, code: int, name: str) -> BodyReader:
    reader = BodyReader(body, name)
    if reader.int32() != code:
        raise reader.error("has another authentication code")
    return reader


def _frame(code: int, data: bytes = b"") -> bytes:
    return codec.frame(framing.B_AUTHENTICATION, codec.int32(code) + data)
