"""Before a client's first message: its place among the logins, its own address, and the wait for that message."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from proxy.errors import TOO_MANY_LOGINS, Failure
from proxy.net.acceptor import PeerAddress
from proxy.net.admission import Admissions, PlaceRequest
from proxy.net.client_handshake import TlsTurn
from proxy.net.failures import fatal_response
from proxy.net.handshake_io import HandshakeSocket
from proxy.net.real_address import ProxyPolicy, real_address
from proxy.net.visit import Visit

_LAST_WORDS: Final = fatal_response(Failure(TOO_MANY_LOGINS))


class Arrivals:
    """Clients that arrive at one node; `proxied` is set where they come through load balancers."""

    def __init__(self, admissions: Admissions, proxied: ProxyPolicy | None) -> None:
        self._admissions = admissions
        self.proxied = proxied

    def request_place(self, io: HandshakeSocket, host: str) -> PlaceRequest:
        """Ask for a place for a login, for the calling task: it is cancelled if it has to give the place up."""
        task = asyncio.current_task()
        assert task is not None, "each login is a task"

        def evict() -> None:
            self.refuse(io)
            task.cancel()

        is_balancer = self.proxied is not None and self.proxied.trusts(host)
        return self._admissions.logins.arrive(None if is_balancer else host, silent_on=io.sock.fileno(), evict=evict)

    async def admit(self, io: HandshakeSocket, peer: PeerAddress, visit: Visit, request: PlaceRequest) -> None:
        """Wait for the place, and then until the client says something; `visit` gets the client's own address.

        Raises NoPlace where there is no place, HeaderRefused and PeerGone.
        """
        await request.admitted()
        if self.proxied is not None:
            host, port = await real_address(io, peer, self.proxied)
            visit.address = f"{host}:{port}"
            await request.move(host)
        await io.peek(1)
        request.heard()

    def tls_turn(self, visit: Visit) -> TlsTurn:
        """What a client's TLS handshake waits for."""
        return partial(self._admissions.handshakes.place, visit.host)

    def refuse(self, io: HandshakeSocket) -> None:
        """Say that there is no place, to somebody for whom nobody waits."""
        io.say_at_once(_LAST_WORDS)
