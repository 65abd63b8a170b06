"""Having clients prove who they are: the conversation, what failures cost, and what stands against a proof."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog

from proxy.auth import Attempt, Slowdown
from proxy.errors import CERTIFICATE_OF_ANOTHER, Failure
from proxy.net.client_authentication import AuthPolicy, Proof, authenticate, is_certified
from proxy.net.client_handshake import Greeting, channel_of
from proxy.net.client_tls import ClientTlsMode
from proxy.net.handshake_io import HandshakeSocket
from proxy.net.turns import Turns
from proxy.routing.lookups import Look
from proxy.routing.names import Selectors, read, stem
from proxy.routing.resolution import Resolution
from proxy.routing.resolver import Resolver
from registry.contract import VerifierSource

log = structlog.get_logger(__name__)


class Doorkeeper:
    """Proves clients for one node.

    `tls_mode` is what clients' certificates are held to, None without TLS.
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
        self._turns = Turns(slowdown, clock=clock)
        self._tls_mode = tls_mode

    def follow(self, policy: AuthPolicy, slowdown: Slowdown, tls_mode: ClientTlsMode | None) -> None:
        """Prove clients by other rules from now on; who is proving himself goes on by those that he began with."""
        self._policy = policy
        self._turns.follow(slowdown)
        self._tls_mode = tls_mode

    @property
    def slowed(self) -> int:
        """How many logins had to wait because of earlier failures."""
        return self._turns.slowed

    def look(self, selectors: Selectors, host: str) -> Look:
        """How a connection is looked up: from memory only for a login that has succeeded from there lately."""
        return Look.REMEMBERED if self._turns.is_familiar(self._attempt(selectors, host)) else Look.ANEW

    async def prove(self, io: HandshakeSocket, greeting: Greeting, resolution: Resolution, host: str) -> Proof:
        """Have a client prove who it is; after failures its proof waits before it is looked at, be it right or wrong.

        Else who guesses would know at once which answers are worth waiting for.  `host` is the client's address.
        Raises Failure and PeerGone, as `authenticate` does.
        """
        user = resolution.selectors.user
        attempt = self._attempt(resolution.selectors, host, _target(resolution))
        turn = partial(self._turns.turn, attempt, io.has_left)
        try:
            proof = await authenticate(io, user, resolution, self._policy, channel_of(greeting), turn)
            if not await self._resolver.confirm(resolution, host):
                raise resolution.refusal
        except Failure as failure:
            if failure is resolution.refusal:
                self._resolver.doubt(resolution)
                if resolution.barred and resolution.route is not None:
                    slug = resolution.route.slug
                    log.warning("the tenant's clients may not come from this address", tenant=slug, address=host)
            raise
        self._turns.admitted(attempt)
        return proof

    def _attempt(self, selectors: Selectors, host: str, target: str = "") -> Attempt:
        rules = self._resolver.rules
        try:
            reading = read(selectors, rules)
            tenant, user = reading.spelled, reading.user
        except Failure:
            # Contradictory options, which keep nobody from the console.
            tenant, user = selectors.database or "", selectors.user
        return Attempt.of(tenant, host, user, stem(selectors.user, rules), target)

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


def _target(resolution: Resolution) -> str:
    """Whose password is tried: a login's, or a role's, which may be that of several tenants."""
    login, route = resolution.login, resolution.route
    if login is None:
        return ""
    if login.source is VerifierSource.REGISTRY or route is None or route.server is None:
        return str(login.login_id)
    return f"{route.server.server_id} {login.user}"
