"""The policy: who gets a backend, who waits, which backend is opened or closed.  Pure; the driver carries it out.

Each `plan_*` function reads the ledger and the clock and answers with one `Operation`.  Whoever carries an operation
out changes the ledger and asks again until the answer is NOTHING.  So every plan is made of true counts, and a
simulation can check the invariants after every step.

The rules, in short: below its caps a pool opens freely; at a server's cap the longest idle backend of any other pool
is closed for it; on release a backend goes to the oldest waiter of its own pool, except that a waiter of another
tenant which has waited longer, and at least `foreign_wait` seconds, gets the slot.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from proxy.pool.ledger import CLOSING as CLOSING_STATE
from proxy.pool.ledger import (
    FLAG_DIRTY,
    FLAG_HELD_BACK,
    FLAG_LEAVES,
    FLAG_OBSOLETE,
    IDLE,
    LINGERING,
    WAIT_BACKOFF,
    WAIT_CONNECT,
    WAIT_NODE,
    WAIT_NONE,
    WAIT_POOL,
    WAIT_SERVER,
    BackendEntry,
    NodeLedger,
    PoolLedger,
    Waiter,
)

# What to do.
NOTHING: Final = 0
GRANT: Final = 1
QUEUE: Final = 2
REFUSE: Final = 3
OPEN: Final = 4
CLOSE: Final = 5
PARK: Final = 6
RESET: Final = 7

# Why a request is refused.
REFUSED_HELD_BACK: Final = 1
REFUSED_QUEUE_FULL: Final = 2
REFUSED_SERVER_DOWN: Final = 3
REFUSED_TIMEOUT: Final = 4


class Operation:
    """One thing to do.  `entry`, `pool` and `waiter` are set as the kind needs; `reason` says why."""

    def __init__(
        self,
        kind: int,
        entry: BackendEntry | None = None,
        pool: PoolLedger | None = None,
        waiter: Waiter | None = None,
        reason: int = 0,
        text: str = "",
    ) -> None:
        self.kind = kind
        self.entry = entry
        self.pool = pool
        self.waiter = waiter
        self.reason = reason
        self.text = text


def why_not_open(node: NodeLedger, pool: PoolLedger, now: float) -> int:
    """Say which cap or condition keeps this pool from opening one more backend now; WAIT_NONE if none does."""
    server = pool.server
    if pool.tenant.held >= pool.tenant.pool_size:
        return WAIT_POOL
    if server.backoff_until > now or pool.backoff_until > now:
        return WAIT_BACKOFF
    if server.held >= server.max_connections:
        return WAIT_SERVER
    if node.held >= node.max_backends:
        return WAIT_NODE
    if server.connecting >= node.max_connecting:
        return WAIT_CONNECT
    return WAIT_NONE


def plan_acquire(node: NodeLedger, pool: PoolLedger, now: float) -> Operation:
    """A client asks for a backend: GRANT its pool's newest idle one, REFUSE, or QUEUE (then ask `plan_growth`)."""
    if pool.flags & FLAG_HELD_BACK:
        return Operation(REFUSE, pool=pool, reason=REFUSED_HELD_BACK)
    if pool.idle and not pool.waiting:
        return Operation(GRANT, entry=pool.idle[-1], pool=pool)
    if waits_in_vain(pool, now):
        return Operation(REFUSE, pool=pool, reason=REFUSED_SERVER_DOWN)
    if pool.tenant.waiting >= pool.tenant.max_waiting:
        return Operation(REFUSE, pool=pool, reason=REFUSED_QUEUE_FULL)
    return Operation(QUEUE, pool=pool, reason=why_not_open(node, pool, now))


def waits_in_vain(pool: PoolLedger, now: float) -> bool:
    """Say whether a pool has no backend that may come back and, as its server failed, opens none for a while.

    A back-off because something does not exist is short, and waited out: it may exist by now.
    """
    if pool.useful() > 0:
        return False
    return pool.server.backoff_until > now or (pool.backoff_until > now and not pool.awaits_creation)


