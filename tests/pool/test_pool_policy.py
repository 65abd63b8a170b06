"""Who gets which backend: the policy's rules one by one, on virtual time."""

from __future__ import annotations

import pytest
from harness.poolworld import FOREIGN_WAIT, LINGER, PoolWorld

from proxy.pool.allocator import (
    GRANT,
    PARK,
    REFUSED_HELD_BACK,
    REFUSED_QUEUE_FULL,
    REFUSED_SERVER_DOWN,
    REFUSED_TIMEOUT,
    plan_acquire,
    plan_release,
)
from proxy.pool.ledger import (
    ACTIVE,
    CANCELLING,
    CLOSING,
    CONNECTING,
    FLAG_OVER_CAP,
    FLAG_SIBLING_WAITS,
    FLAG_WAITERS,
    IDLE,
    LINGERING,
    RESETTING,
    WAIT_CONNECT,
    WAIT_NODE,
    WAIT_POOL,
    WAIT_SERVER,
    PoolLedger,
    Waiter,
    move,
    waiters_of,
)


def fill(world: PoolWorld, pool: PoolLedger, count: int) -> None:
    """Open idle backends in a pool."""
    clients = [world.ask(pool) for _ in range(count)]
    for entry in list(world.opening):
        world.opened(entry)
    for client in clients:
        world.release(client)
    assert len(pool.idle) == count


def test_first_client_opens_a_backend_and_the_next_takes_it_over() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    first = world.ask(pool)
    assert first.state == "waiting"
    world.opened(world.opening[0])
    entry = first.entry
    assert entry is not None
    world.release(first)
    second = world.ask(pool)
    assert second.entry is entry
    assert not world.opening


def test_idle_backends_are_a_stack() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    fill(world, pool, 3)
    newest = pool.idle[-1]
    assert world.ask(pool).entry is newest


def test_queue_is_first_in_first_out() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=1)
    holder = world.ask(pool)
    world.opened(world.opening[0])
    queue = [world.ask(pool) for _ in range(5)]
    world.leave(queue.pop(2))
    for expected in queue:
        world.release(holder)
        assert expected.state == "linked"
        holder = expected
    world.check()


def test_no_more_backends_are_opened_than_clients_wait() -> None:
    world = PoolWorld(max_connecting=10)
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=5)
    for _ in range(3):
        world.ask(pool)
    assert len(world.opening) == 3
    for _ in range(10):
        world.ask(pool)
    assert len(world.opening) == 5
    assert [waiter.reason for waiter in waiters_of(pool)][-1] == WAIT_POOL


def test_opening_at_once_is_limited_per_server() -> None:
    world = PoolWorld(max_connecting=2)
    pool = world.simple_pool("acme", world.add_server("s"))
    clients = [world.ask(pool) for _ in range(4)]
    assert len(world.opening) == 2
    assert clients[0].waiter is not None and clients[0].waiter.reason == WAIT_CONNECT
    world.opened(world.opening[0])
    assert len(world.opening) == 2
    world.open_fails(world.opening[0], pause=0.0)
    assert len(world.opening) == 2


def test_waiter_that_leaves_at_the_instant_of_its_grant_passes_it_on() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=1)
    holder = world.ask(pool)
    world.opened(world.opening[0])
    gone = [world.ask(pool, on_grant="release") for _ in range(50)]
    last = world.ask(pool)
    world.release(holder)
    assert all(client.state == "gone" for client in gone)
    assert last.state == "linked"
    world.check()


def test_waiter_that_closes_what_it_is_granted_costs_the_next_one_nothing_but_time() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=1)
    holder = world.ask(pool)
    world.opened(world.opening[0])
    world.ask(pool, on_grant="close")
    last = world.ask(pool)
    world.release(holder)
    assert last.state == "waiting"
    world.confirm_closed(world.closing[0])
    world.opened(world.opening[0])
    assert last.state == "linked"


# Caps.


def test_idle_backend_of_another_tenant_makes_room_at_the_servers_cap() -> None:
    world = PoolWorld()
    server = world.add_server("s", max_connections=2)
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    fill(world, acme, 2)
    oldest = min(acme.idle, key=lambda entry: entry.since)
    client = world.ask(bolt)
    assert client.waiter is not None and client.waiter.reason == WAIT_SERVER
    assert world.closing == [oldest]
    assert not world.opening, "the slot is free when the server has closed"
    world.confirm_closed(oldest)
    world.opened(world.opening[0])
    assert client.state == "linked"
    assert len(acme.idle) == 1


