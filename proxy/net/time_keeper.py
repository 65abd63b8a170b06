"""Keeps the time limits of sessions: sees what they are doing, and ends what has lasted too long.

A sweep looks at every session that holds a backend of a pool with limits, and at `CLIENTS_PER_SWEEP` of all clients:
the work of one sweep is bounded by the backends of the node and that number, and there is none where no limit is set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

import structlog

from proxy.errors import (
    CLIENT_IDLE_TIMEOUT,
    IDLE_TRANSACTION_TIMEOUT,
    QUERY_TIMEOUT,
    TRANSACTION_TIMEOUT,
    ErrorSpec,
    Failure,
)
from proxy.net.backend_link import BackendLink
from proxy.net.client_link import ClientLink
from proxy.net.dialer import Dialer, serving
from proxy.net.failures import warning
from proxy.net.hub import Hub
from proxy.net.pipe_link import PipeClient
from proxy.pool.ledger import ACTIVE, BackendEntry
from proxy.pool.time_limits import (
    CANCEL_QUERY,
    END_IDLE_CLIENT,
    END_IDLE_TRANSACTION,
    END_QUERY,
    END_TRANSACTION,
    PAUSED,
    RESTING,
    RUNNING,
    Watch,
    plan_limit,
)
from proxy.session.pins import PIN_LISTEN

log = structlog.get_logger(__name__)

CLIENTS_PER_SWEEP: Final = 500


class TimeKeeper:
    """Keeps the time limits of one node's sessions.

    `clients` are all there are; `spawn` starts a coroutine as a task that the node owns.
    """

    def __init__(
        self,
        hub: Hub,
        dialer: Dialer,
        clients: Callable[[], Collection[ClientLink]],
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._hub = hub
        self._dialer = dialer
        self._clients = clients
        self._spawn = spawn
        self._busy: dict[BackendEntry, Watch] = {}
        self._idle: dict[ClientLink, Watch] = {}
        self._round: list[ClientLink] = []
        self._seen: dict[ClientLink, Watch] = {}

    def sweep(self, now: float) -> None:
        """Look at the sessions; `now` is monotonic, in seconds."""
        self._sweep_backends(now)
        self._sweep_clients(now)

    def _sweep_backends(self, now: float) -> None:
        before, self._busy = self._busy, {}
        if not any(pool.times.limit_backends() for pool in self._hub.node.pools.values()):
            return
        for server in self._hub.node.servers.values():
            for entry in list(server.entries):
                link = entry.link
                if entry.state != ACTIVE or not entry.pool.times.limit_backends() or not isinstance(link, BackendLink):
                    continue
                client = link.client
                if client is None or client.finishing or isinstance(client, PipeClient):
                    continue
                watch = before.get(entry)
                if watch is None or watch.owner is not client:
                    watch = Watch(client, now)
                self._busy[entry] = watch
                try:
                    watch.look(doing(client, link), link.state.readies, link.state.idles, now)
                    self._act(watch, client, link, now)
                except Exception as error:  # noqa: BLE001 - one session's fault must not end the sweeps for all
                    client.contain(error)

    def _sweep_clients(self, now: float) -> None:
        """Look at the next few clients; after the last one of a round those that are there then have their turns."""
        if not self._round:
            self._idle, self._seen = self._seen, {}
            if not any(pool.times.client_idle for pool in self._hub.node.pools.values()):
                return
            self._round = list(self._clients())
        turn = self._round[-CLIENTS_PER_SWEEP:]
        del self._round[-CLIENTS_PER_SWEEP:]
        for client in turn:
            try:
                self._look_at_idle(client, now)
            except Exception as error:  # noqa: BLE001 - as above
                client.contain(error)

    def _look_at_idle(self, client: ClientLink, now: float) -> None:
        limits = client.pool.times
        if limits.client_idle <= 0.0 or not is_resting(client):
            return
        watch = self._idle.get(client) or Watch(client, now)
        self._seen[client] = watch
        backend = client.backend
        watch.look(RESTING, int(client.linked_at * 1e6), 0 if backend is None else backend.state.readies, now)
        if plan_limit(watch, limits, now) == END_IDLE_CLIENT:
            self._end(client, CLIENT_IDLE_TIMEOUT, limits.client_idle)

    def _act(self, watch: Watch, client: ClientLink, backend: BackendLink, now: float) -> None:
        limits = client.pool.times
        due = plan_limit(watch, limits, now)
        if due == CANCEL_QUERY:
            watch.cancelled_at = now
            if backend.state.swallowing_own:
                self._end(client, QUERY_TIMEOUT, limits.query)
            else:
                self._spawn(self._cancel(watch, client, backend, limits.query))
        elif due == END_QUERY:
            self._end(client, QUERY_TIMEOUT, limits.query, counted=watch.cancel_sent)
        elif due == END_TRANSACTION:
            self._end(client, TRANSACTION_TIMEOUT, limits.transaction)
        elif due == END_IDLE_TRANSACTION:
            self._end(client, IDLE_TRANSACTION_TIMEOUT, limits.idle_transaction)

    async def _cancel(self, watch: Watch, client: ClientLink, backend: BackendLink, seconds: float) -> None:
        """Ask the server to cancel a request, if it is still at it when that can be asked.

        The error is the server's own, in its place among the replies; a warning before it says whose doing it is.
        """
        # The request that was seen, which may be over before this coroutine begins, and the next one under way.
        entry, readies = backend.entry, watch.request

        def is_wanted() -> bool:
            if not serving(entry, client, readies):
                return False
            failure = Failure(QUERY_TIMEOUT, seconds=seconds, tenant=client.pool.tenant.slug)
            watch.cancel_sent = True
            self._hub.count_timeout(QUERY_TIMEOUT.name)
            log.info("request cancelled", tenant=client.pool.tenant.slug, reason=failure.message)
            if backend.state.left == 0 and not backend.state.swallowing:
                client.write(warning(failure))
            return True

        await self._dialer.cancel(entry, is_wanted)

    def _end(self, client: ClientLink, spec: ErrorSpec, seconds: float, *, counted: bool = False) -> None:
        """End a session; a backend that is not between transactions is cancelled and closed with it."""
        failure = Failure(spec, closing=True, seconds=seconds, tenant=client.pool.tenant.slug)
        if not counted:
            self._hub.count_timeout(spec.name)
        client.pool.counters.count_error(failure.sqlstate)
        self._hub.terminate(client, failure)


def doing(client: ClientLink, backend: BackendLink) -> int:
    """Say what a session that holds a backend is doing."""
    if backend.state.owes():
        return RUNNING
    return RESTING if backend.between_transactions() and client.front.left == 0 else PAUSED


def is_resting(client: ClientLink) -> bool:
    """Say whether a client counts as idle: who listens is silent by trade, and so is who replicates."""
    if client.finishing or client.waiter is not None or isinstance(client, PipeClient):
        return False
    backend = client.backend
    if backend is None:
        return True
    return not (client.front.pins | backend.state.pins) & PIN_LISTEN and doing(client, backend) == RESTING
