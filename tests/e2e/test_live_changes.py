"""Changes of the registry while clients are connected: in force within a second, felt by nobody else."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest
from harness.databases import Database
from harness.disasters import login
from harness.proxy import ADMIN_TOKEN, ProxyProcess
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Address, Limits, PoolMode, Secret
from registry.domain.models import LoginChange, ServerChange

PROXY = {"pool": {"pool_size": 4}}
IN_FORCE = 1.0
"""Seconds within which a change is in force."""
MARGIN = 0.5
"""Seconds that the test itself may take to see it, on a busy machine."""


def soon(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, seconds=IN_FORCE + MARGIN, what=what)


def told(url: str, sql: str = "select 1") -> str:
    """What a new client is told: the first line of its error, or the first value of its result."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            row = connection.execute(sql.encode()).fetchone()
            return str(row[0] if row else "")
    except psycopg.Error as error:
        return str(error).splitlines()[0].rpartition("FATAL:  ")[2]


@pytest.fixture(scope="module", autouse=True)
def bystander(world: World, pg17: ServerFacts) -> Iterator[TenantUnderTest]:
    """A client that nothing in this module concerns: it works all the time on one connection and sees no error."""
    tenant = world.tenant(pg17)
    done = threading.Event()

    def work() -> int:
        count = 0
        with psycopg.connect(world.url(tenant), prepare_threshold=None) as connection:
            while not done.is_set():
                with connection.transaction():
                    assert connection.execute("select current_database()").fetchone() == (tenant.database.name,)
                count += 1
                done.wait(0.01)
        return count

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield tenant
        finally:
            done.set()
        assert working.result() > 10


@contextmanager
def load(world: World, tenant: TenantUnderTest, clients: int, *, sql: str = "select 1") -> Iterator[None]:
    """Keep so many clients busy, none of which may see an error."""
    done = threading.Event()

    def work() -> None:
        with login(world.proxy, tenant) as client:
            while not done.is_set():
                client.rows(sql)

    with ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(work) for _ in range(clients)]
        try:
            yield
        finally:
            done.set()
        for job in working:
            job.result()


def holds(database: Database, backends: int) -> bool:
    return database.backends() == backends


def refuses(url: str) -> bool:
    return told(url).startswith("password authentication failed")


def leads_to(url: str, database: Database) -> bool:
    return told(url, "select current_database()") == database.name


def test_pool_size_up_and_down_under_load(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=2))
    with load(world, tenant, 8, sql="select pg_sleep(0.01)"):
        for size in (5, 1, 3):
            world.registry.set_tenant(tenant.slug, limits=Limits(pool_size=size))
            soon(partial(holds, tenant.database, size), f"pool_size {size} in force")
    world.wait_for_rest(tenant)


def test_idle_backends_above_a_lowered_pool_size_are_closed(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=4))
    clients = [login(world.proxy, tenant) for _ in range(4)]
    for client in clients:
        client.rows("begin")
    for client in clients:
        client.rows("commit")
    assert tenant.database.backends() == 4
    world.registry.set_tenant(tenant.slug, limits=Limits(pool_size=1))
    soon(lambda: tenant.database.backends() == 1, "a smaller pool")
    for client in clients:
        assert client.rows("select 1") == [("1",)]
        client.close()


def test_a_tenant_that_was_asked_for_too_early_is_found_once_it_exists(world: World, pg18: ServerFacts) -> None:
    database = world.database(pg18)
    for _ in range(3):
        assert refuses(world.proxy.url("newcomer", "app", "guess"))
        assert refuses(world.proxy.url(database.name, "app", "guess"))
    tenant = world.registry.add_tenant("newcomer", database)
    soon(partial(leads_to, world.url(tenant), database), "the new tenant")
    assert told(world.proxy.url(database.name, tenant.user, tenant.password)) == "1"