def plan_growth(node: NodeLedger, pool: PoolLedger, now: float) -> Operation:
    """A pool has waiters: OPEN a backend, CLOSE an idle one of another pool to make room, REFUSE them, or NOTHING."""
    if pool.waiting > 0 and pool.idle:
        return Operation(GRANT, entry=pool.idle[-1], pool=pool, waiter=oldest_waiter(pool))
    if pool.waiting <= pool.opening():
        return Operation(NOTHING)
    if waits_in_vain(pool, now):
        return Operation(REFUSE, pool=pool, reason=REFUSED_SERVER_DOWN)
    reason = why_not_open(node, pool, now)
    oldest = oldest_waiter(pool)
    if oldest is not None:
        oldest.reason = reason
    if reason == WAIT_NONE:
        return Operation(OPEN, pool=pool)
    if reason == WAIT_POOL:
        victim = _idle_sibling(pool)
    elif reason == WAIT_SERVER:
        victim = _idle_on_server(pool)
    elif reason == WAIT_NODE:
        victim = _idle_on_node(node, pool)
    else:
        victim = None
    if victim is not None:
        return Operation(
            CLOSE,
            entry=victim,
            pool=pool,
            text="its slot is needed by a waiting client",
        )
    return Operation(NOTHING)


def plan_release(node: NodeLedger, entry: BackendEntry, now: float, foreign_wait: float) -> Operation:
    """A backend is free: CLOSE, RESET or PARK it, or GRANT it to a waiter of its pool."""
    if entry.flags & FLAG_OBSOLETE:
        return Operation(CLOSE, entry=entry, text="obsolete")
    if over_cap(node, entry):
        return Operation(CLOSE, entry=entry, text="a cap was lowered")
    pool = entry.pool
    if pool.flags & FLAG_HELD_BACK:
        return Operation(CLOSE, entry=entry, text="its tenant is not served now")
    if entry.flags & FLAG_DIRTY:
        return Operation(RESET, entry=entry)
    own = oldest_waiter(pool)
    foreign = _oldest_foreign_waiter(node, entry, now, foreign_wait)
    if foreign is not None and (own is None or foreign.since < own.since):
        return Operation(
            CLOSE,
            entry=entry,
            waiter=foreign,
            text="its slot is needed by a waiting client",
        )
    if own is not None:
        return Operation(GRANT, entry=entry, pool=pool, waiter=own)
    if pool.flags & FLAG_LEAVES:
        return Operation(CLOSE, entry=entry, text="its database is to be left")
    return Operation(PARK, entry=entry)


def over_cap(node: NodeLedger, entry: BackendEntry) -> bool:
    """Say whether more is held than a cap allows that was lowered since, not counting what is closing already."""
    tenant, server = entry.pool.tenant, entry.server
    if tenant.held > tenant.pool_size:
        closing = 0
        for pool in tenant.pools:
            closing += pool.count(CLOSING_STATE) + pool.count(LINGERING)
        if tenant.held - closing > tenant.pool_size:
            return True
    if server.held - server.closing > server.max_connections:
        return True
    return node.held - node.closing > node.max_backends


def oldest_waiter(pool: PoolLedger) -> Waiter | None:
    """The waiter at the head of a pool's queue."""
    return pool.first_waiter


def plan_timeouts(pool: PoolLedger, now: float) -> Operation:
    """REFUSE the oldest waiter whose time is over; queues are first in, first out, so it is at the head."""
    waiter = oldest_waiter(pool)
    if waiter is not None and waiter.deadline <= now:
        return Operation(REFUSE, pool=pool, waiter=waiter, reason=REFUSED_TIMEOUT)
    return Operation(NOTHING)


