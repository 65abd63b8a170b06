"""Whom a load balancer speaks for: the PROXY header before a client's first words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.auth.addresses import Network, is_within
from proxy.net.acceptor import PeerAddress
from proxy.net.handshake_io import HandshakeSocket
from proxy.wire import ProtocolError, proxy_protocol


class HeaderRefused(Exception):
    """A connection that gets no answer: its sender may not speak for others, or does not do so as it must."""


@dataclass(frozen=True, slots=True)
class ProxyPolicy:
    """Every connection has to come from one of these networks, and to begin with a PROXY header."""

    trusted: Sequence[Network]

    def trusts(self, host: str) -> bool:
        """Whether this address may speak for others."""
        return is_within(host, self.trusted)


async def real_address(io: HandshakeSocket, peer: PeerAddress, policy: ProxyPolicy) -> PeerAddress:
    """Read the PROXY header, and no byte behind it; returns the client's address, or the sender's where it has none.

    Raises HeaderRefused, and what `HandshakeSocket` raises when the connection ends.
    """
    if not policy.trusts(peer[0]):
        raise HeaderRefused("it comes from an address that is not in listen.proxy_networks")
    # Whoever waits for an answer instead of sending a header is to be told off now, not when the login's time is over.
    beginning = await io.peek(proxy_protocol.FIRST_BYTES)
    if not any(one.startswith(beginning) or beginning.startswith(one) for one in proxy_protocol.BEGINNINGS):
        raise HeaderRefused("it does not begin with a PROXY header")
    first = await io.read_exactly(proxy_protocol.FIRST_BYTES)
    try:
        if first.startswith(proxy_protocol.LINE_BEGINNING):
            source = proxy_protocol.decode_line(await _rest_of_line(io, first))
        else:
            rest = await io.read_exactly(proxy_protocol.PREAMBLE - proxy_protocol.FIRST_BYTES)
            header = proxy_protocol.Header.decode(first + rest)
            source = header.finish(await io.read_exactly(header.length))
    except ProtocolError as error:
        raise HeaderRefused(str(error)) from None
    return source or peer


async def _rest_of_line(io: HandshakeSocket, line: bytes) -> bytes:
    """Read byte by byte: what is behind the line is TLS's or the protocol's."""
    while not line.endswith(b"\n") and len(line) < proxy_protocol.MAX_LINE:
        line += await io.read_exactly(1)
    return line
