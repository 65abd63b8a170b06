"""The ledger: which backends are held, by whom, in which state, and who waits; no cap is ever exceeded.

Nothing here decides anything (see `allocator`) or touches a socket.  Every change of a backend's state goes through
`move`, which keeps all counts; every client that waits is a `Waiter` in exactly one pool's queue.

A *slot* is the right to hold one backend on one server.  A backend holds its slot from the moment its opening is
planned until its server has closed the connection, so that the counts here are never below what the server counts.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from proxy.pool.counters import Counters
from proxy.pool.time_limits import TimeLimits
from proxy.session.pins import POLICY_PIN
from registry.contract import Route

# The states of a backend.
CONNECTING: Final = 0
IDLE: Final = 1
ACTIVE: Final = 2
RESETTING: Final = 3
"""Running the proxy's own DISCARD ALL before anybody else has it."""
CANCELLING: Final = 4
"""Done with its client, but a cancel request for it is still under way."""
CLOSING: Final = 5
LINGERING: Final = 6
"""Told to close a while ago, and the server has not closed yet."""
GONE: Final = 7

STATE_NAMES: Final = (
    "connecting",
    "idle",
    "active",
    "resetting",
    "cancelling",
    "closing",
    "lingering",
)

# Why a backend may not simply be pushed back on its pool's stack (`BackendEntry.flags`).
FLAG_OBSOLETE: Final = 1
FLAG_DIRTY: Final = 2
FLAG_CANCELLING: Final = 4
FLAG_CLEARS: Final = 8
"""It runs a statement for which the others have to leave a database: see FLAG_LEAVES."""

# Why a pool's moves must be asked of the planner (`PoolLedger.flags`, and `ServerLedger.flags`).
FLAG_WAITERS: Final = 1
FLAG_HELD_BACK: Final = 2
"""The pool is suspended: its clients are refused."""
FLAG_MODE: Final = 4
"""The pool's mode or reset policy asks for more than pushing a backend back."""
FLAG_SIBLING_WAITS: Final = 8
"""Another pool of the same tenant, or another server's pool at the node's cap, waits for a slot."""
FLAG_OVER_CAP: Final = 16
"""More is held than a cap allows that was lowered since."""
FLAG_LEAVES: Final = 32
"""A statement is under way for which nobody may be connected to the pool's database: no backend is kept idle."""

# What a waiter is waiting for; the first is no reason at all.
WAIT_NONE: Final = 0
WAIT_POOL: Final = 1
WAIT_SERVER: Final = 2
WAIT_NODE: Final = 3
WAIT_CONNECT: Final = 4
WAIT_BACKOFF: Final = 5

WAIT_NAMES: Final = (
    "a backend that is being opened",
    "the tenant's pool_size",
    "the server's max_connections",
    "the node's max_backends",
    "the server's limit on opening connections",
    "the server, which refused the last connection",
)

WAITING: Final = 0
GRANTED: Final = 1
ABANDONED: Final = 2


class NodeLedger:
    """All that one node holds."""

    def __init__(self, max_backends: int, max_waiting_connects: int) -> None:
        self.max_backends = max_backends
        self.max_connecting = max_waiting_connects
        self.held = 0
        self.closing = 0
        self.servers: dict[int, ServerLedger] = {}
        self.tenants: dict[int, TenantLedger] = {}
        self.pools: dict[tuple[int, str], PoolLedger] = {}
        self.waiting_pools: dict[PoolLedger, None] = {}

    def refresh_flags(self, tenant: TenantLedger | None = None) -> None:
        """Tell every server's pools, and those of `tenant`, whether another one waits for what their release can give.

        Called when the set of waiting pools changes, with the tenant whose pool it was.
        """
        node_full = self.held >= self.max_backends
        for server in self.servers.values():
            server.flags = FLAG_WAITERS if server.waiting_pools else 0
            if node_full and self.waiting_pools:
                server.flags |= FLAG_SIBLING_WAITS
        if tenant is not None and len(tenant.pools) > 1:
            waits = any(pool.waiting for pool in tenant.pools)
            for pool in tenant.pools:
                pool.flags = (pool.flags | FLAG_SIBLING_WAITS) if waits else (pool.flags & ~FLAG_SIBLING_WAITS)


