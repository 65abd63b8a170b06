"""What fails and what changes while clients are connected."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import psycopg
import pytest
from harness.databases import Database
from harness.proxy import ProxyProcess
from harness.registries import RegistryUnderTest
from harness.waiting import wait_until

from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts
from registry.contract import Limits

MakeDatabase = Callable[..., Database]
StartProxy = Callable[..., ProxyProcess]

IN_FORCE = 1.0
"""Seconds within which a change of the registry is in force."""


def within(seconds: float, condition: Callable[[], bool], what: str) -> None:
    started = time.monotonic()
    wait_until(condition, what=what)
    assert time.monotonic() - started < seconds, f"{what} took too long"


def sqlstate_of(url: str, sql: str = "select 1") -> str | None:
    """The SQLSTATE with which connecting or running fails; None if it works."""
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql)
    except psycopg.Error as error:
        text = str(error)
        for state, words in {"57P03": ("suspended", "cannot be reached", "registry"), "28P01": ("password",)}.items():
            if any(word in text for word in words):
                return state
        return error.sqlstate or text
    return None


def test_backend_killed_while_idle_is_not_noticed_by_anybody(
    any_pg: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    database = make_database(any_pg)
    tenant = registry.add_tenant("acme", database)
    proxy = start_proxy()
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connection:
        connection.execute("select 1")
        assert database.terminate_backends() == 1
        wait_until(lambda: proxy.metric("pgtenant_backends", tenant="acme") == 0, what="the loss seen")
        assert connection.execute("select 2").fetchone() == (2,)


def test_backend_killed_in_a_query_tells_its_client_in_postgresqls_words(
    any_pg: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    database = make_database(any_pg)
    tenant = registry.add_tenant("acme", database)
    proxy = start_proxy()
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connection:
        killer = threading.Thread(
            target=lambda: wait_until(
                lambda: database.terminate_backends("state = 'active' and query like '%pg_sleep%'") == 1, what="a kill"
            )
        )
        killer.start()
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("select pg_sleep(20)")
        killer.join()
    assert sqlstate_of(proxy.url_of(tenant)) is None


def test_server_that_is_down_is_said_at_once_and_used_again_when_it_is_back(
    own_server: Callable[..., EmbeddedServer],
    make_database: MakeDatabase,
    registry: RegistryUnderTest,
    start_proxy: StartProxy,
) -> None:
    server = own_server(18)
    database = make_database(server.facts)
    tenant = registry.add_tenant("acme", database)
    proxy = start_proxy(pool={"retry_most": 0.5})
    with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connection:
        connection.execute("select 1")
        server.kill()
        with pytest.raises(psycopg.Error):
            connection.execute("select 1")
    wait_until(lambda: sqlstate_of(proxy.url_of(tenant)) == "57P03", what="a clear refusal")
    started = time.monotonic()
    assert sqlstate_of(proxy.url_of(tenant)) == "57P03"
    assert time.monotonic() - started < 5
    server.restart()
    wait_until(lambda: sqlstate_of(proxy.url_of(tenant)) is None, what="service again")


async def test_repoint_under_load_shows_no_error_to_anybody(
    pg18: ServerFacts,
    pg17: ServerFacts,
    make_database: MakeDatabase,
    registry: RegistryUnderTest,
    start_proxy: StartProxy,
) -> None:
    old, new = make_database(pg18, "old"), make_database(pg17, "new")
    tenant = registry.add_tenant("acme", old)
    proxy = start_proxy(pool={"pool_size": 3})
    stop = asyncio.Event()

    async def client() -> list[str]:
        seen: list[str] = []
        connection = await asyncpg.connect(proxy.url_of(tenant), statement_cache_size=0)
        while not stop.is_set():
            async with connection.transaction():
                first = await connection.fetchval("select current_database()")
                await asyncio.sleep(0)
                assert await connection.fetchval("select current_database()") == first
            seen.append(first)
        await connection.close()
        return seen

    clients = [asyncio.create_task(client()) for _ in range(6)]
    await asyncio.sleep(0.3)
    await asyncio.to_thread(registry.repoint, "acme", new)
    await asyncio.sleep(IN_FORCE)
    stop.set()
    for seen in await asyncio.gather(*clients):
        assert seen[0] == old.name
        assert seen[-1] == new.name
        assert seen == sorted(seen, key=lambda name: name == new.name), "went back to the old database"
    assert proxy.metric("pgtenant_internal_errors_total") == 0
    assert await asyncio.to_thread(old.backends) == 0


def test_changes_of_the_registry_are_in_force_within_a_second_and_drop_nobody_else(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    acme = registry.add_tenant("acme", make_database(pg18))
    globex = registry.add_tenant("globex", make_database(pg18))
    proxy = start_proxy()
    assert sqlstate_of(proxy.url("initech", "app", "x")) == "28P01"
    with psycopg.connect(proxy.url_of(globex), autocommit=True) as unaffected:
        unaffected.execute("select 1")
        registry.do(lambda service: service.suspend_tenant("acme"))
        within(IN_FORCE, lambda: sqlstate_of(proxy.url_of(acme)) == "57P03", "suspension")
        registry.do(lambda service: service.resume_tenant("acme"))
        within(IN_FORCE, lambda: sqlstate_of(proxy.url_of(acme)) is None, "resumption")
        fresh = registry.do(lambda service: service.rotate_login(acme.user, "acme")).reveal()
        within(IN_FORCE, lambda: sqlstate_of(proxy.url_of(acme)) == "28P01", "the old password's end")
        assert sqlstate_of(proxy.url("acme", acme.user, fresh)) is None
        initech = registry.add_tenant("initech", make_database(pg18))
        within(IN_FORCE, lambda: sqlstate_of(proxy.url_of(initech)) is None, "a new tenant")
        registry.set_tenant("globex", limits=Limits(max_clients=1))
        within(IN_FORCE, lambda: sqlstate_of(proxy.url_of(globex)) is not None, "a lowered limit")
        assert unaffected.execute("select 1").fetchone() == (1,)


def test_known_tenants_are_served_while_the_registry_is_away(
    pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest, start_proxy: StartProxy
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    proxy = start_proxy()
    assert sqlstate_of(proxy.url_of(tenant)) is None
    path = Path(registry.url.removeprefix("sqlite:///"))
    hidden = path.with_suffix(".away")
    path.rename(hidden)
    wait_until(lambda: proxy.metric("pgtenant_registry_up") == 0, what="the loss noticed")
    assert sqlstate_of(proxy.url_of(tenant)) is None
    assert sqlstate_of(proxy.url("unknown", "app", "x")) == "57P03"
    hidden.rename(path)
    wait_until(lambda: proxy.metric("pgtenant_registry_up") == 1, what="the registry back")
    assert sqlstate_of(proxy.url("unknown", "app", "x")) == "28P01"