def plan_upkeep(node: NodeLedger, pool: PoolLedger, now: float) -> Operation:
    """CLOSE an idle backend that is obsolete, too old or idle for too long, or OPEN one up to `min_pool_size`."""
    count = len(pool.idle)
    for entry in pool.idle:
        if entry.flags & FLAG_OBSOLETE:
            return Operation(CLOSE, entry=entry, text="obsolete")
        if over_cap(node, entry):
            return Operation(CLOSE, entry=entry, text="a cap was lowered")
        if entry.expires_at and entry.expires_at <= now:
            return Operation(CLOSE, entry=entry, text="server_lifetime is over")
        if (
            pool.idle_timeout
            and entry.since + pool.idle_timeout <= now
            and (count > 0 and pool.useful() > pool.min_size)
        ):
            return Operation(CLOSE, entry=entry, text="server_idle_timeout is over")
    if (
        pool.useful() < pool.min_size
        and not pool.flags & (FLAG_HELD_BACK | FLAG_LEAVES)
        and pool.spares_from <= now
        and (why_not_open(node, pool, now) == WAIT_NONE)
    ):
        return Operation(OPEN, pool=pool)
    return Operation(NOTHING)


def _oldest_foreign_waiter(node: NodeLedger, entry: BackendEntry, now: float, foreign_wait: float) -> Waiter | None:
    """The oldest waiter of another pool that only this backend's slot can help, and that has waited long enough."""
    server = entry.server
    if len(node.waiting_pools) == 0 or (len(node.waiting_pools) == 1 and entry.pool.waiting):
        return None
    best: Waiter | None = None
    if server.held >= server.max_connections:
        for pool in server.waiting_pools:
            if pool is not entry.pool:
                best = _older(best, pool, entry, now, foreign_wait)
    elif node.held >= node.max_backends:
        for pool in node.waiting_pools:
            if pool is not entry.pool:
                best = _older(best, pool, entry, now, foreign_wait)
    tenant = entry.pool.tenant
    if len(tenant.pools) > 1 and tenant.held >= tenant.pool_size:
        for pool in tenant.pools:
            if pool is not entry.pool and pool.waiting:
                best = _older(best, pool, entry, now, foreign_wait)
    return best


def _older(
    best: Waiter | None, pool: PoolLedger, entry: BackendEntry, now: float, foreign_wait: float
) -> Waiter | None:
    waiter = oldest_waiter(pool)
    if waiter is None or waiter.since > now - foreign_wait or pool.flags & FLAG_HELD_BACK:
        return best
    if pool.backoff_until > now or pool.server.backoff_until > now:
        return best
    if pool.waiting <= pool.opening() + entry.server.closing:
        return best
    tenant = pool.tenant
    if tenant.held >= tenant.pool_size and tenant is not entry.pool.tenant:
        return best
    if best is None or waiter.since < best.since:
        return waiter
    return best


def _idle_sibling(pool: PoolLedger) -> BackendEntry | None:
    """The longest idle backend of the same tenant under another role."""
    best: BackendEntry | None = None
    closing = 0
    for sibling in pool.tenant.pools:
        closing += sibling.count(CLOSING_STATE)
    if closing >= pool.waiting - pool.opening():
        return None
    for sibling in pool.tenant.pools:
        if sibling is not pool and sibling.idle and not sibling.waiting:
            entry = sibling.idle[0]
            if best is None or entry.since < best.since:
                best = entry
    return best


def _idle_on_server(pool: PoolLedger) -> BackendEntry | None:
    """The longest idle backend of another pool on this server, unless enough are closing already."""
    server = pool.server
    if server.closing >= pool.waiting - pool.opening():
        return None
    return _longest_idle(list(server.entries), pool)


def _idle_on_node(node: NodeLedger, pool: PoolLedger) -> BackendEntry | None:
    if node.closing >= pool.waiting - pool.opening():
        return None
    best: BackendEntry | None = None
    for server in node.servers.values():
        entry = _longest_idle(list(server.entries), pool)
        if entry is not None and (best is None or entry.since < best.since):
            best = entry
    return best


def _longest_idle(entries: list[BackendEntry], pool: PoolLedger) -> BackendEntry | None:
    best: BackendEntry | None = None
    for entry in entries:
        if entry.state == IDLE and entry.pool is not pool and (best is None or entry.since < best.since):
            best = entry
    return best
