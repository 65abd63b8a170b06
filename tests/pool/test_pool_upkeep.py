"""How backends are kept, and what becomes of them when routes change: the policy's rules, on virtual time."""

from __future__ import annotations

import pytest
from harness.poolworld import FOREIGN_WAIT, LINGER, PoolWorld, fill

from proxy.pool.allocator import (
    GRANT,
    PARK,
    REFUSED_HELD_BACK,
    plan_acquire,
    plan_release,
)
from proxy.pool.ledger import (
    ACTIVE,
    CANCELLING,
    CLOSING,
    CONNECTING,
    FLAG_WAITERS,
    IDLE,
    LINGERING,
    RESETTING,
    move,
)
from proxy.pool.pool import FAULT_LOGIN, FAULT_MISSING, LEAVE_TIME, SPARES_AGAIN


def test_minimum_is_kept_and_no_more() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    pool.min_size = 2
    pool.idle_timeout = 10.0
    world.pass_time(0.1)
    assert len(world.opening) == 2
    for entry in list(world.opening):
        world.opened(entry)
    fill_more = [world.ask(pool) for _ in range(4)]
    for entry in list(world.opening):
        world.opened(entry)
    for client in fill_more:
        world.release(client)
    world.pass_time(10.0)
    assert len(pool.idle) == 2
    assert len(world.closing) == 2


def test_minimum_is_not_opened_above_a_cap() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s", max_connections=1), pool_size=5)
    pool.min_size = 3
    world.pass_time(0.1)
    assert len(world.opening) == 1


def test_backend_is_closed_when_its_life_is_over() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    fill(world, pool, 1)
    busy = world.ask(pool)
    fill(world, pool, 1)
    for entry in world.entries():
        entry.expires_at = world.now + 5.0
    world.pass_time(5.0)
    assert len(world.closing) == 1
    assert busy.state == "linked", "a transaction in flight is not cut"
    world.release(busy)
    assert len(world.closing) == 2


def test_dirty_backend_is_reset_before_the_next_client_has_it() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=1)
    holder = world.ask(pool)
    world.opened(world.opening[0])
    client = world.ask(pool)
    world.release(holder, dirty=True)
    assert client.state == "waiting"
    (entry,) = world.resetting
    assert entry.state == RESETTING
    world.reset_done(entry)
    assert client.entry is entry


def test_backend_serves_nobody_while_a_cancel_request_for_it_is_under_way() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=1)
    holder = world.ask(pool)
    world.opened(world.opening[0])
    entry = holder.entry
    assert entry is not None
    world.driver.cancel_begins(entry)
    world.driver.cancel_begins(entry)
    client = world.ask(pool)
    world.release(holder)
    assert entry.state == CANCELLING
    world.driver.cancel_done(entry, world.now)
    assert client.state == "waiting"
    world.driver.cancel_done(entry, world.now)
    assert client.entry is entry


def test_closing_backend_holds_its_slot_and_is_shown_lingering() -> None:
    world = PoolWorld()
    server = world.add_server("s", max_connections=1)
    pool = world.simple_pool("acme", server)
    holder = world.ask(pool)
    world.opened(world.opening[0])
    world.leave(holder)
    client = world.ask(pool)
    world.pass_time(LINGER)
    (entry,) = world.entries()
    assert entry.state == LINGERING
    assert server.held == 1
    assert not world.opening
    world.confirm_closed(entry)
    world.opened(world.opening[0])
    assert client.state == "linked"


# Routes change.


def test_repointed_pool_closes_the_old_backends_when_they_are_free() -> None:
    world = PoolWorld()
    old, new = world.add_server("old"), world.add_server("new")
    pool = world.simple_pool("acme", old)
    fill(world, pool, 2)
    busy = world.ask(pool)
    world.repoint(pool, new)
    assert len(world.closing) == 1
    client = world.ask(pool)
    assert world.opening[0].server is new
    world.release(busy)
    assert len(world.closing) == 2
    world.opened(world.opening[0])
    assert client.state == "linked"
    world.check()


def test_backend_that_is_still_opening_at_the_old_place_holds_up_nobody() -> None:
    world = PoolWorld()
    old, new = world.add_server("old"), world.add_server("new")
    pool = world.simple_pool("acme", old)
    client = world.ask(pool)
    (stale,) = world.opening
    world.repoint(pool, new)
    assert [entry.server for entry in world.opening] == [old, new]
    world.opened(world.opening[1])
    assert client.state == "linked"
    world.opened(stale)
    assert stale.state == CLOSING
    world.check()


def test_failure_at_the_old_place_is_not_blamed_on_the_new_one() -> None:
    world = PoolWorld()
    old, new = world.add_server("old"), world.add_server("new")
    pool = world.simple_pool("acme", old)
    client = world.ask(pool)
    world.repoint(pool, new)
    world.open_fails(world.opening[0], fault=FAULT_LOGIN, pause=60.0)
    assert client.state == "waiting"
    assert pool.backoff_until == 0.0
    world.opened(world.opening[0])
    assert client.state == "linked"


def test_slot_of_a_failed_opening_at_the_old_place_serves_the_new_one() -> None:
    world = PoolWorld()
    old, new = world.add_server("old"), world.add_server("new")
    pool = world.simple_pool("acme", old, pool_size=1)
    world.ask(pool)
    world.repoint(pool, new)
    world.open_fails(world.opening[0], fault=FAULT_LOGIN)
    assert [entry.server for entry in world.opening] == [new]


