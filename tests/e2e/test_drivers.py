"""Drivers and PostgreSQL's own programs through the proxy, many tenants at once, on both servers."""

from __future__ import annotations

import asyncio
import io
import random
from pathlib import Path

import asyncpg
import psycopg
import pytest
from harness.disasters import SEED, leftovers
from harness.process import output
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts, clean_environment
from registry.contract import Limits, PoolMode

PROXY = {"pool": {"pool_size": 3}}
POOL_SIZE = 3
TASKS = 6
TURNS = 50


def program(server: ServerFacts, name: str, *arguments: str, stdin: str = "") -> str:
    """Run one of PostgreSQL's programs and return its standard output."""
    return output([server.bin_dir / name, *arguments], text=stdin, env=clean_environment())


async def turn(connection: asyncpg.Connection, own: str, chance: random.Random, mark: str) -> None:
    """One transaction of a random kind; every row that is read must be the tenant's own."""
    kind = chance.randrange(7)
    number = chance.randint(1, 200)
    if kind == 0:
        assert await connection.fetchval("select slug from mine where id = $1", number) == own
    elif kind == 1:
        async with connection.transaction():
            await connection.execute("update mine set note = $1 where id = $2", mark, number)
            row = await connection.fetchrow("select slug, note from mine where id = $1", number)
            assert tuple(row or ()) == (own, mark)
    elif kind == 2:
        async with connection.transaction(readonly=True):
            slugs = [row["slug"] async for row in connection.cursor("select slug from mine order by id", prefetch=7)]
        assert slugs == [own] * 200
    elif kind == 3:
        out = io.BytesIO()
        await connection.copy_from_query("select slug from mine", output=out)
        assert set(out.getvalue().decode().split()) == {own}
    elif kind == 4:
        async with connection.transaction():
            await connection.execute("create temp table mine_too (like mine) on commit drop")
            await connection.copy_records_to_table("mine_too", records=[(n, own, mark) for n in range(50)])
            rows = await connection.fetch("select slug from mine join mine_too using (slug) limit 10")
        assert {row["slug"] for row in rows} == {own}
    elif kind == 5:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("select id / (id - id) from mine where slug = $1", own)
    else:
        with pytest.raises(asyncpg.UniqueViolationError):
            await fail_in_the_middle(connection, own, number)


async def fail_in_the_middle(connection: asyncpg.Connection, own: str, number: int) -> None:
    async with connection.transaction():
        await connection.execute("update mine set note = 'dirty' where id = $1", number)
        await connection.execute("insert into mine values ($1, $2)", number, own)


