"""Time limits of tenants: each with its SQLSTATE and hint, nothing left behind, and in force while sessions go on."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from harness.databases import Database
from harness.disasters import DISASTERS, SEED, leftovers, login
from harness.rawclient import Message, RawClient, bind, execute, parse, query, sync
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Address, Limits, PoolMode

PROXY = {"pool": {"pool_size": 2, "idle_transaction_timeout": 0.5}}
SOON = 2.5
"""Seconds: the limit itself, less than one until it is in force, and a good one for a busy machine."""


@pytest.fixture
def unresponsive(world: World, pg18: ServerFacts) -> Iterator[TenantUnderTest]:
    """A tenant whose server takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        name = f"silent{port}"
        world.registry.add_server(pg18, name, addresses=(Address("127.0.0.1", port),))
        yield world.registry.add_tenant(name, Database(pg18, "fake", "fake", "no secret"), server=name)


def counted(world: World, limit: str) -> int:
    return int(world.proxy.metric("pgtenant_timeouts_total", limit=limit))


def last_error(messages: list[Message]) -> dict[str, str]:
    """The fields of the error, and the warnings before it under `W`."""
    errors = [message.fields for message in messages if message.kind == "E"]
    assert len(errors) == 1, [message.kind for message in messages]
    return {**errors[0], "W": " ".join(message.fields["M"] for message in messages if message.kind == "N")}


def ends(client: RawClient, sqlstate: str, setting: str) -> None:
    """The session ends with this error, which names the setting, and nothing after it."""
    messages = client.read_to_end()
    error = last_error(messages)
    assert messages[-1].kind == "E"
    assert (error["C"], error["S"]) == (sqlstate, "FATAL")
    assert setting in error["M"]
    assert setting in error["H"]


def test_a_query_is_cancelled_and_the_session_lives_on(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, limits=Limits(query_timeout=0.3))
    before = counted(world, "query_timeout")
    with login(world.proxy, tenant) as client:
        started = time.monotonic()
        error = last_error(client.query("select pg_sleep(30)"))
        assert (error["C"], error["S"]) == ("57014", "ERROR")
        assert "query_timeout" in error["W"]
        assert 0.3 <= time.monotonic() - started < 3
        assert client.rows("select 1") == [("1",)]
        client.rows("begin")
        error = last_error(client.query("select pg_sleep(30)"))
        assert error["C"] == "57014"
        assert client.query("rollback")[-1].text == "I"
    assert counted(world, "query_timeout") == before + 2
    world.wait_for_rest(tenant)


def test_a_pipeline_is_cancelled_up_to_its_sync(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=SEED, limits=Limits(query_timeout=0.3, pool_size=1))
    with login(world.proxy, tenant) as client:
        client.send(parse("select pg_sleep(30)"), bind(), execute(), parse("select 1"), bind(), execute(), sync())
        client.send(query("select 7"))
        messages = client.read_until("Z") + client.read_until("Z")
        assert last_error(messages)["C"] == "57014"
        assert [message.row for message in messages if message.kind == "D"] == [("7",)]
    assert leftovers(world.proxy, tenant, 1) == set()


def test_short_requests_are_not_disturbed(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(query_timeout=0.8, idle_transaction_timeout=0.8, client_idle_timeout=0.8))
    with psycopg.connect(world.url(tenant)) as connection:
        until = time.monotonic() + 1.8
        while time.monotonic() < until:
            connection.execute("select pg_sleep(0.05)")
            if time.monotonic() * 10 % 5 < 1:
                connection.commit()


@pytest.mark.parametrize("mode", [PoolMode.TRANSACTION, PoolMode.SESSION])
def test_a_transaction_that_lasts_too_long_ends_its_session(mode: PoolMode, world: World, pg18: ServerFacts) -> None:
    limits = Limits(transaction_timeout=0.9, idle_transaction_timeout=0, pool_size=1)
    tenant = world.tenant(pg18, seed=SEED, pool_mode=mode, limits=limits)
    with login(world.proxy, tenant) as client:
        for _ in range(11):
            client.rows("begin")
            client.rows("select pg_sleep(0.1)")
            client.rows("commit")
        client.rows("begin")
        client.rows("update mine set note = 'dirty' where id = 1")
        client.send(query("select pg_sleep(30)"))
        ends(client, "25P04", "transaction_timeout")
    wait_until(lambda: tenant.database.backends("state <> 'idle'") == 0, seconds=SOON, what="the query cancelled")
    assert leftovers(world.proxy, tenant, 1) == set()
    world.wait_for_rest(tenant)


IDLE = {
    name: DISASTERS[name]
    for name in (
        "an open transaction",
        "a failed transaction",
        "half a query in a transaction",
        "a pipeline without its end",
        "an open portal",
    )
}


