"""Live changes in detail: limits up and down, who has to leave at a move, roles, manifests, the command to reload."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from harness import process
from harness.bystander import undisturbed
from harness.databases import Database
from harness.disasters import login
from harness.proxy import ADMIN_TOKEN, ProxyProcess
from harness.rawclient import RawClient, ServerSaid, bind, execute, flush, frame, parse, query, sync
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import allowed, wait_until
from harness.world import World
from typer.testing import CliRunner, Result

from proxy.cli import make_app
from proxy.demo.facts import ServerFacts
from registry.contract import Limits, PoolMode, Secret
from registry.manifest import ManifestError
from registry.service import RegistryService
from registry.store.tables import clock

PROXY = {"pool": {"pool_size": 4}}
SOON = 1.5
"""Seconds: one within which a change is in force, and a half for the test itself to see it."""
SEED = "create table mine (name text); insert into mine values (current_database())"


def soon(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, seconds=SOON, what=what)


@pytest.fixture(scope="module", autouse=True)
def bystander(world: World, pg17: ServerFacts) -> Iterator[None]:
    with undisturbed(world.url(world.tenant(pg17))):
        yield


def told(url: str, sql: str = "select 1") -> str:
    """The error that a new client gets, or the first value of its result."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            row = connection.execute(sql.encode()).fetchone()
            return str(row[0] if row else "")
    except psycopg.Error as error:
        return str(error)


def leads_to(url: str, place: Database) -> bool:
    return told(url, "select name from mine") == place.name


def set_limits(world: World, tenant: TenantUnderTest, limits: Limits) -> None:
    """Change them and wait until the proxy says that it goes by them."""
    seen = changes(world, tenant)
    world.registry.set_tenant(tenant.slug, limits=limits)
    soon(lambda: changes(world, tenant) > seen, "the change seen")


def changes(world: World, tenant: TenantUnderTest) -> int:
    marks = ('"event": "route changed"', f'"tenant": "{tenant.slug}"')
    return sum(all(mark in line for mark in marks) for line in world.proxy.logs().splitlines())


async def version(service: RegistryService) -> int:
    async with service.transaction() as tx:
        return int((await tx.connection.execute(sa.select(clock.c.v))).scalar_one())


def test_a_larger_pool_serves_those_who_wait_already(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as holder, login(world.proxy, tenant) as waiting:
        holder.rows("begin")
        waiting.send(query("select 'served'"))
        wait_until(lambda: world.clients(tenant, state="waiting") == 1, what="a waiter")
        started = time.monotonic()
        world.registry.set_tenant(tenant.slug, limits=Limits(pool_size=2))
        assert [message.row for message in waiting.read_until() if message.kind == "D"] == [("served",)]
        assert time.monotonic() - started < allowed(SOON)
        holder.rows("commit")


def test_a_smaller_pool_lets_transactions_finish(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=3))
    clients = [login(world.proxy, tenant) for _ in range(3)]
    for client in clients:
        client.rows("begin")
    world.registry.set_tenant(tenant.slug, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as other:
        other.send(query("select 'in turn'"))
        wait_until(lambda: world.clients(tenant, state="waiting") == 1, what="a waiter")
        for client in clients:
            assert client.rows("select 1") == [("1",)]
            client.rows("commit")
        assert [message.row for message in other.read_until() if message.kind == "D"] == [("in turn",)]
    soon(lambda: tenant.database.backends() == 1, "one backend")
    for client in clients:
        assert client.rows("select 1") == [("1",)]
        client.close()


def test_more_and_fewer_clients_are_let_in(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(max_clients=1))
    with login(world.proxy, tenant) as first:
        assert "too many connections" in told(world.url(tenant))
        world.registry.set_tenant(tenant.slug, limits=Limits(max_clients=3))
        soon(lambda: told(world.url(tenant)) == "1", "room for more")
        with login(world.proxy, tenant) as second:
            world.registry.set_tenant(tenant.slug, limits=Limits(max_clients=1))
            soon(lambda: "too many connections" in told(world.url(tenant)), "room for fewer")
            assert first.rows("select 1") == second.rows("select 1") == [("1",)], "nobody is thrown out"


def test_the_time_in_the_queue_goes_down_and_up(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1, queue_wait_timeout=60.0))
    with login(world.proxy, tenant) as holder, login(world.proxy, tenant) as waiting:
        holder.rows("begin")
        set_limits(world, tenant, Limits(pool_size=1, queue_wait_timeout=0.2))
        started = time.monotonic()
        with pytest.raises(ServerSaid, match=r"53300.*within 0\.2 s"):
            waiting.rows("select 1")
        assert time.monotonic() - started < allowed(1.0)
        set_limits(world, tenant, Limits(pool_size=1, queue_wait_timeout=60.0))
        waiting.send(query("select 'patient'"))
        threading.Event().wait(0.5)
        holder.rows("commit")
        assert [message.row for message in waiting.read_until() if message.kind == "D"] == [("patient",)]


