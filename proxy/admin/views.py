"""The tables of what changes all the time: clients, backends, pools, tenants, counters.

Each view is a generator that looks at one thing at a time, so that it can be paused between any two rows: keys are
listed first, and what has gone meanwhile is left out.  It yields None where it has looked without finding a row.  The
columns are those of `catalogue`, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from proxy.admin.node import Moment, NodeView
from proxy.admin.tables import Row
from proxy.net.backend_link import BackendLink
from proxy.net.client_link import ClientLink
from proxy.net.hub import held_back
from proxy.net.pipe_link import PipeClient
from proxy.net.sessions import ClientInfo
from proxy.pool.counters import Counters
from proxy.pool.ledger import (
    ACTIVE,
    CANCELLING,
    CLOSING,
    CONNECTING,
    FLAG_HELD_BACK,
    FLAG_OBSOLETE,
    GONE,
    IDLE,
    LINGERING,
    RESETTING,
    STATE_NAMES,
    WAIT_NAMES,
    BackendEntry,
    PoolLedger,
    ServerLedger,
    TenantLedger,
)
from proxy.pool.tenancy import MODES, Target
from proxy.wire.framing import STATUS_FAILED, STATUS_IDLE, STATUS_TRANSACTION

View: TypeAlias = Callable[[NodeView, Moment, tuple[str, ...]], Iterator[Row | None]]

MODE_NAMES: Final = MappingProxyType({number: mode.value for mode, number in MODES.items()})
REPLICATION: Final = "replication"
STATUS_NAMES: Final = MappingProxyType({STATUS_IDLE: "idle", STATUS_TRANSACTION: "open", STATUS_FAILED: "failed"})


def clients(node: NodeView, moment: Moment, arguments: tuple[str, ...]) -> Iterator[Row | None]:
    """SHOW CLIENTS."""
    for ident in list(node.clients):
        client = node.clients.get(ident)
        if client is None or not _is_asked(client.pool.tenant, arguments):
            yield None
        else:
            yield _client(client, moment)


def backends(node: NodeView, moment: Moment, arguments: tuple[str, ...]) -> Iterator[Row | None]:
    """SHOW SERVERS."""
    for server in list(node.ledger.servers.values()):
        for entry in list(server.entries):
            if entry.state == GONE or not _is_asked(entry.pool.tenant, arguments):
                yield None
            else:
                yield _backend(entry, moment)


def pools(node: NodeView, moment: Moment, arguments: tuple[str, ...]) -> Iterator[Row | None]:
    """SHOW POOLS."""
    for key in list(node.ledger.pools):
        pool = node.ledger.pools.get(key)
        if pool is None or not _is_asked(pool.tenant, arguments):
            yield None
        else:
            yield _pool(pool, moment)


def tenants(node: NodeView, moment: Moment, arguments: tuple[str, ...]) -> Iterator[Row | None]:
    """SHOW TENANTS."""
    del moment
    for tenant_id in list(node.ledger.tenants):
        tenant = node.ledger.tenants.get(tenant_id)
        if tenant is None or not _is_asked(tenant, arguments):
            yield None
        else:
            yield _tenant(node, tenant)


def stats(node: NodeView, moment: Moment, arguments: tuple[str, ...]) -> Iterator[Row | None]:
    """SHOW STATS."""
    del moment
    tenancy = node.tenancy
    for tenant_id in list(tenancy.counters):
        slug = tenancy.slugs.get(tenant_id, str(tenant_id))
        if arguments and slug != arguments[0]:
            yield None
        else:
            yield (slug, *_counters(tenancy.counters[tenant_id]))


def totals(node: NodeView, moment: Moment, arguments: tuple[str, ...]) -> Iterator[Row | None]:
    """SHOW TOTALS."""
    del moment, arguments
    sums = list(_counters(Counters()))
    for tenant_id in list(node.tenancy.counters):
        sums = [so_far + one for so_far, one in zip(sums, _counters(node.tenancy.counters[tenant_id]), strict=True)]
        yield None
    yield tuple(sums)


def slots(node: NodeView, moment: Moment, arguments: tuple[str, ...]) -> Iterator[Row | None]:
    """SHOW SLOTS."""
    del arguments
    for server in list(node.ledger.servers.values()):
        yield _slots(server, moment)


def lists(node: NodeView, moment: Moment, arguments: tuple[str, ...]) -> Iterator[Row | None]:
    """SHOW LISTS."""
    del moment, arguments
    ledger = node.ledger
    pinned = 0
    by_state = [0] * len(STATE_NAMES)
    for key in list(ledger.pools):
        pool = ledger.pools.get(key)
        if pool is not None:
            pinned += pool.pinned
            by_state = [count + pool.count(state) for state, count in enumerate(by_state)]
        yield None
    yield "tenants", len(ledger.tenants)
    yield "servers", len(ledger.servers)
    yield "pools", len(ledger.pools)
    yield "clients", len(node.clients)
    yield "clients_waiting", sum(pool.waiting for pool in ledger.waiting_pools)
    yield "clients_pinned", pinned
    yield "backends", ledger.held
    for name, count in zip(STATE_NAMES, by_state, strict=True):
        yield f"backends_{name}", count
    for name, count in node.resolver.status().cached.items():
        yield f"cached_{name}", count


def _is_asked(tenant: TenantLedger, arguments: tuple[str, ...]) -> bool:
    return not arguments or tenant.slug == arguments[0]


def _client(client: ClientLink, moment: Moment) -> Row:
    info, pool, backend, waiter = client.info, client.pool, client.backend, client.waiter
    assert isinstance(info, ClientInfo), "whoever is among the clients has logged in"
    address, _, port = info.address.rpartition(":")
    return (
        pool.tenant.slug,
        info.user,
        address,
        int(port),
        _client_state(client),
        ", ".join(client.pin_names()) if backend is not None else "",
        "" if backend is None else _status(backend),
        None if backend is None else backend.entry.ident,
        None if backend is None else moment.since(client.linked_at),
        None if waiter is None else moment.since(waiter.since),
        "" if waiter is None else WAIT_NAMES[waiter.reason],
        REPLICATION if isinstance(client, PipeClient) else MODE_NAMES[client.mode],
        pool.role,
        pool.server.name,
        _database(pool.target),
        _application(client),
        moment.day(info.since),
        "yes" if info.tls else "no",
        info.key.pid,
    )


def _application(client: ClientLink) -> str:
    """The name that a client goes by: while it keeps its backend, only that knows of changes."""
    if client.backend is not None and client.front.pins:
        return client.backend.state.params.get(b"application_name", b"").decode("utf-8", "replace")
    own = client.parameters.values.get(b"application_name")
    return "" if own is None else own[1].decode("utf-8", "replace")


def _client_state(client: ClientLink) -> str:
    if client.finishing:
        return "closing"
    if client.waiter is not None:
        return "waiting"
    return "idle" if client.backend is None else "active"


def _status(backend: BackendLink) -> str:
    """What a backend last said of its transaction; of replication nobody follows what is said."""
    if isinstance(backend.client, PipeClient):
        return ""
    return STATUS_NAMES.get(backend.state.status, "")


def _backend(entry: BackendEntry, moment: Moment) -> Row:
    link = entry.link if isinstance(entry.link, BackendLink) else None
    client = None if link is None else link.client
    info = None if client is None else client.info
    since = entry.since if client is None or entry.state != ACTIVE else client.linked_at
    return (
        entry.ident,
        entry.server.name,
        entry.pool.tenant.slug,
        _database(entry.target),
        entry.target.credentials.user if isinstance(entry.target, Target) else entry.pool.role,
        STATE_NAMES[entry.state],
        moment.since(since),
        None if link is None else link.pid,
        info.key.pid if isinstance(info, ClientInfo) else None,
        "" if client is None else ", ".join(client.pin_names()),
        "yes" if entry.flags & FLAG_OBSOLETE else "no",
        moment.day(entry.opened_at),
        entry.close_reason,
    )


def _pool(pool: PoolLedger, moment: Moment) -> Row:
    first = pool.first_waiter
    waited = 0.0 if first is None else max(0.0, moment.now - first.since)
    return (
        pool.tenant.slug,
        _database(pool.target),
        pool.role,
        pool.server.name,
        REPLICATION if pool.startup else MODE_NAMES[pool.mode],
        pool.count(ACTIVE),
        pool.waiting,
        pool.pinned,
        pool.count(ACTIVE),
        pool.count(IDLE),
        pool.count(CONNECTING),
        pool.count(RESETTING),
        pool.count(CANCELLING),
        pool.count(CLOSING) + pool.count(LINGERING),
        int(waited),
        int(waited % 1.0 * 1e6),
        pool.tenant.pool_size,
        pool.min_size,
        held_back(pool).spec.name if pool.flags & FLAG_HELD_BACK else "",
        pool.last_error,
    )


def _tenant(node: NodeView, tenant: TenantLedger) -> Row:
    route = node.resolver.current(tenant.tenant_id)
    return (
        tenant.slug,
        tenant.tenant_id,
        None if route is None else route.state.value,
        None if route is None or route.server is None else route.server.name,
        None if route is None else route.database_name,
        None if route is None else route.generation,
        tenant.clients,
        tenant.max_clients,
        tenant.waiting,
        tenant.max_waiting,
        tenant.held,
        tenant.pool_size,
        sum(pool.pinned for pool in tenant.pools),
        len(tenant.pools),
    )


def _counters(counters: Counters) -> tuple[int, ...]:
    return (
        counters.transactions,
        counters.queries,
        counters.bytes_from_clients,
        counters.bytes_to_clients,
        counters.transaction_times.total_microseconds,
        counters.waits.total_microseconds,
        counters.prepared_again,
        sum(counters.errors.values()),
    )


def _slots(server: ServerLedger, moment: Moment) -> Row:
    return (
        server.name,
        server.held,
        server.max_connections,
        server.connecting,
        server.closing,
        sum(pool.waiting for pool in server.waiting_pools),
        server.connect_failures,
        round(max(0.0, server.backoff_until - moment.now), 3),
        server.last_error,
    )


def _database(target: object) -> str | None:
    return target.database if isinstance(target, Target) else None


VIEWS: Final[Mapping[str, View]] = MappingProxyType(
    {
        "CLIENTS": clients,
        "SERVERS": backends,
        "POOLS": pools,
        "TENANTS": tenants,
        "STATS": stats,
        "TOTALS": totals,
        "SLOTS": slots,
        "LISTS": lists,
    }
)