class ServerLedger:
    """What this node holds on one server."""

    def __init__(self, server_id: int, name: str, max_connections: int) -> None:
        self.server_id = server_id
        self.name = name
        self.max_connections = max_connections
        self.held = 0
        self.connecting = 0
        self.closing = 0
        self.flags = 0
        self.entries: dict[BackendEntry, None] = {}
        self.waiting_pools: dict[PoolLedger, None] = {}
        self.failures = 0
        self.connect_failures = 0
        self.backoff_until = 0.0
        self.last_error = ""


class TenantLedger:
    """What one tenant holds, over all its pools."""

    def __init__(self, tenant_id: int, slug: str) -> None:
        self.tenant_id = tenant_id
        self.slug = slug
        self.pool_size = 1
        self.max_waiting = 0
        self.max_clients = 0
        self.clients = 0
        self.held = 0
        self.waiting = 0
        self.pools: list[PoolLedger] = []
        self.counters = Counters()


class PoolLedger:
    """The backends of one (tenant, role), and the queue of clients that wait for one.

    `obsolete` counts the backends that will be closed instead of given to anybody else, `stale` those of them that are
    not open yet.  `login_refused` says how the server refused the last login, empty unless it did; `awaits_creation`
    that it was for something which does not exist, and may at any moment.  Before `spares_from` none is opened only to
    be there.
    """

    def __init__(self, tenant: TenantLedger, server: ServerLedger, role: str) -> None:
        self.tenant = tenant
        self.server = server
        self.role = role
        self.key: tuple[int, str] = (tenant.tenant_id, role)
        self.generation = 0
        self.min_size = 0
        self.queue_wait_timeout = 0.0
        self.idle_timeout = 0.0
        self.lifetime = 0.0
        self.connect_timeout = 0.0
        self.times = TimeLimits()
        self.reset_always = False
        self.state_policy = POLICY_PIN
        self.flags = 0
        self.idle: list[BackendEntry] = []
        self.held = 0
        self.slow_counts: list[int] = [0] * 7
        self.obsolete = 0
        self.stale = 0
        self.first_waiter: Waiter | None = None
        self.last_waiter: Waiter | None = None
        self.waiting = 0
        self.pinned = 0
        self.failures = 0
        self.backoff_until = 0.0
        self.last_error = ""
        self.login_refused = ""
        self.awaits_creation = False
        self.leaves_until = 0.0
        self.spares_from = 0.0
        self.last_used = 0.0
        self.held_back_route: Route | None = None
        self.counters = tenant.counters
        self.mode = 0
        self.target: object = None
        self.database = ""
        self.startup: tuple[tuple[str, str], ...] = ()

    def count(self, state: int) -> int:
        """Backends in one state.  The active ones are what is left over: the relay's two moves count nothing."""
        if state == IDLE:
            return len(self.idle)
        if state == ACTIVE:
            return self.held - len(self.idle) - sum(self.slow_counts)
        return self.slow_counts[state]

    def useful(self) -> int:
        """Backends that may still come back to a waiter of this pool."""
        return self.held - self.slow_counts[CLOSING] - self.slow_counts[LINGERING] - self.obsolete

    def opening(self) -> int:
        """Backends being opened that will serve a waiter of this pool."""
        return self.slow_counts[CONNECTING] - self.stale


class BackendEntry:
    """One slot and, once it is connected, the backend in it.

    `link` belongs to the net room.
    """

    def __init__(self, pool: PoolLedger, server: ServerLedger, ident: int, now: float) -> None:
        self.pool = pool
        self.server = server
        self.ident = ident
        self.state = CONNECTING
        self.flags = 0
        self.generation = pool.generation
        self.target = pool.target
        self.database = pool.database
        self.opened_at = now
        self.since = now
        self.expires_at = 0.0
        self.cancels = 0
        self.close_reason = ""
        self.link: object = None