def test_idle_backend_of_another_server_makes_room_at_the_nodes_cap() -> None:
    world = PoolWorld(max_backends=2)
    acme = world.simple_pool("acme", world.add_server("one"))
    bolt = world.simple_pool("bolt", world.add_server("two"))
    fill(world, acme, 2)
    client = world.ask(bolt)
    assert client.waiter is not None and client.waiter.reason == WAIT_NODE
    world.confirm_closed(world.closing[0])
    world.opened(world.opening[0])
    assert client.state == "linked"


def test_idle_backend_of_a_sibling_pool_makes_room_at_the_tenants_cap() -> None:
    world = PoolWorld()
    server = world.add_server("s")
    tenant = world.add_tenant("acme", pool_size=2)
    app, reader = world.add_pool(tenant, server), world.add_pool(tenant, server, "reader")
    fill(world, app, 2)
    client = world.ask(reader)
    assert client.waiter is not None and client.waiter.reason == WAIT_POOL
    assert len(world.closing) == 1
    world.confirm_closed(world.closing[0])
    world.opened(world.opening[0])
    assert client.state == "linked"


def test_sibling_pools_take_turns_at_the_tenants_cap() -> None:
    world = PoolWorld()
    server = world.add_server("s")
    tenant = world.add_tenant("acme", pool_size=1)
    app, reader = world.add_pool(tenant, server), world.add_pool(tenant, server, "reader")
    holder = world.ask(app)
    world.opened(world.opening[0])
    other = world.ask(reader)
    assert app.flags & FLAG_SIBLING_WAITS, "the relay's shortcut would keep the slot for ever"
    world.pass_time(FOREIGN_WAIT)
    world.ask(app)
    world.release(holder)
    world.confirm_closed(world.closing[0])
    assert world.opening[0].pool is reader
    world.opened(world.opening[0])
    assert other.state == "linked"
    world.check()


def test_two_idle_backends_make_room_for_two_waiters_and_not_for_three() -> None:
    world = PoolWorld()
    server = world.add_server("s", max_connections=3)
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    fill(world, acme, 3)
    for _ in range(2):
        world.ask(bolt)
    assert len(world.closing) == 2
    assert len(acme.idle) == 1


def test_waiter_of_another_tenant_gets_the_slot_after_a_tenth_of_a_second() -> None:
    world = PoolWorld()
    server = world.add_server("s", max_connections=1)
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    holder = world.ask(acme)
    world.opened(world.opening[0])
    foreign = world.ask(bolt)
    own = world.ask(acme)
    world.pass_time(FOREIGN_WAIT - 0.01)
    world.release(holder)
    assert own.state == "linked", "younger, but of the pool, and the other has not waited long enough"
    next_own = world.ask(acme)
    world.pass_time(0.02)
    world.release(own)
    assert next_own.state == "waiting"
    world.confirm_closed(world.closing[0])
    world.opened(world.opening[0])
    assert foreign.state == "linked"
    world.check()


def test_older_waiter_of_the_pool_itself_comes_before_another_tenants() -> None:
    world = PoolWorld()
    server = world.add_server("s", max_connections=1)
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    holder = world.ask(acme)
    world.opened(world.opening[0])
    own = world.ask(acme)
    world.pass_time(0.01)
    world.ask(bolt)
    world.pass_time(1.0)
    world.release(holder)
    assert own.state == "linked"


def test_no_tenant_starves_beside_one_with_an_endless_queue() -> None:
    world = PoolWorld()
    server = world.add_server("s", max_connections=2)
    noisy, quiet = world.simple_pool("noisy", server), world.simple_pool("quiet", server)
    for _ in range(50):
        world.ask(noisy)
    client = world.ask(quiet)
    for _ in range(60):
        for entry in list(world.opening):
            world.opened(entry)
        for entry in list(world.closing):
            world.confirm_closed(entry)
        for other in [other for other in world.linked() if other is not client]:
            world.release(other)
            world.ask(noisy)
        world.pass_time(0.05)
    assert client.state == "linked"


def test_waiter_whose_pool_is_in_back_off_takes_nobodys_slot() -> None:
    world = PoolWorld()
    server = world.add_server("s", max_connections=2)
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    ours, theirs = world.ask(acme), world.ask(bolt)
    for entry in list(world.opening):
        world.opened(entry)
    bolt.backoff_until = world.now + 60.0
    world.ask(bolt)
    world.pass_time(1.0)
    world.release(ours)
    assert not world.closing, "the slot could not be used"
    assert theirs.state == "linked"


