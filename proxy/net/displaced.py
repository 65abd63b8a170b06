"""Sessions that must end because their tenant is not served any more, or has moved to another database."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from proxy.errors import TERMINATED, Failure
from proxy.net.backend_link import BackendLink
from proxy.net.client_link import ClientLink
from proxy.net.hub import Hub, held_back
from proxy.pool.ledger import FLAG_HELD_BACK, PoolLedger
from proxy.pool.tenancy import Target


class DisplacedSessions:
    """Ends sessions, between transactions, that would go on where their tenant is not any more.

    Those are all sessions of a tenant that is not served now, and pinned ones whose backend belongs to a place that the
    tenant has left; other clients find the new place with their next transaction.
    """

    def __init__(self, hub: Hub, clients: Callable[[], Iterable[ClientLink]]) -> None:
        self._hub = hub
        self._clients = clients
        self._tenants: set[int] = set()

    def add(self, tenant_id: int) -> None:
        """Look at the sessions of a tenant whose route has changed, from the next `end` on."""
        self._tenants.add(tenant_id)

    def end(self) -> None:
        """End those that are between transactions; the others are looked at again the next time."""
        left: set[int] = set()
        for client in list(self._clients()) if self._tenants else ():
            tenant_id = client.pool.tenant.tenant_id
            if tenant_id not in self._tenants or client.finishing:
                continue
            failure = why_displaced(client.pool, client.backend)
            if failure is None:
                continue
            if is_between(client):
                self._hub.terminate(client, failure)
            else:
                left.add(tenant_id)
        self._tenants = left


def is_between(client: ClientLink) -> bool:
    """Say whether a client has nothing under way: neither linked within a transaction, nor waiting."""
    if client.finishing:
        return False
    backend = client.backend
    if backend is None:
        return client.waiter is None and not client.held
    return backend.between_transactions() and client.front.left == 0 and not client.held


def why_displaced(pool: PoolLedger, backend: BackendLink | None) -> Failure | None:
    """Say why a client of a pool may not go on where it is, linked to a backend or not; None if it may."""
    if pool.flags & FLAG_HELD_BACK:
        return held_back(pool)
    if backend is None:
        return None
    here, there = backend.entry.target, pool.target
    assert isinstance(here, Target)
    assert isinstance(there, Target)
    if (here.server.server_id, here.database) == (there.server.server_id, there.database):
        return None
    return Failure(TERMINATED, reason=f'tenant "{pool.tenant.slug}" has moved to another database')
