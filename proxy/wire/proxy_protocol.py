"""The PROXY protocol, versions 1 and 2: how a load balancer says on whose behalf it connects.

A header comes before everything else on a connection.  Read `FIRST_BYTES`.  If they begin with `LINE_BEGINNING`, read
on to the line feed, `MAX_LINE` bytes at most in all, for `decode_line`.  Else read on to `PREAMBLE` bytes for
`Header.decode`, then as many as it says for its `finish`.

Source: HAProxy, "The PROXY protocol", sections 2.1 (version 1) and 2.2 (version 2).
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy.wire.errors import ProtocolError

FIRST_BYTES: Final = 12
"""Bytes that tell the version; the shortest line of version 1 has more."""

PREAMBLE: Final = 16
"""Bytes of the fixed part of a version 2 header."""

MAX_LINE: Final = 107
"""Longest line of version 1, its end included."""

MAX_BODY: Final = 4096
"""Longest rest of a version 2 header that is accepted: addresses (at most 216 bytes) and what else is told of them."""

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
LINE_BEGINNING: Final = b"PROXY "
BEGINNINGS: Final = (SIGNATURE, LINE_BEGINNING)

_LOCAL: Final = 0
_PROXIED: Final = 1
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX_STREAM: Final = 0x31
_UNSPEC: Final = 0
_TLV_HEADER: Final = 3

Source: TypeAlias = tuple[str, int] | None
"""Address and port of the client; None where the sender speaks for itself, or does not know."""


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of a version 2 header; `length` bytes belong to it yet."""

    command: int
    family: int
    length: int

    @classmethod
    def decode(cls, preamble: bytes) -> Header:
        """Decode `PREAMBLE` bytes; raises ProtocolError."""
        if len(preamble) != PREAMBLE or not preamble.startswith(SIGNATURE):
            raise ProtocolError("the connection does not begin with a PROXY header")
        version_command, family, length = struct.unpack_from("!BBH", preamble, len(SIGNATURE))
        if version_command >> 4 != 2:
            raise ProtocolError(f"version {version_command >> 4} of the PROXY protocol is not known")
        command = version_command & 0xF
        if command not in {_LOCAL, _PROXIED}:
            raise ProtocolError(f"command {command} of the PROXY protocol is not known")
        if length > MAX_BODY:
            raise ProtocolError(f"a PROXY header of {length} bytes is too long")
        return cls(command, family, length)

    def finish(self, rest: bytes) -> Source:
        """Decode the rest of the header, of `length` bytes; raises ProtocolError."""
        if len(rest) != self.length:
            raise ProtocolError("a PROXY header is cut short")
        if self.command == _LOCAL or self.family == _UNSPEC:
            return None
        if self.family == _TCP4:
            source, offset = _ip_source(rest, 4), 12
        elif self.family == _TCP6:
            source, offset = _ip_source(rest, 16), 36
        elif self.family == _UNIX_STREAM:
            source, offset = None, 216
        else:
            raise ProtocolError(f"address family 0x{self.family:02x} of a PROXY header is not known")
        _skip_extras(rest, offset)
        return source


def decode_line(line: bytes) -> Source:
    """Decode a version 1 header, its end (CR LF) included; raises ProtocolError."""
    if not line.startswith(LINE_BEGINNING) or not line.endswith(b"\r\n") or len(line) > MAX_LINE:
        raise ProtocolError("the PROXY line is malformed")
    words = line[len(LINE_BEGINNING) : -2].split(b" ")
    if words[0] == b"UNKNOWN":
        return None
    if words[0] not in {b"TCP4", b"TCP6"} or len(words) != 5:
        raise ProtocolError("the PROXY line is malformed")
    source, target = _address(words[1]), _address(words[2])
    wanted = 4 if words[0] == b"TCP4" else 6
    if source.version != wanted or target.version != wanted:
        raise ProtocolError("the PROXY line has an address of another family")
    _port(words[4])
    return str(source), _port(words[3])


def _ip_source(rest: bytes, size: int) -> tuple[str, int]:
    if len(rest) < 2 * size + 4:
        raise ProtocolError("a PROXY header has no room for its addresses")
    (port,) = struct.unpack_from("!H", rest, 2 * size)
    return str(ipaddress.ip_address(rest[:size])), port


def _skip_extras(rest: bytes, offset: int) -> None:
    """Check that what follows the addresses is a whole list of (type, length, value), none of which is used."""
    if len(rest) < offset:
        raise ProtocolError("a PROXY header has no room for its addresses")
    while offset < len(rest):
        if offset + _TLV_HEADER > len(rest):
            raise ProtocolError("a PROXY header ends within an extra field")
        (length,) = struct.unpack_from("!H", rest, offset + 1)
        offset += _TLV_HEADER + length
    if offset != len(rest):
        raise ProtocolError("a PROXY header ends within an extra field")


def _address(word: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(word.decode("ascii"))
    except ValueError:
        raise ProtocolError("the PROXY line has something that is no address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ProtocolError("the PROXY line has an address with a zone")
    return address


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or int(word) > 65535 or (word[:1] == b"0" and word != b"0"):
        raise ProtocolError("the PROXY line has something that is no port")
    return int(word)
