"""Brings routes into the ledger: pools appear with their first client, follow their route, and go when they are cold.

The ledger knows numbers, not routes.  `Tenancy` keeps the two in step: what a change of a route means for limits,
generation, server and service is decided here, and carried out by the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from proxy.pool.counters import Counters
from proxy.pool.ledger import (
    FLAG_HELD_BACK,
    FLAG_MODE,
    FLAG_SIBLING_WAITS,
    NodeLedger,
    PoolLedger,
    ServerLedger,
    TenantLedger,
    repoint,
)
from proxy.pool.pool import PoolDriver
from proxy.pool.time_limits import TimeLimits
from proxy.session.pins import POLICY_ALLOW, POLICY_PIN, POLICY_REJECT
from registry.contract import (
    Credentials,
    Limits,
    PoolMode,
    ResetPolicy,
    Route,
    ServerInfo,
    SessionStatePolicy,
)

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Defaults:
    """The node's limits for tenants that have none of their own; times in seconds, 0 is no limit."""

    pool_size: int = 20
    min_pool_size: int = 0
    max_clients: int = 1000
    max_waiting: int = 1000
    queue_wait_timeout: float = 120.0
    server_idle_timeout: float = 600.0
    server_lifetime: float = 3600.0
    query_timeout: float = 0.0
    transaction_timeout: float = 0.0
    idle_transaction_timeout: float = 0.0
    client_idle_timeout: float = 0.0
    connect_timeout: float = 15.0


@dataclass(frozen=True, slots=True)
class PassThrough:
    """A role that logs in with the key that its client has shown; `serial` tells which one, the key is elsewhere."""

    user: str
    serial: int


@dataclass(frozen=True, slots=True)
class Target:
    """What is needed to open a backend: where, which database, as whom, and for which generation of the route.

    `startup` has further startup parameters, of a backend that is for one client alone.
    """

    server: ServerInfo
    database: str
    credentials: Credentials | PassThrough
    generation: int
    startup: tuple[tuple[str, str], ...] = ()

    def leads_where(self, other: object) -> bool:
        """Say whether a backend opened for this target serves the other one as well."""
        return (
            isinstance(other, Target)
            and (self.generation, self.database, self.credentials)
            == (other.generation, other.database, other.credentials)
            and self.server.leads_where(other.server)
        )