class Waiter:
    """A client, or a coroutine, that waits for a backend of one pool.

    `owner` belongs to whoever queued it.
    """

    def __init__(self, pool: PoolLedger, since: float, deadline: float, owner: object) -> None:
        self.pool = pool
        self.since = since
        self.deadline = deadline
        self.owner = owner
        self.state = WAITING
        self.reason = WAIT_NONE
        self.before: Waiter | None = None
        self.behind: Waiter | None = None


def open_entry(node: NodeLedger, pool: PoolLedger, ident: int, now: float) -> BackendEntry:
    """Take a slot on the pool's server for a backend that is about to be opened."""
    entry = BackendEntry(pool, pool.server, ident, now)
    server = pool.server
    node.held += 1
    server.held += 1
    server.connecting += 1
    server.entries[entry] = None
    pool.tenant.held += 1
    pool.held += 1
    pool.slow_counts[CONNECTING] += 1
    return entry


def move(node: NodeLedger, entry: BackendEntry, state: int, now: float) -> None:
    """Bring a backend into another state; the only way to do so, except for the two moves of the relay."""
    old = entry.state
    if old == state:
        return
    if old == GONE:
        raise ValueError("a backend that is gone cannot change its state")
    pool = entry.pool
    server = entry.server
    if entry.flags & FLAG_OBSOLETE:
        _uncount_obsolete(pool, old, state)
    if old != IDLE and old != ACTIVE:
        pool.slow_counts[old] -= 1
    if old == IDLE:
        if pool.idle and pool.idle[-1] is entry:
            pool.idle.pop()
        else:
            pool.idle.remove(entry)
    elif old == CONNECTING:
        server.connecting -= 1
    elif old == CLOSING:
        server.closing -= 1
        node.closing -= 1
    entry.state = state
    entry.since = now
    if state == GONE:
        node.held -= 1
        server.held -= 1
        del server.entries[entry]
        pool.tenant.held -= 1
        pool.held -= 1
        return
    if state != IDLE and state != ACTIVE:
        pool.slow_counts[state] += 1
    if state == IDLE:
        pool.idle.append(entry)
    elif state == CLOSING:
        server.closing += 1
        node.closing += 1


def mark_obsolete(entry: BackendEntry) -> None:
    """Have a backend closed as soon as it is free, whoever waits; the only way to set FLAG_OBSOLETE."""
    if entry.flags & FLAG_OBSOLETE:
        return
    entry.flags |= FLAG_OBSOLETE
    if entry.state < CLOSING:
        entry.pool.obsolete += 1
        if entry.state == CONNECTING:
            entry.pool.stale += 1


def _uncount_obsolete(pool: PoolLedger, old: int, state: int) -> None:
    if old == CONNECTING:
        pool.stale -= 1
    if old < CLOSING <= state:
        pool.obsolete -= 1


def enqueue(node: NodeLedger, waiter: Waiter, reason: int) -> None:
    """Put a waiter at the end of its pool's queue."""
    pool = waiter.pool
    waiter.reason = reason
    last = pool.last_waiter
    waiter.before = last
    if last is None:
        pool.first_waiter = waiter
    else:
        last.behind = waiter
    pool.last_waiter = waiter
    pool.waiting += 1
    pool.tenant.waiting += 1
    if pool.waiting == 1:
        pool.flags |= FLAG_WAITERS
        pool.server.waiting_pools[pool] = None
        node.waiting_pools[pool] = None
        node.refresh_flags(pool.tenant)


