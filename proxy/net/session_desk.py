"""What a session's login needs of a server: how it spells the client's settings, or, with `real_pids`, a backend."""

from __future__ import annotations

import asyncio

from proxy.errors import BACKEND_LOST, TERMINATED, Failure
from proxy.net.backend_link import BackendLink
from proxy.net.client_link import ClientLink
from proxy.net.displaced import why_displaced
from proxy.net.failures import as_fatal
from proxy.net.handshake_io import HandshakeSocket, PeerGone
from proxy.net.hub import KEY_REFUSED, Hub
from proxy.net.probe import Claim, Probe
from proxy.net.statuses import StatusCache, encode_statuses
from proxy.pool.ledger import PoolLedger, Waiter
from proxy.pool.pool import NEVER
from proxy.routing.lookups import SingleFlight
from proxy.routing.resolution import Resolution
from proxy.session.parameters import ParameterSet
from proxy.wire.reports import ErrorResponse


class SettingsRefused(Exception):
    """PostgreSQL refused a client's startup parameters; `message` is its ErrorResponse, as FATAL."""

    def __init__(self, message: ErrorResponse) -> None:
        super().__init__(message.message)
        self.message = message


class SessionDesk:
    """Asks servers on behalf of logins.

    Where a server does not take a password that it took a moment ago, its change is what the client is told.
    """

    def __init__(self, hub: Hub, statuses: StatusCache) -> None:
        self._hub = hub
        self._statuses = statuses
        self._flights = SingleFlight()

    async def close(self) -> None:
        """Stop the probes that are under way."""
        await self._flights.close()

    async def statuses(self, pool: PoolLedger, parameters: ParameterSet, resolution: Resolution) -> bytes:
        """What the client is told of the server's parameters; a backend is needed only for what is not yet known.

        Raises Failure and SettingsRefused.
        """
        known = self._statuses.get(pool, parameters)
        if known is not None:
            return known
        key = (pool, pool.generation, parameters)
        try:
            return await self._flights.run(key, lambda: self._probe(pool, parameters))
        except Failure as failure:
            raise _as_told(failure, pool, resolution) from None

    async def claim(
        self, io: HandshakeSocket, pool: PoolLedger, parameters: ParameterSet, resolution: Resolution
    ) -> Claim:
        """Wait for a backend with the client's settings, for the client alone.

        Raises Failure and SettingsRefused, and PeerGone as soon as the client leaves.  Whoever gets the claim hands it
        to `seat`, or calls `give_up`.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        claim = Claim(parameters, future)
        waiter = self._queue(pool, claim)
        try:
            await _unless_left(io, future)
        except BaseException:
            self._hub.driver.abandon(waiter)
            self.give_up(claim)
            raise
        if claim.failure is not None:
            raise _as_told(claim.failure, pool, resolution)
        if claim.error:
            raise SettingsRefused(as_fatal(claim.error))
        return claim

    def give_up(self, claim: Claim) -> None:
        """Give the backend of a client back that has not come."""
        self._hub.give_up(claim)

    def check(self, claim: Claim, pool: PoolLedger) -> BackendLink:
        """Return the backend; raises Failure where it was lost, or its tenant is elsewhere by now or not served."""
        if claim.backend is None:
            raise Failure(BACKEND_LOST)
        failure = why_displaced(pool, claim.backend)
        if failure is not None:
            raise failure
        return claim.backend

    def seat(self, client: ClientLink, claim: Claim) -> None:
        """Link a client to its backend, and tell it what the server has reported since; both are the selector's."""
        backend = claim.backend
        assert backend is not None
        backend.task = None
        told = claim.statuses
        news = {name: value for name, value in backend.state.params.items() if told.get(name) != value}
        client.granted(backend)
        if news:
            client.write(encode_statuses(news))

    async def _probe(self, pool: PoolLedger, parameters: ParameterSet) -> bytes:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        probe = Probe(parameters, future)
        generation = pool.generation
        waiter = self._queue(pool, probe)
        try:
            await future
        finally:
            # A backend that was granted meanwhile gives itself back when it has answered.
            self._hub.driver.abandon(waiter)
        if probe.failure is not None:
            raise probe.failure
        if probe.error:
            raise SettingsRefused(as_fatal(probe.error))
        return self._statuses.put(pool, generation, parameters, probe.statuses)

    def _queue(self, pool: PoolLedger, probe: Probe) -> Waiter:
        now = self._hub.selector.now
        waiter = Waiter(pool, now, now + pool.queue_wait_timeout if pool.queue_wait_timeout else NEVER, probe)
        self._hub.driver.request(waiter, now)
        return waiter


def _as_told(failure: Failure, pool: PoolLedger, resolution: Resolution) -> Failure:
    changed = failure.spec is TERMINATED and pool.login_refused == KEY_REFUSED
    return resolution.refusal if changed else failure


async def _unless_left(io: HandshakeSocket, future: asyncio.Future[None]) -> None:
    """Wait for a future; raises PeerGone as soon as the peer has left."""
    watch = asyncio.create_task(io.until_left())
    try:
        await asyncio.wait((future, watch), return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            raise PeerGone("the connection was closed")
    finally:
        watch.cancel()
        # The socket is free for others only then.
        await asyncio.wait((watch,))