class Tenancy:
    """The tenants that this node serves at present.

    `is_served` says whether clients of a route may be served now.  `watch` is called with the route of each tenant
    that appears, `unwatch` with the id of each that goes.  `counters` outlive the ledgers of cold tenants, so that a
    counter shown to the outside never goes back.
    """

    def __init__(
        self,
        node: NodeLedger,
        driver: PoolDriver,
        defaults: Defaults,
        *,
        is_served: Callable[[Route], bool],
        watch: Callable[[Route], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self.node = node
        self.driver = driver
        self.defaults = defaults
        self._is_served = is_served
        self._watch = watch
        self._unwatch = unwatch
        self._dedicated: dict[PoolLedger, None] = {}
        self._dedicated_made = 0
        self.counters: dict[int, Counters] = {}
        self.slugs: dict[int, str] = {}

    def pool_for(self, route: Route, override: Credentials | PassThrough | None, now: float) -> PoolLedger:
        """Find or make the pool of this tenant and role: the route's own, or that with which a login overrides it.

        Another key of a role that passes through makes the backends obsolete that were opened with the one before.
        Raises ValueError for a route without a server or database: such a tenant cannot be served.
        """
        role = override or route.role
        if route.server is None or route.database_name is None or role is None:
            raise ValueError(f"tenant {route.slug} has no database or no role")
        tenant = self.node.tenants.get(route.tenant_id)
        is_new = tenant is None
        if tenant is None:
            tenant = TenantLedger(route.tenant_id, route.slug)
            tenant.counters = self.counters.setdefault(route.tenant_id, tenant.counters)
            self.slugs[route.tenant_id] = route.slug
            self.node.tenants[route.tenant_id] = tenant
            self._limit_tenant(tenant, route)
        key = (route.tenant_id, _pool_name(override))
        pool = self.node.pools.get(key)
        if pool is None:
            pool = PoolLedger(tenant, self._server(route.server), role.user)
            pool.key = key
            self.node.pools[key] = pool
            tenant.pools.append(pool)
            self._point(pool, route, role)
            self.node.refresh_flags(tenant)
        elif override is not None:
            self._renew(pool, route, override, now)
        pool.last_used = now
        if is_new:
            self._watch(route)
        return pool

    def dedicated_pool(self, shared: PoolLedger, startup: tuple[tuple[str, str], ...], now: float) -> PoolLedger:
        """Make a pool beside a tenant's own, for one client alone, whose backend is opened with `startup`.

        It counts under the same caps, and goes with `forget_dedicated` once it holds nothing.
        """
        assert isinstance(shared.target, Target)
        tenant = shared.tenant
        pool = PoolLedger(tenant, shared.server, shared.role)
        self._dedicated_made += 1
        pool.key = (tenant.tenant_id, f"{DEDICATED}{self._dedicated_made}")
        pool.startup = startup
        pool.target = replace(shared.target, startup=startup)
        pool.database = shared.database
        pool.queue_wait_timeout = shared.queue_wait_timeout
        pool.connect_timeout = shared.connect_timeout
        pool.times = shared.times
        pool.last_used = now
        self.node.pools[pool.key] = pool
        tenant.pools.append(pool)
        self._dedicated[pool] = None
        self.node.refresh_flags(tenant)
        return pool

    def abandon_dedicated(self, pool: PoolLedger, now: float) -> None:
        """Close what such a pool holds, or is about to hold: its client has gone."""
        pool.generation += 1
        self.driver.make_obsolete(pool, now)

    def forget_dedicated(self) -> None:
        """Free the pools of single clients that hold nothing any more."""
        for pool in list(self._dedicated):
            if pool.held or pool.waiting:
                continue
            del self._dedicated[pool]
            del self.node.pools[pool.key]
            tenant = pool.tenant
            tenant.pools.remove(pool)
            if len(tenant.pools) == 1:
                tenant.pools[0].flags &= ~FLAG_SIBLING_WAITS

    def apply_route(self, tenant_id: int, route: Route | None, now: float) -> None:
        """Follow a change of a tenant's route; None is a tenant that exists no more.

        Backends of an older generation are closed when idle or when released; transactions in flight end where
        they began.
        """
        tenant = self.node.tenants.get(tenant_id)
        if tenant is None:
            return
        if route is not None:
            tenant.slug = route.slug
            self.slugs[tenant_id] = route.slug
            self._limit_tenant(tenant, route)
        for pool in list(tenant.pools):
            self._follow(pool, route, now)

    def follow(self, defaults: Defaults, current: Callable[[int], Route | None], now: float) -> Iterator[None]:
        """Hold tenants without limits of their own to other ones from now on; `current` knows their routes by id.

        Yields after every few tenants, for the caller to give the loop its turn.
        """
        self.defaults = defaults
        for number, tenant_id in enumerate(list(self.node.tenants), start=1):
            route = current(tenant_id)
            if route is not None:
                self.apply_route(tenant_id, route, now)
            if number % SLICE == 0:
                yield

    def forget_cold(self, now: float, after: float) -> int:
        """Free the ledgers of tenants that hold nothing and have had no client for `after` seconds; return how many."""
        self.forget_dedicated()
        freed = 0
        for tenant in list(self.node.tenants.values()):
            if tenant.clients or tenant.held or tenant.waiting or any(pool.min_size for pool in tenant.pools):
                continue
            if any(pool.last_used + after > now for pool in tenant.pools):
                continue
            for pool in tenant.pools:
                del self.node.pools[pool.key]
            del self.node.tenants[tenant.tenant_id]
            self._unwatch(tenant.tenant_id)
            freed += 1
        if freed:
            in_use = {pool.server.server_id for pool in self.node.pools.values()}
            for server in list(self.node.servers.values()):
                if not server.held and server.server_id not in in_use:
                    del self.node.servers[server.server_id]
        return freed

    def _follow(self, pool: PoolLedger, route: Route | None, now: float) -> None:
        target = pool.target
        assert isinstance(target, Target)
        role = route.role if route is not None and pool.key[1] == ROUTES_OWN else target.credentials
        if route is not None and role is not None and self._is_served(route):
            # The pool of a login's own role keeps its credentials; the login brings new ones.
            self._renew(pool, route, role, now)
            if pool.flags & FLAG_HELD_BACK:
                pool.held_back_route = None
                self.driver.let_go(pool, now)
            self.driver.grow(pool, now)
            return
        pool.held_back_route = route
        self.driver.hold_back(pool, now)

    def _renew(self, pool: PoolLedger, route: Route, role: Credentials | PassThrough, now: float) -> None:
        """Let a pool lead to the same place as its route and role do; what leads elsewhere becomes obsolete."""
        target = pool.target
        self._point(pool, route, role)
        if isinstance(target, Target) and not target.leads_where(pool.target):
            pool.generation += 1
            pool.backoff_until = 0.0
            pool.spares_from = 0.0
            self.driver.make_obsolete(pool, now)

    def _limit_tenant(self, tenant: TenantLedger, route: Route) -> None:
        limits, defaults = route.limits, self.defaults
        tenant.pool_size = _pick(limits.pool_size, defaults.pool_size)
        tenant.max_clients = _pick(limits.max_clients, defaults.max_clients)
        tenant.max_waiting = _pick(limits.max_waiting, defaults.max_waiting)

    def _point(self, pool: PoolLedger, route: Route, role: Credentials | PassThrough) -> None:
        """Set what a pool takes from its route."""
        assert route.server is not None
        assert route.database_name is not None
        limits, defaults = route.limits, self.defaults
        repoint(self.node, pool, self._server(route.server))
        pool.role = role.user
        pool.target = Target(route.server, route.database_name, role, route.generation, pool.startup)
        pool.database = route.database_name
        pool.min_size = 0 if pool.startup else _pick(limits.min_pool_size, defaults.min_pool_size)
        pool.queue_wait_timeout = _pick(limits.queue_wait_timeout, defaults.queue_wait_timeout)
        pool.idle_timeout = _pick(limits.server_idle_timeout, defaults.server_idle_timeout)
        pool.lifetime = _pick(limits.server_lifetime, defaults.server_lifetime)
        pool.connect_timeout = _pick(limits.connect_timeout, defaults.connect_timeout)
        pool.times = _times(limits, defaults)
        pool.reset_always = route.reset is ResetPolicy.ALWAYS
        pool.state_policy = STATE_POLICIES[route.session_state]
        pool.mode = MODES[route.pool_mode]
        slow = pool.reset_always or route.pool_mode is not PoolMode.TRANSACTION
        pool.flags = (pool.flags | FLAG_MODE) if slow else (pool.flags & ~FLAG_MODE)

    def _server(self, info: ServerInfo) -> ServerLedger:
        server = self.node.servers.get(info.server_id)
        if server is None:
            server = ServerLedger(info.server_id, info.name, capacity(info))
            self.node.servers[info.server_id] = server
            self.node.refresh_flags()
        else:
            server.name = info.name
            server.max_connections = capacity(info)
        return server


SLICE: Final = 50
"""Tenants that get other limits in one turn of the loop."""

ROUTES_OWN: Final = ""
"""Stands in a pool's key for the route's own role, which may change its name."""

DEDICATED: Final = "\1"
"""Begins the name of a pool that is for one client alone."""

PASSED: Final = "\0"
"""Begins the name of a pool whose role passes through; with stored credentials, the same role is another pool."""

STATE_POLICIES = {
    SessionStatePolicy.PIN: POLICY_PIN,
    SessionStatePolicy.REJECT: POLICY_REJECT,
    SessionStatePolicy.ALLOW: POLICY_ALLOW,
}
MODES = {PoolMode.TRANSACTION: 0, PoolMode.SESSION: 1, PoolMode.STATEMENT: 2}


def capacity(server: ServerInfo) -> int:
    """How many backends a server may have: where it is asked for verifiers, one connection is kept for that."""
    return max(1, server.max_connections - (server.auth is not None))


def _pool_name(override: Credentials | PassThrough | None) -> str:
    if override is None:
        return ROUTES_OWN
    return PASSED + override.user if isinstance(override, PassThrough) else override.user


def _times(limits: Limits, defaults: Defaults) -> TimeLimits:
    return TimeLimits(
        query=_pick(limits.query_timeout, defaults.query_timeout),
        transaction=_pick(limits.transaction_timeout, defaults.transaction_timeout),
        idle_transaction=_pick(limits.idle_transaction_timeout, defaults.idle_transaction_timeout),
        client_idle=_pick(limits.client_idle_timeout, defaults.client_idle_timeout),
    )


def _pick(own: Number | None, default: Number) -> Number:
    return default if own is None else own
