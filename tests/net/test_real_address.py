"""The PROXY header before a client's first words: believed from some, and read to its last byte and no further."""

from __future__ import annotations

import asyncio
import ipaddress
import struct

import pytest
from harness.handshakes import connected
from harness.rawclient import SSL_REQUEST

from proxy.net.handshake_io import PeerGone
from proxy.net.real_address import HeaderRefused, ProxyPolicy, real_address
from proxy.wire.proxy_protocol import SIGNATURE

POLICY = ProxyPolicy([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")])
BALANCER = ("10.1.2.3", 40000)
BODY = bytes((192, 0, 2, 7, 10, 0, 0, 1)) + struct.pack("!HH", 51234, 6432)
PROXIED = SIGNATURE + b"\x21\x11" + struct.pack("!H", len(BODY)) + BODY
LOCAL = SIGNATURE + b"\x20\0\0\0"
LINE = b"PROXY TCP4 192.0.2.7 10.0.0.1 51234 6432\r\n"


@pytest.mark.parametrize(
    ("data", "expected"), [(PROXIED, ("192.0.2.7", 51234)), (LOCAL, BALANCER), (LINE, ("192.0.2.7", 51234))]
)
@pytest.mark.parametrize("bytewise", [False, True])
async def test_what_is_behind_the_header_stays_unread(data: bytes, expected: tuple[str, int], bytewise: bool) -> None:
    async with connected() as (io, peer):
        reading = asyncio.create_task(real_address(io, BALANCER, POLICY))
        if bytewise:
            await peer.send_bytewise(data)
            await peer.send(SSL_REQUEST)
        else:
            await peer.send(data + SSL_REQUEST)
        assert await reading == expected
        assert await io.read_exactly(len(SSL_REQUEST)) == SSL_REQUEST


async def test_only_load_balancers_are_believed() -> None:
    for address in (("192.0.2.1", 1), ("11.0.0.1", 1), ("fe80::1%eth0", 1), ("::1", 1)):
        async with connected() as (io, peer):
            await peer.send(PROXIED)
            with pytest.raises(HeaderRefused, match="proxy_networks"):
                await real_address(io, address, POLICY)
    async with connected() as (io, peer):
        await peer.send(PROXIED)
        assert await real_address(io, ("fd00::5", 1), POLICY) == ("192.0.2.7", 51234)


@pytest.mark.parametrize(
    "data",
    [
        SSL_REQUEST,
        b"\x16",
        b"\r\n\r\n\0\r\nQUIX",
        b"PROXY nonsense\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        SIGNATURE + b"\x31\x11\0\x0c" + BODY,
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE + b"\x21\x11\0\x0b" + BODY,
    ],
)
async def test_anything_else_is_refused_without_waiting_for_more(data: bytes) -> None:
    async with connected() as (io, peer), asyncio.timeout(2):
        await peer.send(data)
        with pytest.raises(HeaderRefused):
            await real_address(io, BALANCER, POLICY)


async def test_a_header_that_is_cut_off_is_a_connection_that_ended() -> None:
    async with connected() as (io, peer):
        await peer.send(PROXIED[:20])
        peer.writer.write_eof()
        with pytest.raises(PeerGone):
            await real_address(io, BALANCER, POLICY)