def test_lowered_cap_closes_what_is_too_much_when_it_is_released() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=4)
    clients = [world.ask(pool) for _ in range(4)]
    for entry in list(world.opening):
        world.opened(entry)
    pool.tenant.pool_size = 2
    world.pass_time(0.1)
    assert pool.flags & FLAG_OVER_CAP, "the relay's shortcut would keep them all"
    for client in clients:
        world.release(client)
    assert len(world.closing) == 2
    for entry in list(world.closing):
        world.confirm_closed(entry)
    world.pass_time(0.1)
    assert pool.flags == 0
    assert len(pool.idle) == 2


def test_raised_cap_serves_who_waits() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=1)
    for _ in range(3):
        world.ask(pool)
    assert len(world.opening) == 1
    pool.tenant.pool_size = 3
    world.pass_time(0.1)
    assert len(world.opening) == 3


# Opening fails.


def test_waiters_of_a_server_that_is_down_are_refused_at_once() -> None:
    world = PoolWorld()
    server = world.add_server("s")
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    clients = [world.ask(acme), world.ask(bolt), world.ask(acme)]
    world.open_fails(world.opening[0], pause=5.0)
    world.open_fails(world.opening[0], pause=5.0)
    world.open_fails(world.opening[0], pause=5.0)
    assert [client.reason for client in clients] == [REFUSED_SERVER_DOWN] * 3
    assert world.ask(acme).reason == REFUSED_SERVER_DOWN
    assert not world.opening
    world.pass_time(5.0)
    client = world.ask(acme)
    world.opened(world.opening[0])
    assert client.state == "linked"
    assert server.failures == 0


def test_refusal_of_one_role_does_not_touch_the_server_nor_others() -> None:
    world = PoolWorld()
    server = world.add_server("s")
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    world.ask(acme)
    world.open_fails(world.opening[0], whole_server=False)
    other = world.ask(bolt)
    world.opened(world.opening[0])
    assert other.state == "linked"
    assert acme.last_error == "it was refused"


def test_pool_with_backends_left_waits_out_a_back_off() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    holder = world.ask(pool)
    world.opened(world.opening[0])
    client = world.ask(pool)
    world.open_fails(world.opening[0])
    assert client.state == "waiting"
    world.release(holder)
    assert client.state == "linked"


def test_slot_of_a_failed_opening_goes_to_another_server_at_the_nodes_cap() -> None:
    world = PoolWorld(max_backends=1)
    acme = world.simple_pool("acme", world.add_server("one"))
    bolt = world.simple_pool("bolt", world.add_server("two"))
    world.ask(acme)
    world.ask(bolt)
    world.open_fails(world.opening[0])
    assert [entry.pool for entry in world.opening] == [bolt]


def test_slot_of_a_failed_opening_goes_to_a_sibling_pool() -> None:
    world = PoolWorld()
    tenant = world.add_tenant("acme", pool_size=1)
    app = world.add_pool(tenant, world.add_server("one"))
    reader = world.add_pool(tenant, world.add_server("two"), "reader")
    world.ask(app)
    world.ask(reader)
    world.open_fails(world.opening[0], whole_server=False)
    assert [entry.pool for entry in world.opening] == [reader]


class Insisting(PoolWorld):
    """Whose clients ask again as soon as they are refused, a few times."""

    def refuse(self, waiter: Waiter, reason: int) -> None:
        super().refuse(waiter, reason)
        if len(self.clients) < 100:
            self.ask(self.clients[-1].pool)


def test_refusing_everybody_ends_though_they_ask_again_at_once() -> None:
    world = Insisting()
    pool = world.simple_pool("acme", world.add_server("s"))
    first = world.ask(pool)
    world.open_fails(world.opening[0], pause=0.0)
    assert first.state == "refused"
    assert len(world.clients) == 2
    assert len(world.opening) == 1


# Limits of the queue.


def test_queue_that_is_full_refuses() -> None:
    world = PoolWorld()
    pool = world.add_pool(world.add_tenant("acme", pool_size=1, max_waiting=2), world.add_server("s"))
    states = [world.ask(pool).reason for _ in range(3)]
    assert states == [0, 0, REFUSED_QUEUE_FULL]


def test_waiter_is_refused_when_its_time_is_over() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"), pool_size=1)
    holder = world.ask(pool)
    world.opened(world.opening[0])
    early = world.ask(pool, timeout=1.0)
    world.pass_time(0.5)
    late = world.ask(pool, timeout=1.0)
    world.pass_time(0.5)
    assert (early.state, early.reason) == ("refused", REFUSED_TIMEOUT)
    assert late.state == "waiting"
    world.release(holder)
    assert late.state == "linked"


# Upkeep.


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
    world.open_fails(world.opening[0], whole_server=False, pause=60.0)
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
    world.open_fails(world.opening[0], whole_server=False)
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
    assert queued.reason == REFUSED_HELD_BACK or queued.state == "linked"
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
