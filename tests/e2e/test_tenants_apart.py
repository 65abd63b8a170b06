"""Tenants stay apart: every row read back is the tenant's own, and no backend is handed on dirty."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest
from harness.databases import Database
from harness.proxy import ProxyProcess
from harness.rawclient import bind, describe, execute, flush, parse, query, terminate
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until

from proxy.demo.facts import ServerFacts

SEED = """
create table mine (id int primary key, slug text not null, note text);
insert into mine select g, current_database(), '' from generate_series(1, 200) g;
"""
WORKERS = 6
TURNS = 250

MakeDatabase = Callable[..., Database]
StartProxy = Callable[..., ProxyProcess]


def work(proxy: ProxyProcess, tenant: TenantUnderTest, expected: str, seed: int) -> int:
    """Run transactions as one client and check every row; returns how many there were."""
    chance = random.Random(seed)
    rows = 0
    with psycopg.connect(proxy.url_of(tenant), autocommit=True, prepare_threshold=None) as connection:
        for turn in range(TURNS):
            kind = chance.randrange(4)
            if kind == 0:
                found = connection.execute("select slug from mine where id = %s", [chance.randint(1, 200)]).fetchall()
            elif kind == 1:
                with connection.transaction():
                    connection.execute("update mine set note = %s where id = %s", [f"{seed}.{turn}", turn % 200 + 1])
                    found = connection.execute("select current_database(), note from mine limit 3").fetchall()
            elif kind == 2:
                with connection.pipeline():
                    cursors = [connection.execute("select slug from mine where id = %s", [n]) for n in (1, 2, 3)]
                    found = [row for cursor in cursors for row in cursor.fetchall()]
            else:
                with connection.cursor() as cursor, cursor.copy("copy (select slug from mine) to stdout") as copy:
                    found = [tuple(row) for row in copy.rows()]
            rows += len(found)
            assert {row[0] for row in found} == {expected}
    return rows


@pytest.mark.parametrize("servers", ["one server", "two servers"])
def test_thousands_of_interleaved_transactions_read_only_the_tenants_own_rows(
    servers: str,
    pg18: ServerFacts,
    pg17: ServerFacts,
    make_database: MakeDatabase,
    registry: RegistryUnderTest,
    start_proxy: StartProxy,
) -> None:
    first = make_database(pg18, "a", seed=SEED)
    second = make_database(pg18 if servers == "one server" else pg17, "b", seed=SEED)
    tenants = [(registry.add_tenant("acme", first), first.name), (registry.add_tenant("globex", second), second.name)]
    proxy = start_proxy(pool={"pool_size": 2})
    with ThreadPoolExecutor(WORKERS) as pool:
        jobs = [pool.submit(work, proxy, *tenants[n % 2], n) for n in range(WORKERS)]
        assert sum(job.result() for job in jobs) > WORKERS * TURNS
    assert proxy.metric("pgtenant_internal_errors_total") == 0
    for database in (first, second):
        assert database.backends() <= 2


DISASTERS = (
    [query("begin; update mine set note = 'dirty' where id = 1; select pg_sleep(1)")],
    [query("begin; update mine set note = 'dirty' where id = 2"), terminate()],
    [query("create temp table leftover (a int)"), query("set search_path = pg_catalog")],
    [query("copy mine from stdin"), b"d\x00\x00\x00\x10too"],
    [query("copy (select repeat('x', 1000) from generate_series(1, 100000)) to stdout")],
    [parse("select 1 from mine")[:-3]],
    [query("begin"), parse("update mine set note = 'dirty'"), bind(), execute(), flush()],
    [
        query("begin"),
        parse("insert into mine values (-1, 'dirty')", "named"),
        bind(statement="named"),
        describe(),
        execute(),
    ],
)


def crash(proxy: ProxyProcess, tenant: TenantUnderTest, stop: threading.Event, seed: int) -> int:
    """Be a client that keeps vanishing in the middle of something; returns how often it did."""
    chance = random.Random(seed)
    crashes = 0
    while not stop.is_set():
        with proxy.connect() as client:
            client.login(tenant.user, tenant.password, tenant.slug)
            client.send(*chance.choice(DISASTERS))
            if chance.randrange(2):
                client.send(query("select 1"))
            if chance.randrange(2):
                client.reset()
            crashes += 1
    return crashes


def test_clients_killed_in_the_middle_never_dirty_a_backend(
    any_pg: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    database = make_database(any_pg, "a", seed=SEED)
    tenant = registry.add_tenant("acme", database)
    proxy = start_proxy(pool={"pool_size": 3})
    stop = threading.Event()
    with ThreadPoolExecutor(5) as pool:
        crashing = [pool.submit(crash, proxy, tenant, stop, n) for n in range(2)]
        try:
            working = [pool.submit(work, proxy, tenant, database.name, n) for n in range(3)]
            assert all(job.result() for job in working)
        finally:
            stop.set()
        assert sum(job.result() for job in crashing) > 5
    wait_until(lambda: database.backends("state <> 'idle'") == 0, what="no transaction left open")
    wait_until(lambda: proxy.metric("pgtenant_clients", tenant="acme") == 0, what="all clients gone")
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connection:
        for _ in range(6):
            assert connection.execute("select count(*) from mine where note = 'dirty'").fetchone() == (0,)
            assert connection.execute("show search_path").fetchone() == ('"$user", public',)
            assert connection.execute("select to_regclass('leftover')").fetchone() == (None,)
    assert proxy.metric("pgtenant_internal_errors_total") == 0


def test_ledger_agrees_with_what_the_server_counts(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    database = make_database(pg18, "a", seed=SEED)
    tenant = registry.add_tenant("acme", database)
    proxy = start_proxy(pool={"pool_size": 4})
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(psycopg.connect(proxy.url_of(tenant))).execute("select 1")
        assert database.backends() == 4 == proxy.metric("pgtenant_backends", tenant="acme")
        assert proxy.metric("pgtenant_backends", tenant="acme", state="active") == 4
    wait_until(lambda: proxy.metric("pgtenant_backends", tenant="acme") == database.backends(), what="equal counts")