def test_suspended_pool_refuses_and_keeps_nothing_but_transactions_in_flight() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=3)
    pool.min_size = 2
    fill(world, pool, 2)
    busy = world.ask(pool)
    opening, queued = world.ask(pool), world.ask(pool)
    world.driver.hold_back(pool, world.now)
    late = world.ask(pool)
    assert late.reason == REFUSED_HELD_BACK
    assert queued.reason == REFUSED_HELD_BACK
    for entry in list(world.opening):
        world.opened(entry)
    for client in [client for client in (busy, opening, queued) if client.state == "linked"]:
        world.release(client)
    world.pass_time(1.0)
    for entry in list(world.closing):
        world.confirm_closed(entry)
    assert not world.entries()
    world.driver.let_go(pool, world.now)
    client = world.ask(pool)
    world.opened(world.opening[0])
    assert client.state == "linked"


def test_dirty_backend_of_a_suspended_pool_is_closed_without_a_reset() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    busy = world.ask(pool)
    world.opened(world.opening[0])
    world.driver.hold_back(pool, world.now)
    world.release(busy, dirty=True)
    assert not world.resetting
    assert len(world.closing) == 1


# The ledger.


def test_backend_that_is_gone_stays_gone() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    fill(world, pool, 1)
    entry = pool.idle[0]
    world.lose(entry)
    world.driver.closed(entry, world.now)
    assert world.node.held == 0
    with pytest.raises(ValueError, match="gone"):
        move(world.node, entry, IDLE, world.now)


def test_flags_tell_the_relay_when_somebody_waits() -> None:
    world = PoolWorld()
    server = world.add_server("s", max_connections=1)
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    holder = world.ask(acme)
    world.opened(world.opening[0])
    assert acme.flags | server.flags == 0
    waiting = world.ask(bolt)
    assert bolt.flags & FLAG_WAITERS
    assert server.flags, "a release of acme must ask the planner"
    world.leave(waiting)
    assert bolt.flags | server.flags == 0
    assert holder.entry is not None
    assert plan_release(world.node, holder.entry, world.now, FOREIGN_WAIT).kind == PARK


def test_plans_change_nothing() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    fill(world, pool, 1)
    for _ in range(3):
        operation = plan_acquire(world.node, pool, world.now)
        assert operation.kind == GRANT
        assert operation.entry is pool.idle[0]
    assert pool.count(IDLE) == 1
    assert pool.count(ACTIVE) == pool.count(CONNECTING) == 0


# A database is left.


def test_what_is_idle_in_a_database_leaves_it_and_nothing_is_parked_there_for_a_while() -> None:
    world = PoolWorld()
    server = world.add_server("s")
    tenant = world.add_tenant("acme")
    app, reader, other = (world.add_pool(tenant, server, role) for role in ("app", "reader", "other"))
    app.database = reader.database = "shop"
    other.database = "bank"
    app.min_size = 2
    for pool in (app, reader, other):
        fill(world, pool, 2)
    holder = world.ask(app)
    runner = world.ask(other)
    assert runner.entry is not None
    world.driver.leave(runner.entry, "shop", tenant, world.now)
    assert [entry.pool.role for entry in world.closing] == ["app", "reader", "reader"]
    assert len(other.idle) == 1
    world.pass_time(0.1)
    assert not world.opening, "the minimum is not kept meanwhile"
    world.release(holder)
    assert holder.entry is None
    assert not app.idle
    client = world.ask(reader)
    world.opened(world.opening[0])
    assert client.state == "linked", "clients are served all the while"
    next_one = world.ask(reader)
    world.release(client)
    assert next_one.state == "linked"
    world.release(next_one)
    world.opened(world.opening[0])
    assert not reader.idle, "what was opened for a client that needs it no more is not kept either"
    world.release(runner)
    assert len(other.idle) == 2
    world.pass_time(0.1)
    assert len(world.opening) == 2, "the minimum is kept again"
    world.check()


def test_a_database_is_not_left_for_longer_than_postgresql_waits() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    fill(world, pool, 2)
    runner = world.ask(pool)
    assert runner.entry is not None
    world.driver.leave(runner.entry, "", pool.tenant, world.now)
    client = world.ask(pool)
    world.opened(world.opening[0])
    world.pass_time(LEAVE_TIME)
    world.release(client)
    world.release(runner)
    assert len(pool.idle) == 2
    world.check()


def test_a_database_of_another_tenant_on_another_server_or_from_before_is_not_left() -> None:
    world = PoolWorld()
    server, elsewhere = world.add_server("s"), world.add_server("t")
    acme, bolt, far = (
        world.simple_pool(slug, place) for slug, place in (("acme", server), ("bolt", server), ("far", elsewhere))
    )
    for pool in (acme, bolt, far):
        pool.database = "shop"
        fill(world, pool, 1)
    holder = world.ask(world.simple_pool("runner", server))
    world.opened(world.opening[0])
    runner = holder.entry
    assert runner is not None
    world.driver.leave(runner, "shop", acme.tenant, world.now)
    assert [entry.pool for entry in world.closing] == [acme]
    world.driver.leave(runner, "shop", None, world.now)
    assert [entry.pool for entry in world.closing] == [acme, bolt]
    assert len(far.idle) == 1


def test_a_minimum_in_a_database_that_does_not_exist_is_tried_for_now_and_then() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    pool.min_size = 1
    world.pass_time(0.1)
    world.open_fails(world.opening[0], fault=FAULT_MISSING, pause=0.5)
    world.pass_time(SPARES_AGAIN - 1.0)
    assert not world.opening
    client = world.ask(pool)
    assert len(world.opening) == 1
    world.leave(client)
    world.open_fails(world.opening[0], fault=FAULT_MISSING, pause=0.5)
    world.pass_time(SPARES_AGAIN)
    assert len(world.opening) == 1