def test_the_role_of_the_backends_gets_another_password(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    done = threading.Event()
    ready = threading.Barrier(4, timeout=60)

    def work() -> None:
        with login(world.proxy, tenant) as client:
            # Nobody needs a backend more while neither password is right everywhere.
            client.rows("begin")
            ready.wait()
            client.rows("commit")
            while not done.is_set():
                assert client.rows("select 1") == [("1",)]

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(work) for _ in range(3)]
        ready.wait()
        pids = backend_pids(tenant.database)
        assert len(pids) == 3
        try:
            pg18.psql(f"alter role {tenant.database.role} password 'another secret'")
            world.registry.set_tenant(tenant.slug, role_password=Secret("another secret"))
            soon(lambda: (now := backend_pids(tenant.database)) and not now & pids, "new backends only")
        finally:
            done.set()
        for job in working:
            job.result()
    assert "another secret" not in world.proxy.logs()


def backend_pids(database: Database) -> set[str]:
    return set(database.psql(f"select pid from pg_stat_activity where usename = '{database.role}'").split())


@pytest.mark.parametrize("kind", ["a temporary table", "session mode"])
def test_a_client_that_is_bound_to_a_backend_is_told_to_leave_at_a_move(
    kind: str, world: World, pg18: ServerFacts
) -> None:
    old, new = world.database(pg18, seed=SEED), world.database(pg18, seed=SEED)
    mode = PoolMode.SESSION if kind == "session mode" else PoolMode.TRANSACTION
    tenant = world.tenant(pg18, database=old, pool_mode=mode)
    with login(world.proxy, tenant) as idle, login(world.proxy, tenant) as busy:
        for client in (idle, busy):
            client.rows("select 1")
            if kind == "a temporary table":
                client.rows("create temp table kept (a int)")
        busy.rows("begin")
        assert busy.rows("select name from mine") == [(old.name,)]
        world.registry.repoint(tenant.slug, new)
        (farewell,) = idle.read_to_end()
        assert farewell.fields["C"] == "57P01"
        assert "moved to another database" in farewell.fields["M"]
        assert busy.rows("select name from mine") == [(old.name,)]
        busy.rows("commit")
        (farewell,) = busy.read_to_end()
        assert farewell.fields["C"] == "57P01"
        assert told(world.url(tenant), "select name from mine") == new.name


def test_a_named_statement_moves_along_with_its_client(world: World, pg18: ServerFacts, pg17: ServerFacts) -> None:
    old, new = world.database(pg18, seed=SEED), world.database(pg17, seed=SEED)
    tenant = world.tenant(pg18, database=old)

    def name(client: RawClient) -> list[str | None]:
        client.send(bind(statement="kept"), execute(), sync())
        return [message.row[0] for message in client.read_until() if message.kind == "D"]

    with login(world.proxy, tenant) as client:
        client.send(parse("select name from mine", "kept"), sync())
        client.read_until()
        assert name(client) == [old.name]
        world.registry.repoint(tenant.slug, new)
        soon(lambda: name(client) == [new.name], "the move")


def test_everything_in_flight_ends_where_it_began(world: World, pg18: ServerFacts, pg17: ServerFacts) -> None:
    old, new = world.database(pg18, seed=SEED), world.database(pg17, seed=SEED)
    tenant = world.tenant(pg18, database=old)
    clients = [login(world.proxy, tenant) for _ in range(4)]
    copying, pipelining, running, waiting = clients
    copying.send(query("copy mine from stdin"), frame("d", b"copied\n"))
    copying.read_until("G")
    pipelining.send(parse("insert into mine values ('pipelined') returning current_database()"), bind(), execute())
    pipelining.send(flush())
    pipelining.read_until("C")
    running.send(query("select name from mine, pg_sleep(1)"))
    waiting.rows("begin")
    world.registry.repoint(tenant.slug, new)
    soon(lambda: told(world.url(tenant), "select name from mine") == new.name, "the move")
    copying.send(frame("d", b"copied\n"), frame("c"))
    copying.read_until()
    pipelining.send(execute(), sync())
    pipelining.read_until()
    assert [message.row for message in running.read_until() if message.kind == "D"] == [(old.name,)]
    waiting.rows("insert into mine values ('waited')")
    waiting.rows("commit")
    for client in clients:
        assert client.rows("select name from mine") == [(new.name,)], "and then goes on in the new place"
        client.close()
    found = old.psql("select string_agg(name, ',' order by name) from mine where name <> current_database()")
    assert found == "copied,copied,pipelined,waited"
    soon(lambda: old.backends() == 0, "no backend in the place that was left")


async def test_asyncpg_under_load_notices_nothing_of_a_move(world: World, pg18: ServerFacts, pg17: ServerFacts) -> None:
    places = [await asyncio.to_thread(world.database, server, seed=SEED) for server in (pg18, pg17)]
    tenant = await asyncio.to_thread(world.tenant, pg18, database=places[0])
    done = asyncio.Event()

    async def work() -> set[str]:
        seen: set[str] = set()
        connection = await asyncpg.connect(world.url(tenant), statement_cache_size=0)
        while not done.is_set():
            row = await connection.fetchrow("select name, current_database() from mine where $1::int = 1", 1)
            assert row is not None
            assert row[0] == row[1], "a row of another database"
            seen.add(row[0])
        await connection.close()
        return seen

    working = [asyncio.create_task(work()) for _ in range(4)]
    for place in (places[1], places[0], places[1]):
        await asyncio.to_thread(world.registry.repoint, tenant.slug, place)
        await asyncio.to_thread(soon, partial(leads_to, world.url(tenant), place), "the move")
    done.set()
    for job in working:
        assert await job == {place.name for place in places}


