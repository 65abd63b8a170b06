"""Having clients prove who they are: the conversation, what failures cost, and what stands against a proof."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from proxy.auth import Slowdown, neighbourhood
from proxy.errors import CERTIFICATE_OF_ANOTHER, Failure
from proxy.net.client_authentication import AuthPolicy, Proof, authenticate, is_certified
from proxy.net.client_handshake import Greeting, channel_of
from proxy.net.client_tls import ClientTlsMode
from proxy.net.handshake_io import HandshakeSocket
from proxy.routing.resolver import Resolution, Resolver

log = structlog.get_logger(__name__)


class Doorkeeper:
    """Proves clients for one node.

    `tls_mode` is what clients' certificates are held to, None without TLS.  `slowed` counts logins that had to wait.
    """

    def __init__(
        self,
        resolver: Resolver,
        policy: AuthPolicy,
        slowdown: Slowdown,
        tls_mode: ClientTlsMode | None,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._resolver = resolver
        self._policy = policy
        self._slowdown = slowdown
        self._tls_mode = tls_mode
        self._clock = clock
        self.slowed = 0

    async def prove(self, io: HandshakeSocket, greeting: Greeting, resolution: Resolution, host: str) -> Proof:
        """Have a client prove who it is; after failures only once it has waited, whether or not it would succeed now.

        Else who guesses would know at once which answers are worth waiting for.  `host` is the client's address.
        Raises Failure and PeerGone, as `authenticate` does.
        """
        user = resolution.selectors.user
        tenant = None if resolution.route is None else resolution.route.slug
        attempts = (resolution.spelled, neighbourhood(host))
        delay = self._slowdown.delay(attempts, self._clock())
        if delay:
            self.slowed += 1
            log.info("login slowed", tenant=tenant, user=user, address=host, seconds=delay)
            await asyncio.sleep(delay)
        try:
            proof = await authenticate(io, user, resolution, self._policy, channel_of(greeting))
            if not await self._resolver.confirm(resolution):
                raise resolution.refusal
        except Failure as failure:
            if failure is resolution.refusal:
                self._slowdown.failed(attempts, self._clock())
                self._resolver.doubt(resolution)
                if resolution.barred:
                    log.warning("the tenant's clients may not come from this address", tenant=tenant, address=host)
            raise
        self._slowdown.succeeded(attempts)
        return proof

    def check_owner(self, greeting: Greeting, resolution: Resolution) -> None:
        """Hold the name in a client's certificate against the login: `app`, with its tenant `app.acme`, or as it says.

        Raises Failure where that is asked for and the certificate is somebody else's.
        """
        if self._tls_mode is not ClientTlsMode.VERIFY_FULL:
            return
        peer = None if greeting.tls is None else greeting.tls.peer
        user = resolution.user
        if is_certified(resolution, peer):
            return
        slug = "" if resolution.route is None else resolution.route.slug
        if peer is None or peer.common_name not in {user, f"{user}.{slug}"}:
            raise Failure(CERTIFICATE_OF_ANOTHER, user=user)