def test_an_alias_comes_and_goes(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    by_alias = world.proxy.url("other-name", tenant.user, tenant.password)
    assert refuses(by_alias)
    with psycopg.connect(world.url(tenant), autocommit=True) as connected:
        world.registry.set_tenant(tenant.slug, aliases=("other-name",))
        soon(lambda: told(by_alias) == "1", "the alias")
        world.registry.set_tenant(tenant.slug, aliases=())
        soon(lambda: told(by_alias) != "1", "the alias's end")
        assert connected.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("end", ["suspended", "removed"])
def test_a_tenant_that_is_not_served_any_more(end: str, world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed="create table t (a int)")
    with (
        psycopg.connect(world.url(tenant), autocommit=True) as idle,
        login(world.proxy, tenant) as in_transaction,
    ):
        idle.execute("select 1")
        in_transaction.rows("begin")
        in_transaction.rows("insert into t values (1)")
        if end == "suspended":
            world.registry.do(lambda service: service.suspend_tenant(tenant.slug))
            said = f'tenant "{tenant.slug}" is suspended'
        else:
            world.registry.do(lambda service: service.remove_tenant(tenant.slug))
            said = f'password authentication failed for user "{tenant.user}"'
        soon(lambda: told(world.url(tenant)) == said, f"a {end} tenant")
        with pytest.raises(psycopg.OperationalError) as caught:
            idle.execute("select 1")
        assert caught.value.sqlstate in {"57P03", "57P01"}
        assert end in str(caught.value)
        in_transaction.rows("insert into t values (2)")
        in_transaction.rows("commit")
        # libpq takes an error that it reads together with the end of a command for a notice.
        (farewell,) = in_transaction.read_to_end()
        assert farewell.fields["C"] in {"57P03", "57P01"}
        assert end in farewell.fields["M"]
    assert tenant.database.psql("select count(*) from t") == "2", "the transaction in flight ended where it began"
    soon(lambda: tenant.database.backends() == 0, "no backend of a tenant that is not served")
    if end == "suspended":
        world.registry.do(lambda service: service.resume_tenant(tenant.slug))
        soon(lambda: told(world.url(tenant)) == "1", "the tenant served again")


def test_a_wrong_password_does_not_tell_that_a_tenant_is_suspended(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    world.registry.do(lambda service: service.suspend_tenant(tenant.slug))
    soon(lambda: "suspended" in told(world.url(tenant)), "suspension")
    assert refuses(world.proxy.url(tenant.slug, tenant.user, "guess"))


def test_a_rotated_password_is_in_force_and_sessions_go_on(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    with psycopg.connect(world.url(tenant), autocommit=True) as connected:
        fresh = world.registry.do(lambda service: service.rotate_login(tenant.user, tenant.slug)).reveal()
        soon(partial(refuses, world.url(tenant)), "the end of the old password")
        assert told(world.proxy.url(tenant.slug, tenant.user, fresh)) == "1"
        assert connected.execute("select 1").fetchone() == (1,)


def test_a_removed_login_and_one_for_everybody(world: World, pg18: ServerFacts, pg17: ServerFacts) -> None:
    tenants = [world.tenant(server) for server in (pg18, pg17)]
    urls = [world.proxy.url(tenant.slug, "support", "let me help") for tenant in tenants]
    assert all(refuses(url) for url in urls)
    world.registry.do(lambda service: service.add_login("support", None, LoginChange(Secret("let me help"))))
    for url, tenant in zip(urls, tenants, strict=True):
        soon(partial(leads_to, url, tenant.database), "support")
    world.registry.do(lambda service: service.remove_login("support", None))
    for url in urls:
        soon(partial(refuses, url), "the end of support")
    assert [told(world.url(tenant)) for tenant in tenants] == ["1", "1"]


def test_pool_mode_and_role_change_for_those_who_connect_next(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    other_role = world.database(pg18)
    show = "select current_user"
    with login(world.proxy, tenant) as connected:
        assert connected.rows(show) == [(tenant.database.role,)]
        world.registry.set_tenant(
            tenant.slug, **{**world.registry.place(other_role), "database_name": tenant.database.name}
        )
        soon(lambda: told(world.url(tenant), show) == other_role.role, "another role")
        assert connected.rows(show) == [(other_role.role,)], "between transactions a client is moved without noticing"
        world.registry.set_tenant(tenant.slug, pool_mode=PoolMode.SESSION)
        soon(lambda: is_in_session_mode(world, tenant), "session mode")


def is_in_session_mode(world: World, tenant: TenantUnderTest) -> bool:
    with login(world.proxy, tenant) as client:
        client.rows("select 1")
        return world.backends(tenant, state="active") == 1


async def test_repoint_back_and_forth_between_two_servers_under_load(
    world: World, pg18: ServerFacts, pg17: ServerFacts
) -> None:
    seed = "create table t (a serial, client int)"
    places = [await asyncio.to_thread(world.database, server, seed=seed) for server in (pg18, pg17)]
    tenant = await asyncio.to_thread(world.tenant, pg18, database=places[0])
    done = threading.Event()

    def work(number: int) -> int:
        count = 0
        with psycopg.connect(world.url(tenant), prepare_threshold=None) as connection:
            while not done.is_set():
                with connection.transaction():
                    here = connection.execute("select current_database()").fetchone()
                    connection.execute("insert into t (client) values (%s)", [number])
                    assert connection.execute("select current_database()").fetchone() == here
                count += 1
        return count

    with ThreadPoolExecutor(6) as pool:
        working = [pool.submit(work, number) for number in range(6)]
        try:
            for place in (places[1], places[0], places[1]):
                await asyncio.to_thread(world.registry.repoint, tenant.slug, place)
                await asyncio.to_thread(soon, partial(leads_to, world.url(tenant), place), "the new place")
        finally:
            done.set()
        total = sum(job.result() for job in working)
    counts = [int(place.psql("select count(*) from t")) for place in places]
    assert sum(counts) == total, "every transaction is committed once, in one of the places"
    assert all(counts)
    soon(lambda: places[0].backends() == 0, "no backend in the place that was left")


def test_a_server_that_moves_to_another_address_takes_its_tenants_along(
    world: World, pg18: ServerFacts, pg17: ServerFacts
) -> None:
    tenant = world.tenant(pg18)
    twin = world.database(pg17, tenant.database.name)
    pg17.psql(
        f"alter database {twin.name} rename to {tenant.database.name};"
        f"create role {tenant.database.role} login password '{tenant.database.password}'"
    )
    try:
        world.registry.do(lambda service: service.add_server("moving", address_of(pg18)))
        world.registry.set_tenant(tenant.slug, server="moving")
        soon(lambda: told(world.url(tenant), "show port") == str(pg18.port), "the first address")
        with login(world.proxy, tenant) as connected:
            assert connected.rows("show port") == [(str(pg18.port),)]
            world.registry.do(lambda service: service.set_server("moving", address_of(pg17)))
            soon(lambda: connected.rows("show port") == [(str(pg17.port),)], "the second address")
    finally:
        pg17.psql(f"drop database {tenant.database.name} with (force)")
        pg17.psql(f"drop role {tenant.database.role}")


def address_of(server: ServerFacts) -> ServerChange:
    return ServerChange(addresses=(Address(server.host, server.port),))


@pytest.mark.parametrize("how", ["SIGHUP", "POST /reload"])
def test_a_reload_brings_changes_at_once(
    how: str,
    pg18: ServerFacts,
    make_database: Callable[..., Database],
    registry: RegistryUnderTest,
    start_proxy: Callable[..., ProxyProcess],
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    proxy = start_proxy(registry={"poll_interval": 60})
    url = proxy.url_of(tenant)
    with psycopg.connect(url, autocommit=True) as connected:
        registry.add_tenant("globex", make_database(pg18))
        registry.set_tenant("acme", limits=Limits(max_clients=1))
        time.sleep(0.2)
        assert told(url) == "1", "nobody has told the proxy yet"
        if how == "SIGHUP":
            proxy.send_signal(signal.SIGHUP)
        else:
            assert proxy.http("POST", "/reload")[0] == 401
            assert proxy.http("POST", "/reload", headers={"Authorization": "Bearer guess"})[0] == 401
            assert told(url) == "1"
            status, body = proxy.http("POST", "/reload", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
            assert status == 200, body
            assert "registry_version" in body
        soon(lambda: told(url).startswith("too many connections"), "the new limit")
        assert connected.execute("select 1").fetchone() == (1,)
