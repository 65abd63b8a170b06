"""pg_dump and pg_restore through the proxy: what is restored is what was dumped, in both pool modes."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.process import output
from harness.registries import TenantUnderTest
from harness.world import World

from proxy.demo.facts import ServerFacts, clean_environment
from registry.contract import PoolMode

PROXY = {"pool": {"pool_size": 6}}
SEED = """
create schema shop;
create type shop.mood as enum ('good', 'bad');
create table shop.items (id serial primary key, name text not null, mood shop.mood default 'good', image bytea);
create index on shop.items (name);
insert into shop.items (name, image) select 'item ' || g, decode(repeat(md5(g::text), 8), 'hex')
from generate_series(1, 2000) g;
create table shop.sales (id serial primary key, item int references shop.items, at timestamptz default '2026-01-01');
insert into shop.sales (item) select 1 + g % 2000 from generate_series(1, 5000) g;
create view shop.sold as select name, count(*) as sold from shop.items i join shop.sales s on s.item = i.id group by 1;
create function shop.twice(n int) returns int language sql as 'select 2 * n';
create materialized view shop.totals as select count(*) as n from shop.sales;
select lo_from_bytea(0, 'a large object');
"""
CONTENT = """
select (select md5(string_agg(i::text, ',' order by id)) from shop.items i),
(select count(*) from shop.sales), (select sum(sold) from shop.sold), shop.twice(21), (select n from shop.totals),
(select string_agg(indexdef, ',' order by indexdef) from pg_indexes where schemaname = 'shop'),
(select string_agg(conname, ',' order by conname) from pg_constraint where connamespace = 'shop'::regnamespace
 and contype <> 'n'), (select convert_from(lo_get(oid), 'UTF8') from pg_largeobject_metadata)
"""


def run(server: ServerFacts, name: str, *arguments: str) -> None:
    output([server.bin_dir / name, *arguments], env=clean_environment())


@pytest.fixture(scope="module")
def shop(world: World, pg18: ServerFacts) -> TenantUnderTest:
    """Something to dump."""
    return world.tenant(pg18, seed=SEED)


@pytest.mark.parametrize("mode", [PoolMode.TRANSACTION, PoolMode.SESSION])
@pytest.mark.parametrize(
    ("dump", "restore"),
    [(["-Fc"], []), (["-Fd", "-j", "2"], ["-j", "2"]), (["-Ft", "--serializable-deferrable"], ["-1"])],
    ids=["custom", "directory by two", "tar in one transaction"],
)
def test_what_is_restored_is_what_was_dumped(
    mode: PoolMode,
    dump: list[str],
    restore: list[str],
    world: World,
    shop: TenantUnderTest,
    pg18: ServerFacts,
    tmp_path: Path,
) -> None:
    world.registry.set_tenant(shop.slug, pool_mode=mode)
    copy = world.tenant(pg18, pool_mode=mode)
    file = str(tmp_path / "dump")
    run(pg18, "pg_dump", "-d", world.url(shop), *dump, "-f", file)
    run(pg18, "pg_restore", "-d", world.url(copy), "--no-owner", "--exit-on-error", *restore, file)
    assert copy.database.psql(CONTENT) == shop.database.psql(CONTENT)
    world.wait_for_rest(copy)


def test_a_plain_dump_goes_from_one_server_to_another_through_psql(
    world: World, shop: TenantUnderTest, pg17: ServerFacts, pg18: ServerFacts, tmp_path: Path
) -> None:
    other = world.tenant(pg17)
    file = tmp_path / "dump.sql"
    run(pg18, "pg_dump", "-d", world.url(shop), "--inserts", "--rows-per-insert=100", "--no-owner", "-f", str(file))
    run(pg18, "psql", "-d", world.url(other), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(file))
    assert other.database.psql(CONTENT) == shop.database.psql(CONTENT)
    world.wait_for_rest(other)
