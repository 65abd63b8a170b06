"""Pools for one client alone: they count under the tenant's caps, and leave nothing when it has gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness.poolworld import PoolWorld

from proxy.pool.ledger import FLAG_SIBLING_WAITS, PoolLedger, check_invariants
from proxy.pool.tenancy import Defaults, Target, Tenancy
from registry.contract import Address, Credentials, Limits, Route, ServerInfo, TenantState

STARTUP = (("replication", "database"),)
ROUTE = Route(
    1,
    "acme",
    TenantState.READY,
    ServerInfo(1, "pg", (Address("127.0.0.1"),)),
    "acme",
    Credentials("app"),
    1,
    limits=Limits(pool_size=2, min_pool_size=1),
)


class Setting:
    """A tenant with its own pool, and what the driver wants of the sockets."""

    def __init__(self) -> None:
        self.world = PoolWorld()
        self.tenancy = Tenancy(
            self.world.node,
            self.world.driver,
            Defaults(),
            is_served=lambda route: route.state is TenantState.READY,
            watch=lambda _: None,
            unwatch=lambda _: None,
        )
        self.shared = self.tenancy.pool_for(ROUTE, None, self.world.now)
        self.tenant = self.shared.tenant

    def dedicated(self) -> PoolLedger:
        return self.tenancy.dedicated_pool(self.shared, STARTUP, self.world.now)

    def check(self) -> None:
        self.world.check()
        assert check_invariants(self.world.node) == []


@pytest.fixture
def setting() -> Setting:
    return Setting()


def test_its_backend_is_opened_with_its_own_startup_parameters(setting: Setting) -> None:
    pool = setting.dedicated()
    setting.world.ask(pool)
    (entry,) = setting.world.opening
    assert isinstance(entry.target, Target)
    assert entry.target.startup == STARTUP
    assert isinstance(setting.shared.target, Target)
    assert setting.shared.target.startup == ()
    assert pool.min_size == 0
    setting.check()


def test_it_takes_the_place_of_an_idle_backend_at_the_cap(setting: Setting) -> None:
    for _ in range(2):
        setting.world.ask(setting.shared)
    for entry in list(setting.world.opening):
        setting.world.opened(entry)
    for client in list(setting.world.clients):
        setting.world.release(client)
    assert len(setting.shared.idle) == 2
    client = setting.world.ask(setting.dedicated())
    assert len(setting.world.closing) == 1, "one idle backend has to go"
    assert setting.shared.flags & FLAG_SIBLING_WAITS
    setting.world.confirm_closed(setting.world.closing[0])
    (entry,) = setting.world.opening
    assert entry.pool is client.pool
    assert setting.tenant.held == 2
    setting.check()


def test_what_is_being_opened_for_a_client_that_has_left_is_closed_and_the_pool_forgotten(setting: Setting) -> None:
    pool = setting.dedicated()
    client = setting.world.ask(pool)
    (entry,) = setting.world.opening
    setting.world.leave(client)
    setting.tenancy.abandon_dedicated(pool, setting.world.now)
    setting.tenancy.forget_dedicated()
    assert pool in setting.tenant.pools, "its slot is still taken"
    setting.world.opened(entry)
    assert setting.world.closing == [entry]
    setting.world.confirm_closed(entry)
    setting.tenancy.forget_dedicated()
    assert setting.tenant.pools == [setting.shared]
    assert list(setting.world.node.pools.values()) == [setting.shared]
    assert setting.tenant.held == 0
    assert not setting.shared.flags & FLAG_SIBLING_WAITS
    setting.check()


def test_a_change_of_the_route_reaches_it_and_keeps_no_spare_backend_for_it(setting: Setting) -> None:
    pool = setting.dedicated()
    elsewhere = replace(ROUTE, database_name="other", generation=2)
    setting.tenancy.apply_route(1, elsewhere, setting.world.now)
    assert isinstance(pool.target, Target)
    assert (pool.target.database, pool.target.startup) == ("other", STARTUP)
    assert pool.min_size == 0
    setting.tenancy.apply_route(1, replace(elsewhere, state=TenantState.SUSPENDED), setting.world.now)
    assert setting.world.ask(pool).state == "refused"


def test_cold_tenants_are_forgotten_with_all_their_pools(setting: Setting) -> None:
    setting.tenancy.apply_route(1, replace(ROUTE, limits=Limits(min_pool_size=0)), setting.world.now)
    setting.dedicated()
    assert setting.tenancy.forget_cold(setting.world.now + 100, 60) == 1
    assert not setting.world.node.pools
    setting.tenancy.forget_dedicated()
