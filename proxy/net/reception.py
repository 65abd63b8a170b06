"""Before a client's first word: its place among the logins, its own address, and the wait for the word."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from proxy.errors import TOO_MANY_LOGINS, Failure
from proxy.net.acceptor import PeerAddress
from proxy.net.client_handshake import TlsTurn
from proxy.net.failures import fatal_response
from proxy.net.gate import Gates, Ticket
from proxy.net.handshake_io import HandshakeSocket
from proxy.net.real_address import ProxyPolicy, real_address
from proxy.net.visit import Visit

_LAST_WORDS: Final = fatal_response(Failure(TOO_MANY_LOGINS))


class Reception:
    """Receives clients for one node; `proxied` is set where they come through load balancers."""

    def __init__(self, gates: Gates, proxied: ProxyPolicy | None) -> None:
        self._gates = gates
        self.proxied = proxied

    def ask(self, io: HandshakeSocket, host: str) -> Ticket:
        """Ask for a login's place, for the calling task: it is cancelled if it has to give the place up."""
        task = asyncio.current_task()
        assert task is not None, "each login is a task"

        def evict() -> None:
            self.turn_away(io)
            task.cancel()

        is_balancer = self.proxied is not None and self.proxied.trusts(host)
        return self._gates.logins.arrive(None if is_balancer else host, silent_on=io.sock.fileno(), evict=evict)

    async def receive(self, io: HandshakeSocket, peer: PeerAddress, visit: Visit, ticket: Ticket) -> None:
        """Wait for the place, and then until the client says something; `visit` gets the client's own address.

        Raises TurnedAway where there is no place, HeaderRefused and PeerGone.
        """
        await ticket.admitted()
        if self.proxied is not None:
            host, port = await real_address(io, peer, self.proxied)
            visit.address = f"{host}:{port}"
            await ticket.move(host)
        await io.peek(1)
        ticket.heard()

    def tls_turn(self, visit: Visit) -> TlsTurn:
        """What a client's TLS handshake waits for."""
        return partial(self._gates.handshakes.place, visit.host)

    def turn_away(self, io: HandshakeSocket) -> None:
        """Say that there is no place, to somebody for whom nobody waits."""
        io.say_at_once(_LAST_WORDS)
