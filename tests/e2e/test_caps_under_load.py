"""Caps of tenants, servers and the node while many clients press against them, and how fairly they are shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from harness.databases import Database
from harness.disasters import login
from harness.proxy import ProxyProcess
from harness.rawclient import RawClient, ServerSaid, bind, execute, parse, query, sync
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import allowed, wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Address, Limits, Secret
from registry.domain.models import ServerChange

PROXY = {"pool": {"pool_size": 4, "queue_wait_timeout": 20.0}}


def server_with_cap(world: World, server: ServerFacts, name: str, cap: int) -> str:
    """Enter a server a second time, under another name and with a cap of its own."""
    change = ServerChange(
        addresses=(Address(server.host, server.port),),
        admin_user=server.superuser,
        admin_password=Secret(server.password),
        max_connections=cap,
        reserve=0,
    )
    world.registry.do(lambda service: service.add_server(name, change))
    return name


@contextmanager
def sampled(server: ServerFacts, databases: list[Database]) -> Iterator[list[int]]:
    """The numbers of backends in these databases, looked at again and again, all at one instant each."""
    names = [database.name for database in databases]
    seen: list[int] = []
    done = threading.Event()
    count = "select count(*) from pg_stat_activity where backend_type = 'client backend' and datname = any(%s)"

    def look() -> None:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            while not done.is_set():
                row = connection.execute(count, [names]).fetchone()
                assert row is not None
                seen.append(int(row[0]))
                done.wait(0.002)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            done.set()
        looking.result()


def hold_all(world: World, tenant: TenantUnderTest, count: int, stack: ExitStack) -> list[RawClient]:
    """So many clients of the tenant, each within a transaction."""
    clients = [stack.enter_context(login(world.proxy, tenant)) for _ in range(count)]
    for client in clients:
        client.rows("begin")
    return clients


@pytest.mark.parametrize("cap", [1, 3])
def test_pool_size_is_never_exceeded_however_clients_come_and_go(cap: int, world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, limits=Limits(pool_size=cap))

    def work(number: int) -> None:
        for turn in range(8):
            with login(world.proxy, tenant) as client:
                for statement in ("begin", f"select {number}", "commit", "set my.x = 'y'", "select 1"):
                    client.rows(statement)
                if turn % 3 == 0:
                    client.send(query("begin; select pg_sleep(0.05)"))
                    client.reset()

    with sampled(any_pg, [tenant.database]) as seen, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(seen) > 20
    assert max(seen) == cap
    world.wait_for_rest(tenant)


def test_a_servers_cap_holds_over_its_tenants_who_all_get_their_share(world: World, pg18: ServerFacts) -> None:
    shared = server_with_cap(world, pg18, "narrow", 3)
    tenants = [world.tenant(pg18, server=shared) for _ in range(4)]
    done = threading.Event()
    served = [0] * len(tenants)

    def work(number: int) -> None:
        which = number % len(tenants)
        with login(world.proxy, tenants[which]) as client:
            while not done.is_set():
                client.rows("select pg_sleep(0.005)")
                served[which] += 1

    with (
        sampled(pg18, [tenant.database for tenant in tenants]) as seen,
        ThreadPoolExecutor(12) as pool,
    ):
        working = [pool.submit(work, number) for number in range(12)]
        wait_until(lambda: min(served) > 20 or any(job.done() for job in working), what="everybody's share")
        done.set()
        for job in working:
            job.result()
    assert 1 < max(seen) <= 3
    assert world.proxy.metric("pgtenant_server_slots", server="narrow") <= 3
    assert world.proxy.metric("pgtenant_server_slots_max", server="narrow") == 3


def test_a_silent_tenants_client_is_served_soon_although_another_keeps_the_server_busy(
    world: World, pg18: ServerFacts
) -> None:
    shared = server_with_cap(world, pg18, "busy", 2)
    noisy, quiet = world.tenant(pg18, server=shared), world.tenant(pg18, server=shared)
    done = threading.Event()

    def make_noise() -> None:
        with login(world.proxy, noisy) as client:
            while not done.is_set():
                client.rows("select pg_sleep(0.01)")

    waits = []
    with ThreadPoolExecutor(8) as pool:
        working = [pool.submit(make_noise) for _ in range(8)]
        wait_until(lambda: world.clients(noisy, state="waiting") > 2, what="a queue")
        with login(world.proxy, quiet) as client:
            for _ in range(5):
                started = time.monotonic()
                client.rows("select 1")
                waits.append(time.monotonic() - started)
                wait_until(lambda: world.backends(quiet) == 0, what="the slot taken away again")
        done.set()
        for job in working:
            job.result()
    # 0.1 s of waiting before a foreign waiter wins, a query of 0.01 s, closing and opening.
    assert sorted(waits)[len(waits) // 2] < allowed(0.4), waits


def test_a_full_pool_makes_clients_wait_and_says_why_when_that_takes_too_long(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1, queue_wait_timeout=0.3))
    with (
        psycopg.connect(world.url(tenant)) as holder,
        psycopg.connect(world.url(tenant), autocommit=True) as waiting,
    ):
        holder.execute("select 1")
        with pytest.raises(psycopg.errors.TooManyConnections, match=r"within 0\.3 s.*pool_size") as caught:
            waiting.execute("select 1")
        assert "safe to try again" in str(caught.value.diag.message_hint)
        holder.rollback()
        assert waiting.execute("select 2").fetchone() == (2,), "the connection is still usable"
    refusals = [line for line in world.proxy.logs().splitlines() if "request refused" in line]
    assert ["queue_timeout" in line for line in refusals if f'"{tenant.slug}"' in line] == [True]


def test_a_pool_full_of_pinned_clients_says_so_in_the_hint(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1, queue_wait_timeout=0.3))
    with (
        psycopg.connect(world.url(tenant), autocommit=True) as pinned,
        psycopg.connect(world.url(tenant), autocommit=True) as waiting,
    ):
        pinned.execute("listen news")
        wait_until(lambda: world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug) == 1, what="the pin")
        with pytest.raises(psycopg.errors.TooManyConnections, match="session state") as caught:
            waiting.execute("select 1")
        assert "LISTEN" in str(caught.value.diag.message_hint)
    world.wait_for_rest(tenant)
    assert world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug) == 0


def test_everybody_else_is_refused_at_once_when_enough_are_waiting(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1, max_waiting=2))
    with ExitStack() as stack:
        (holder,) = hold_all(world, tenant, 1, stack)
        waiting = [stack.enter_context(login(world.proxy, tenant)) for _ in range(2)]
        for client in waiting:
            client.send(query("select 'waited'"))
        wait_until(lambda: world.clients(tenant, state="waiting") == 2, what="a full queue")
        late = stack.enter_context(login(world.proxy, tenant))
        with pytest.raises(ServerSaid, match="too many transactions waiting") as caught:
            late.rows("select 1")
        assert caught.value.fields["C"] == "53300"
        assert caught.value.fields["S"] == "ERROR"
        late.send(parse("select 1"), bind(), execute(), parse("select 2"), bind(), execute(), sync())
        assert [message.kind for message in late.read_until("Z")] == ["E", "Z"]
        holder.rows("commit")
        for client in waiting:
            assert [message.row for message in client.read_until("Z") if message.kind == "D"] == [("waited",)]
        assert late.rows("select 3") == [("3",)]


def test_the_queue_is_first_in_first_out(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed="create table t (place serial, client int)", limits=Limits(pool_size=1))
    with ExitStack() as stack:
        (holder,) = hold_all(world, tenant, 1, stack)
        waiting = [stack.enter_context(login(world.proxy, tenant)) for _ in range(6)]
        for number, client in enumerate(waiting):
            client.send(query(f"insert into t (client) values ({number})"))
            wait_until(lambda number=number: world.clients(tenant, state="waiting") == number + 1, what="its turn")  # type: ignore[misc]
        waiting[2].reset()
        wait_until(lambda: world.clients(tenant, state="waiting") == 5, what="one who gave up")
        holder.rows("commit")
        for number, client in enumerate(waiting):
            if number != 2:
                client.read_until("Z")
    assert tenant.database.psql("select string_agg(client::text, '' order by place) from t") == "01345"


def test_the_nodes_own_caps(
    pg18: ServerFacts,
    pg17: ServerFacts,
    make_database: Callable[..., Database],
    registry: RegistryUnderTest,
    start_proxy: Callable[..., ProxyProcess],
) -> None:
    tenants = [registry.add_tenant(f"t{n}", make_database(server)) for n, server in enumerate((pg18, pg17))]
    proxy = start_proxy(pool={"pool_size": 2, "max_backends": 2}, listen={"max_clients": 6})
    with ExitStack() as stack:
        clients = [stack.enter_context(login(proxy, tenants[number % 2])) for number in range(6)]
        with proxy.connect() as surplus, pytest.raises(ServerSaid, match="this proxy accepts 6") as caught:
            surplus.login(tenants[0].user, tenants[0].password, tenants[0].slug)
        assert caught.value.sqlstate == "53300"

        def work(client: RawClient) -> int:
            for _ in range(20):
                client.rows("select pg_sleep(0.002)")
            return 20

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(work, clients)) == 120
        assert sum(tenant.database.backends() for tenant in tenants) <= 2
        clients[0].close()
        wait_until(lambda: proxy.metric("pgtenant_clients") == 5, what="room for one")
        assert stack.enter_context(login(proxy, tenants[1])).rows("select 1") == [("1",)]


def test_idle_backends_are_closed_in_time_and_the_least_are_kept(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=4, min_pool_size=1, server_idle_timeout=0.3))
    with ExitStack() as stack:
        for client in hold_all(world, tenant, 4, stack):
            client.rows("commit")
        assert tenant.database.backends() == 4
        wait_until(lambda: tenant.database.backends() == 1, seconds=3.0, what="idle backends closed")
        assert stack.enter_context(login(world.proxy, tenant)).rows("select 1") == [("1",)]


def test_old_backends_are_replaced_without_anybody_noticing(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1, server_lifetime=0.2))
    pids = set()
    with login(world.proxy, tenant) as client:

        def seen() -> int:
            pids.add(client.rows("select pg_backend_pid()")[0])
            return len(pids)

        wait_until(lambda: seen() >= 4, seconds=5.0, what="new backends")
    world.wait_for_rest(tenant)
