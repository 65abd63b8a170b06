"""Who gets which backend: the policy's rules one by one, on virtual time."""

from __future__ import annotations

from harness.poolworld import FOREIGN_WAIT, PoolWorld, fill

from proxy.pool.allocator import (
    REFUSED_QUEUE_FULL,
    REFUSED_SERVER_DOWN,
    REFUSED_TIMEOUT,
)
from proxy.pool.ledger import (
    FLAG_OVER_CAP,
    FLAG_SIBLING_WAITS,
    WAIT_CONNECT,
    WAIT_NODE,
    WAIT_POOL,
    WAIT_SERVER,
    Waiter,
    waiters_of,
)
from proxy.pool.pool import FAULT_LOGIN


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
    world.open_fails(world.opening[0], fault=FAULT_LOGIN)
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
    world.open_fails(world.opening[0], fault=FAULT_LOGIN)
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
