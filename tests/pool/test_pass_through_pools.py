"""Pools of roles that log in with their clients' keys, beside those with stored passwords."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.pool.ledger import IDLE, NodeLedger, PoolLedger, check_invariants, move, open_entry
from proxy.pool.pool import Effects, PoolDriver
from proxy.pool.tenancy import Defaults, PassThrough, Target, Tenancy, capacity
from registry.contract import Address, AuthQuery, Credentials, Route, Secret, ServerInfo, TenantState

SERVER = ServerInfo(1, "eu1", (Address("10.0.0.1"),), max_connections=10)
ROUTE = Route(1, "acme", TenantState.READY, SERVER, "acme_data", Credentials("app", Secret("p")), generation=1)


class NoEffects(Effects):
    """Notes which backends are to be closed."""

    def __init__(self) -> None:
        self.closed: list[object] = []

    def close(self, entry: object, reason: str) -> None:
        self.closed.append(entry)


@pytest.fixture
def effects() -> NoEffects:
    return NoEffects()


@pytest.fixture
def tenancy(effects: NoEffects) -> Tenancy:
    node = NodeLedger(100, 10)
    driver = PoolDriver(node, effects, 0.1)
    return Tenancy(
        node,
        driver,
        Defaults(min_pool_size=2),
        is_served=lambda route: route.state is TenantState.READY,
        watch=lambda route: None,
        unwatch=lambda tenant_id: None,
    )


def credentials(pool: PoolLedger) -> object:
    assert isinstance(pool.target, Target)
    return pool.target.credentials


def test_a_role_that_passes_through_has_a_pool_of_its_own(tenancy: Tenancy) -> None:
    own = tenancy.pool_for(ROUTE, None, 0.0)
    stored = tenancy.pool_for(ROUTE, Credentials("app", Secret("p")), 0.0)
    passed = tenancy.pool_for(ROUTE, PassThrough("app", 1), 0.0)
    assert len({own, stored, passed}) == 3
    assert tenancy.pool_for(ROUTE, PassThrough("app", 1), 1.0) is passed
    assert (own.role, stored.role, passed.role) == ("app", "app", "app")
    assert not check_invariants(tenancy.node)


def test_it_needs_no_stored_role(tenancy: Tenancy) -> None:
    pool = tenancy.pool_for(replace(ROUTE, role=None), PassThrough("ann", 1), 0.0)
    assert credentials(pool) == PassThrough("ann", 1)


def test_another_key_makes_its_backends_obsolete_and_no_others(tenancy: Tenancy, effects: NoEffects) -> None:
    passed, other = (
        tenancy.pool_for(ROUTE, PassThrough("app", 1), 0.0),
        tenancy.pool_for(ROUTE, PassThrough("ann", 2), 0.0),
    )
    entries = [open_entry(tenancy.node, pool, number, 0.0) for number, pool in enumerate((passed, other))]
    for entry in entries:
        move(tenancy.node, entry, IDLE, 0.0)
    tenancy.pool_for(ROUTE, PassThrough("app", 1), 1.0)
    assert effects.closed == []
    generation = passed.generation
    tenancy.pool_for(ROUTE, PassThrough("app", 3), 2.0)
    assert effects.closed == [entries[0]]
    assert passed.generation == generation + 1


def test_it_follows_its_route_with_the_key_it_has(tenancy: Tenancy) -> None:
    pool = tenancy.pool_for(ROUTE, PassThrough("app", 1), 0.0)
    moved = replace(ROUTE, database_name="elsewhere", generation=2)
    tenancy.apply_route(1, moved, 1.0)
    assert isinstance(pool.target, Target)
    assert (pool.target.database, pool.target.credentials) == ("elsewhere", PassThrough("app", 1))


@pytest.mark.parametrize(("most", "auth", "left"), [(10, False, 10), (10, True, 9), (1, True, 1)])
def test_a_server_that_is_asked_has_one_backend_less(most: int, auth: bool, left: int) -> None:
    asked = AuthQuery(Credentials("asker"), "postgres") if auth else None
    assert capacity(replace(SERVER, max_connections=most, auth=asked)) == left