@pytest.mark.parametrize("cache_size", [0, 100], ids=["unnamed statements", "named statements"])
async def test_asyncpg_reads_only_its_own_tenants_rows(
    cache_size: int, world: World, pg18: ServerFacts, pg17: ServerFacts
) -> None:
    tenants = [
        await asyncio.to_thread(world.tenant, server, seed=SEED, limits=Limits(pool_size=POOL_SIZE, max_clients=50))
        for server in (pg18, pg18, pg17, pg17)
    ]

    async def application(tenant: TenantUnderTest, seed: int) -> None:
        chance = random.Random(seed)
        for session in range(2):
            # Named statements keep a backend, so these applications disconnect to let the others in.
            connection = await asyncpg.connect(world.url(tenant), statement_cache_size=cache_size, ssl=False)
            try:
                for number in range(TURNS // 2):
                    await turn(connection, tenant.database.name, chance, f"{seed}.{session}.{number}")
            finally:
                await connection.close()

    await asyncio.gather(
        *(application(tenant, seed * 10 + n) for seed in range(TASKS) for n, tenant in enumerate(tenants))
    )
    for tenant in tenants:
        await asyncio.to_thread(world.wait_for_rest, tenant)
        assert await asyncio.to_thread(leftovers, world.proxy, tenant, POOL_SIZE) == set()


async def test_a_pool_of_asyncpg_works_as_on_postgresql_itself(world: World, pg17: ServerFacts) -> None:
    tenant = await asyncio.to_thread(world.tenant, pg17, seed=SEED, pool_mode=PoolMode.SESSION)
    async with asyncpg.create_pool(world.url(tenant), min_size=1, max_size=3, ssl=False) as pool:

        async def ask(number: int) -> int:
            async with pool.acquire() as connection:
                await connection.execute("set my.number = 'x'")
                return int(await connection.fetchval("select id from mine where id = $1", number))

        assert await asyncio.gather(*(ask(n) for n in range(1, 40))) == list(range(1, 40))


def test_psycopg_with_prepared_statements_is_kept_apart(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, seed=SEED, limits=Limits(pool_size=2))
    for _ in range(3):
        with (
            psycopg.connect(world.url(tenant), autocommit=True, prepare_threshold=1) as first,
            psycopg.connect(world.url(tenant), autocommit=True, prepare_threshold=1) as second,
        ):
            for number in range(1, 12):
                found = first.execute("select id from mine where id = %s", [number]).fetchone()
                assert found == (number,)
                other = second.execute("select id * 2, slug from mine where id = %s", [number]).fetchone()
                assert other == (number * 2, tenant.database.name)
    assert leftovers(world.proxy, tenant, 2) == set()


def test_psycopg_with_a_server_side_cursor_and_binary_copy(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, seed=SEED, limits=Limits(pool_size=1))
    with psycopg.connect(world.url(tenant)) as connection:
        with connection.cursor("named") as cursor:
            cursor.itersize = 10
            cursor.execute("select id from mine order by id")
            assert [row[0] for row in cursor] == list(range(1, 201))
        connection.commit()
        with connection.cursor() as cursor:
            with cursor.copy("copy mine (id, slug) from stdin (format binary)") as copy:
                copy.set_types(["int4", "text"])
                for number in range(1000, 6000):
                    copy.write_row((number, "z" * 100))
            cursor.execute("select count(*) from mine")
            assert cursor.fetchone() == (5200,)
        connection.rollback()
        assert connection.execute("select count(*) from mine").fetchone() == (200,)


def test_psql_runs_scripts_and_copies(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, seed=SEED)
    script = r"""
\set ON_ERROR_STOP 1
begin;
create table copied (a int, b text);
\copy copied from program 'seq -f "%g,row" 5000' (format csv)
commit;
select count(*), min(b) from copied \gset
\echo :count :min
select $$multiple$$ \; select 1/1 as statements;
\d copied
select id from mine where id = $1 \bind 77 \g
"""
    out = program(any_pg, "psql", "-X", "-A", "-t", world.url(tenant), stdin=script)
    lines = out.splitlines()
    assert "5000 row" in lines
    assert lines[-1] == "77"
    assert program(any_pg, "psql", "-X", "-A", "-t", "-c", "select slug from mine limit 1", world.url(tenant)) == (
        f"{tenant.database.name}\n"
    )


@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
def test_pgbench_keeps_its_books_balanced(protocol: str, world: World, any_pg: ServerFacts) -> None:
    clients, size = 6, 2
    tenant = world.tenant(any_pg, limits=Limits(pool_size=size))
    program(any_pg, "pgbench", "-i", "-q", "-s", "1", world.url(tenant))
    # A thread each: preparing holds up all clients of a thread, one of which may have the backend that it waits for.
    load = ["-c", str(clients), "-j", str(clients), "-t", "40"]
    program(any_pg, "pgbench", "-n", "-M", protocol, *load, world.url(tenant))
    sums = tenant.database.psql(
        "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),"
        " (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history),"
        " (select count(*) from pgbench_history)"
    )
    assert sums == f"t|t|{clients * 40}"
    wait_until(lambda: world.clients(tenant) == 0, what="pgbench gone")
    assert tenant.database.backends() <= size


def test_pg_dump_and_restore_in_session_mode(world: World, pg18: ServerFacts, tmp_path: Path) -> None:
    tenant = world.tenant(pg18, seed=SEED, pool_mode=PoolMode.SESSION)
    other = world.tenant(pg18)
    script = program(pg18, "pg_dump", "--no-owner", world.url(tenant))
    file = tmp_path / "dump.sql"
    file.write_text(script)
    program(pg18, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(file), world.url(other))
    assert other.database.psql("select count(*), min(slug) from mine") == f"200|{tenant.database.name}"


def test_a_value_of_many_megabytes_goes_both_ways(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg)
    value = b"\0\xff" * (16 << 20)
    with psycopg.connect(world.url(tenant), autocommit=True) as connection:
        got = connection.execute("select %b::bytea", [value], binary=True).fetchone()
        assert got is not None
        assert got[0] == value
        wide = connection.execute("select " + ", ".join(f"{n} as c{n}" for n in range(1600))).fetchone()
        assert wide == tuple(range(1600))
