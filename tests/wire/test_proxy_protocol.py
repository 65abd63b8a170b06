"""The PROXY protocol's headers, good and bad."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import ProtocolError
from proxy.wire.proxy_protocol import MAX_BODY, PREAMBLE, SIGNATURE, Header, Source, decode_line

IPV4 = bytes((192, 0, 2, 7, 10, 0, 0, 1)) + struct.pack("!HH", 51234, 6432)
IPV6 = bytes.fromhex("20010db8000000000000000000000007" + "00" * 15 + "01") + struct.pack("!HH", 51234, 6432)


def header(body: bytes = b"", *, command: int = 1, family: int = 0x11, version: int = 2) -> bytes:
    return SIGNATURE + bytes((version << 4 | command, family)) + struct.pack("!H", len(body)) + body


def decode(data: bytes) -> Source:
    return Header.decode(data[:PREAMBLE]).finish(data[PREAMBLE:])


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (header(IPV4), ("192.0.2.7", 51234)),
        (header(IPV6, family=0x21), ("2001:db8::7", 51234)),
        (header(IPV4 + b"\x04\0\3abc" + b"\x20\0\0"), ("192.0.2.7", 51234)),
        (header(bytes(216), family=0x31), None),
        (header(family=0), None),
        (header(b"whatever", family=0), None),
        (header(command=0), None),
        (header(IPV4, command=0), None),
        (header(command=0, family=0xFF), None),
    ],
)
def test_whom_a_header_speaks_for(data: bytes, source: Source) -> None:
    assert decode(data) == source


@pytest.mark.parametrize(
    "data",
    [
        header(IPV4, version=1),
        header(IPV4, version=3),
        header(IPV4, command=2),
        header(IPV4, family=0x12),
        header(IPV4, family=0x41),
        header(IPV4[:-1]),
        header(b""),
        header(IPV6[:-1], family=0x21),
        header(bytes(215), family=0x31),
        header(IPV4 + b"\x04"),
        header(IPV4 + b"\x04\0\4abc"),
        header(IPV4 + b"\x04\xff\xff"),
        header(bytes(MAX_BODY + 1)),
        b"\0" + header(IPV4)[1:],
        header(IPV4) + b"more",
        header(IPV4)[:-1],
        header()[:-1],
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


@pytest.mark.parametrize(
    ("line", "source"),
    [
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 51234 6432\r\n", ("192.0.2.7", 51234)),
        (b"PROXY TCP6 2001:db8::7 ::1 0 65535\r\n", ("2001:db8::7", 0)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
    ],
)
def test_whom_a_line_speaks_for(line: bytes, source: Source) -> None:
    assert decode_line(line) == source


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.7 10.0.0.1 51234 6432\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 51234\r\n",
        b"PROXY TCP4 192.0.2.7  10.0.0.1 51234 6432\r\n",
        b"PROXY TCP4 2001:db8::7 ::1 51234 6432\r\n",
        b"PROXY TCP6 192.0.2.7 10.0.0.1 51234 6432\r\n",
        b"PROXY TCP4 192.0.2.7 ::1 51234 6432\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 51234 6432\r\n",
        b"PROXY TCP4 192.0.2.999 10.0.0.1 51234 6432\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 6432\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 6432\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 007 6432\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 51234 \r\n",
        b"PROXY UDP4 192.0.2.7 10.0.0.1 51234 6432\r\n",
        b"PROXY\r\n",
        b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
        "PROXY TCP4 192.0.2.\u0667 10.0.0.1 51234 6432\r\n".encode(),
    ],
)
def test_what_is_no_line(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_line(line)


@given(st.binary(max_size=64), st.integers(0, 1), st.sampled_from((0, 0x11, 0x21, 0x31)))
def test_any_header_is_understood_or_refused(body: bytes, command: int, family: int) -> None:
    try:
        source = decode(header(body, command=command, family=family))
    except ProtocolError:
        return
    assert source is None or len(body) >= 12


@given(st.binary(max_size=120))
def test_any_line_is_understood_or_refused(line: bytes) -> None:
    for whole in (line, b"PROXY TCP4 " + line + b"\r\n"):
        try:
            decode_line(whole)
        except ProtocolError:
            continue