def pgtenant(registry: RegistryUnderTest, *arguments: str, **variables: str) -> Result:
    """Run the command line in this process, which is spared a start."""
    return CliRunner().invoke(make_app(), arguments, env=environment(registry) | variables)


def environment(registry: RegistryUnderTest) -> dict[str, str]:
    return {"PGTENANT_REGISTRY": registry.url, "PGTENANT_ENCRYPTION_KEYS": registry.keys, "COLUMNS": "200"}


def pgtenant_process(registry: RegistryUnderTest, *arguments: str, **variables: str) -> process.Result:
    """Run the command line as an administrator does."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PGTENANT_")}
    command = [sys.executable, "-m", "proxy", *arguments]
    env |= environment(registry) | variables
    return process.run(command, env=env)


BROKEN = {
    "no TOML": "[[tenant]\n",
    "a server that does not exist": '[[tenant]]\nslug = "newcomer"\nserver = "nowhere"\ndatabase = "x"\n',
    "a field that does not exist": '[[tenant]]\nslug = "newcomer"\ncolour = "red"\n',
    "a limit that cannot be": '[[tenant]]\nslug = "newcomer"\nlimits = { pool_size = -1 }\n',
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_manifest_changes_nothing_and_says_why(
    case: str, world: World, pg18: ServerFacts, tmp_path: Path
) -> None:
    tenant = world.tenant(pg18)
    manifest = tmp_path / "tenants.toml"
    manifest.write_text(BROKEN[case])
    before = world.registry.do(version)
    ran = pgtenant(world.registry, "registry", "apply", str(manifest))
    assert ran.exit_code != 0
    assert isinstance(ran.exception, ManifestError | SystemExit)
    assert ran.output.strip() or str(ran.exception)
    assert world.registry.do(version) == before
    assert told(world.url(tenant)) == "1"
    assert "password authentication failed" in told(world.proxy.url("newcomer", "app", "guess"))


def test_an_applied_manifest_is_in_force_at_once(world: World, pg18: ServerFacts, tmp_path: Path) -> None:
    tenant = world.tenant(pg18)
    manifest = tmp_path / "tenants.toml"
    exported = pgtenant(world.registry, "registry", "export")
    assert exported.exit_code == 0, exported.output
    assert tenant.database.password not in exported.stdout
    manifest.write_text(exported.stdout)
    assert pgtenant(world.registry, "registry", "apply", str(manifest)).exit_code == 0
    assert told(world.url(tenant)) == "1", "what was exported changes nothing"
    ran = pgtenant(world.registry, "tenant", "suspend", tenant.slug)
    assert ran.exit_code == 0, ran.output
    soon(lambda: "is suspended" in told(world.url(tenant)), "the suspension")
    assert pgtenant(world.registry, "tenant", "resume", tenant.slug).exit_code == 0
    soon(lambda: told(world.url(tenant)) == "1", "the resumption")


def test_the_command_to_reload(
    pg18: ServerFacts,
    make_database: Callable[..., Database],
    registry: RegistryUnderTest,
    start_proxy: Callable[..., ProxyProcess],
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    proxy = start_proxy(registry={"poll_interval": 60})
    assert told(proxy.url_of(tenant)) == "1"
    registry.do(lambda service: service.suspend_tenant("acme"))
    arguments = ("registry", "reload", "--http", proxy.http_url)
    refused = pgtenant(registry, *arguments, PGTENANT_ADMIN_TOKEN="guess")
    assert refused.exit_code != 0
    assert told(proxy.url_of(tenant)) == "1"
    ran = pgtenant_process(registry, *arguments, PGTENANT_ADMIN_TOKEN=ADMIN_TOKEN)
    assert ran.returncode == 0, ran.stderr
    soon(lambda: "is suspended" in told(proxy.url_of(tenant)), "the suspension")
    elsewhere = ("registry", "reload", "--http", "http://127.0.0.1:1")
    nobody = pgtenant_process(registry, *elsewhere, PGTENANT_ADMIN_TOKEN=ADMIN_TOKEN)
    assert nobody.returncode != 0
    assert "Traceback" not in nobody.stderr


def test_reloading_over_http_needs_a_token_that_is_set(registry: RegistryUnderTest, tmp_path: Path) -> None:
    registry.do(lambda service: service.tenants())
    proxy = ProxyProcess(tmp_path, registry.url, registry.keys)
    proxy.config = {**proxy.config, "http": {"host": proxy.http_host, "port": proxy.http_port}}
    with proxy:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}):
            assert proxy.http("POST", "/reload", headers=headers)[0] == 403