@pytest.mark.parametrize("doing", IDLE)
def test_a_transaction_left_idle_ends_its_session(doing: str, world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=SEED, limits=Limits(pool_size=1))
    before = counted(world, "idle_transaction_timeout")
    with login(world.proxy, tenant) as client:
        client.send(*IDLE[doing])
        messages = client.read_to_end()
        assert [message.fields["C"] for message in messages if message.kind == "E"][-1] == "25P03"
    assert leftovers(world.proxy, tenant, 1) == set()
    assert counted(world, "idle_transaction_timeout") == before + 1, "the node's own limit, as the tenant has none"
    world.wait_for_rest(tenant)


def test_a_client_that_does_nothing_is_told_so(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=SEED, limits=Limits(client_idle_timeout=0.8))
    with login(world.proxy, tenant) as silent, login(world.proxy, tenant) as pinned, login(world.proxy, tenant) as busy:
        silent.rows("select 1")
        pinned.rows("create temp table leftover (a int)")
        until = time.monotonic() + 1.4
        while time.monotonic() < until:
            assert busy.rows("select 1") == [("1",)]
            time.sleep(0.1)
        ends(silent, "57P05", "client_idle_timeout")
        ends(pinned, "57P05", "client_idle_timeout")
        ends(busy, "57P05", "client_idle_timeout")
    assert leftovers(world.proxy, tenant, 2) == set()
    world.wait_for_rest(tenant)


def test_who_listens_is_not_idle(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, limits=Limits(client_idle_timeout=0.4))
    with login(world.proxy, tenant) as listener, login(world.proxy, tenant) as silent:
        listener.rows("listen news")
        ends(silent, "57P05", "client_idle_timeout")
        time.sleep(0.5)
        tenant.database.psql("notify news")
        assert listener.read().kind == "A"
        listener.rows("unlisten *")


def test_who_waits_in_the_queue_is_not_idle_and_its_query_has_not_begun(world: World, pg18: ServerFacts) -> None:
    limits = Limits(pool_size=1, client_idle_timeout=0.4, query_timeout=0.4, idle_transaction_timeout=0)
    tenant = world.tenant(pg18, limits=limits)
    with login(world.proxy, tenant) as holder, login(world.proxy, tenant) as waiter:
        holder.rows("begin")
        waiter.send(query("select 1"))
        time.sleep(1.0)
        holder.rows("commit")
        assert [message.kind for message in waiter.read_until("Z")] == ["T", "D", "C", "Z"]


@pytest.mark.parametrize(
    ("limit", "under_way", "sqlstate"),
    [
        ("query_timeout", [query("select pg_sleep(30)")], "57014"),
        ("transaction_timeout", [query("begin; select pg_sleep(30)")], "25P04"),
        ("idle_transaction_timeout", [query("begin")], "25P03"),
        ("client_idle_timeout", [query("select 1")], "57P05"),
    ],
)
def test_a_limit_that_changes_is_in_force_for_those_who_are_there(
    limit: str, under_way: list[bytes], sqlstate: str, world: World, pg17: ServerFacts
) -> None:
    given: dict[str, Any] = {"idle_transaction_timeout": 0, limit: 60.0}
    tenant = world.tenant(pg17, limits=Limits(**given))
    with login(world.proxy, tenant) as client:
        client.send(*under_way)
        time.sleep(0.5)
        world.registry.set_tenant(tenant.slug, limits=Limits(**{**given, limit: 0.3}))
        client.sock.settimeout(SOON)
        message = client.read()
        while message.kind != "E":
            message = client.read()
        assert message.fields["C"] == sqlstate
    world.wait_for_rest(tenant)


def test_a_slow_reader_is_ended_though_its_server_cannot_react(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=SEED, limits=Limits(query_timeout=0.3, pool_size=1))
    with login(world.proxy, tenant) as client:
        client.send(query("select repeat('x', 1000) from generate_series(1, 100000)"))
        wait_until(lambda: world.clients(tenant) == 0, what="the end of the session")
        wait_until(lambda: tenant.database.backends("state <> 'idle'") == 0, what="the end of the query")
    assert leftovers(world.proxy, tenant, 1) == set()


def test_a_login_has_its_tenants_own_limit_once_it_is_proven(world: World, unresponsive: TenantUnderTest) -> None:
    tenant = unresponsive
    world.registry.set_tenant(tenant.slug, limits=Limits(login_timeout=0.5, connect_timeout=30.0))
    before = counted(world, "login_timeout")
    with world.proxy.connect() as client:
        started = time.monotonic()
        with pytest.raises(AssertionError, match=r"57014.*login_timeout"):
            client.login(tenant.user, tenant.password, tenant.slug)
        assert time.monotonic() - started < 3
    assert counted(world, "login_timeout") == before + 1


def test_opening_a_backend_has_its_tenants_own_limit(world: World, unresponsive: TenantUnderTest) -> None:
    tenant = unresponsive
    world.registry.set_tenant(tenant.slug, limits=Limits(connect_timeout=0.3))
    before = counted(world, "connect_timeout")
    with world.proxy.connect() as client, pytest.raises(AssertionError, match=r"57P03.*within 0\.3 s"):
        client.login(tenant.user, tenant.password, tenant.slug)
    assert counted(world, "connect_timeout") > before
