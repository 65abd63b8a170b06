"""Nobody waits for what will not come: as soon as that is known who waits is refused, and a new try is made in time."""

from __future__ import annotations

from harness.poolworld import PoolWorld, fill

from proxy.pool.allocator import REFUSED_SERVER_DOWN
from proxy.pool.ledger import mark_obsolete
from proxy.pool.pool import FAULT_LOGIN, FAULT_MISSING


def test_a_backend_that_is_only_finishing_is_no_reason_to_wait() -> None:
    world = PoolWorld()
    server = world.add_server("s")
    pool = world.simple_pool("acme", server)
    holder = world.ask(pool)
    world.opened(world.opening[0])
    world.repoint(pool, server)
    client = world.ask(pool)
    world.open_fails(world.opening[0], fault=FAULT_LOGIN)
    assert (client.state, client.reason) == ("refused", REFUSED_SERVER_DOWN)
    assert world.ask(pool).reason == REFUSED_SERVER_DOWN
    world.release(holder)
    world.check()


def test_who_waits_out_a_back_off_is_refused_when_the_last_backend_is_to_close() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    holder = world.ask(pool)
    world.opened(world.opening[0])
    client = world.ask(pool)
    world.open_fails(world.opening[0], pause=60.0)
    assert client.state == "waiting"
    assert holder.entry is not None
    mark_obsolete(holder.entry)
    world.pass_time(0.1)
    assert client.reason == REFUSED_SERVER_DOWN
    world.check()


def test_who_waits_out_a_back_off_is_refused_when_the_last_backend_is_lost() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    holder = world.ask(pool)
    world.opened(world.opening[0])
    client = world.ask(pool)
    world.open_fails(world.opening[0], pause=60.0)
    assert holder.entry is not None
    world.lose(holder.entry)
    assert client.reason == REFUSED_SERVER_DOWN


def test_a_role_that_cannot_log_in_does_not_wait_for_the_slots_of_others() -> None:
    world = PoolWorld()
    server = world.add_server("s")
    tenant = world.add_tenant("acme", pool_size=2)
    app, reader = world.add_pool(tenant, server), world.add_pool(tenant, server, "reader")
    world.ask(reader)
    world.open_fails(world.opening[0], fault=FAULT_LOGIN, pause=60.0)
    holders = [world.ask(app), world.ask(app)]
    for entry in list(world.opening):
        world.opened(entry)
    assert [holder.state for holder in holders] == ["linked", "linked"]
    assert world.ask(reader).reason == REFUSED_SERVER_DOWN


def test_the_minimum_is_of_backends_that_stay() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    pool.min_size = 1
    fill(world, pool, 1)
    holder = world.ask(pool)
    world.repoint(pool, pool.server)
    world.pass_time(0.1)
    assert len(world.opening) == 1
    world.release(holder)
    world.check()


# What does not exist may exist a moment later.


def test_after_a_failure_because_something_does_not_exist_who_comes_waits_for_the_next_try() -> None:
    world = PoolWorld()
    pool = world.simple_pool("acme", world.add_server("s"))
    first = world.ask(pool)
    world.open_fails(world.opening[0], fault=FAULT_MISSING, pause=1.0)
    assert first.reason == REFUSED_SERVER_DOWN
    world.pass_time(0.5)
    second = world.ask(pool)
    assert second.state == "waiting"
    assert not world.opening
    world.pass_time(0.6)
    world.opened(world.opening[0])
    assert second.state == "linked"


def test_who_came_after_a_try_had_begun_is_not_refused_by_it() -> None:
    world = PoolWorld(max_connecting=1)
    pool = world.simple_pool("acme", world.add_server("s"))
    early = world.ask(pool)
    world.now += 0.1
    late = world.ask(pool)
    world.open_fails(world.opening[0], fault=FAULT_MISSING, pause=0.0)
    assert (early.state, late.state) == ("refused", "waiting")
    world.open_fails(world.opening[0], fault=FAULT_MISSING, pause=1.0)
    assert late.state == "refused"


def test_a_server_that_is_down_is_not_waited_for_because_something_was_missing_before() -> None:
    world = PoolWorld()
    server = world.add_server("s")
    acme, bolt = world.simple_pool("acme", server), world.simple_pool("bolt", server)
    world.ask(acme)
    world.open_fails(world.opening[0], fault=FAULT_MISSING, pause=5.0)
    world.ask(bolt)
    world.open_fails(world.opening[0], pause=5.0)
    assert world.ask(acme).reason == REFUSED_SERVER_DOWN