def dequeue(node: NodeLedger, waiter: Waiter, state: int) -> None:
    """Take a waiter out of the queue, GRANTED or ABANDONED."""
    if waiter.state != WAITING:
        return
    waiter.state = state
    pool = waiter.pool
    before, behind = waiter.before, waiter.behind
    if before is None:
        pool.first_waiter = behind
    else:
        before.behind = behind
    if behind is None:
        pool.last_waiter = before
    else:
        behind.before = before
    waiter.before = waiter.behind = None
    pool.waiting -= 1
    pool.tenant.waiting -= 1
    if pool.waiting == 0:
        pool.flags &= ~FLAG_WAITERS
        pool.server.waiting_pools.pop(pool, None)
        node.waiting_pools.pop(pool, None)
        node.refresh_flags(pool.tenant)


def waiters_of(pool: PoolLedger) -> list[Waiter]:
    """The queue of a pool, oldest first."""
    waiters: list[Waiter] = []
    waiter = pool.first_waiter
    while waiter is not None:
        waiters.append(waiter)
        waiter = waiter.behind
    return waiters


def repoint(node: NodeLedger, pool: PoolLedger, server: ServerLedger) -> None:
    """Let a pool open its backends on another server from now on; those it has keep their slots where they are."""
    if pool.server is server:
        return
    if pool.waiting:
        pool.server.waiting_pools.pop(pool, None)
        server.waiting_pools[pool] = None
    pool.server = server
    node.refresh_flags()


def check_invariants(node: NodeLedger) -> list[str]:
    """Compare every count with what it counts; the answer is empty when the ledger is sound.  For tests and `SHOW`."""
    wrong: list[str] = []
    if node.held > node.max_backends:
        wrong.append(f"node holds {node.held} of {node.max_backends}")
    held = 0
    for server in node.servers.values():
        held += server.held
        if server.held > server.max_connections:
            wrong.append(f"server {server.name} holds {server.held} of {server.max_connections}")
        if server.held != len(server.entries):
            wrong.append(f"server {server.name} counts {server.held}, has {len(server.entries)}")
        connecting = sum(1 for entry in server.entries if entry.state == CONNECTING)
        closing = sum(1 for entry in server.entries if entry.state == CLOSING)
        if (connecting, closing) != (server.connecting, server.closing):
            wrong.append(f"server {server.name} miscounts connecting or closing")
    if held != node.held:
        wrong.append(f"node counts {node.held}, servers {held}")
    for tenant in node.tenants.values():
        if tenant.held > tenant.pool_size:
            wrong.append(f"tenant {tenant.slug} holds {tenant.held} of {tenant.pool_size}")
        if tenant.held != sum(pool.held for pool in tenant.pools):
            wrong.append(f"tenant {tenant.slug} counts {tenant.held} otherwise than its pools")
        if tenant.waiting != sum(pool.waiting for pool in tenant.pools):
            wrong.append(f"tenant {tenant.slug} miscounts its waiters")
        for pool in tenant.pools:
            wrong.extend(_check_pool(node, pool))
    return wrong


def _check_pool(node: NodeLedger, pool: PoolLedger) -> list[str]:
    name = f"pool {pool.tenant.slug}/{pool.role}"
    wrong: list[str] = []
    if pool.count(ACTIVE) < 0 or min(pool.slow_counts) < 0:
        wrong.append(f"{name} has a negative count")
    obsolete = [
        entry.state
        for server in node.servers.values()
        for entry in server.entries
        if entry.pool is pool and entry.state < CLOSING and entry.flags & FLAG_OBSOLETE
    ]
    if (pool.obsolete, pool.stale) != (len(obsolete), obsolete.count(CONNECTING)):
        wrong.append(f"{name} counts {pool.obsolete} obsolete ({pool.stale} not open), has {obsolete}")
    if any(entry.state != IDLE for entry in pool.idle):
        wrong.append(f"{name} stacks a backend that is not idle")
    live = len(waiters_of(pool))
    if live != pool.waiting:
        wrong.append(f"{name} counts {pool.waiting} waiting, queues {live}")
    if bool(pool.flags & FLAG_WAITERS) != bool(pool.waiting):
        wrong.append(f"{name} flags its waiters wrongly")
    if bool(pool.waiting) != (pool in pool.server.waiting_pools):
        wrong.append(f"{name} is listed wrongly among the waiting")
    return wrong
