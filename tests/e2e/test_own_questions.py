"""What the proxy asks a server for itself takes nothing from the client, and the client's settings do not stop it."""

from __future__ import annotations

import pytest
from harness.disasters import SEED, leftovers, login
from harness.rawclient import RawClient, bind, execute, parse, query, sync
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

LONG = "select current_setting('app.tenant') /* " + "x" * 9000 + " */"
ESCAPED_CALL = """select u&"\\0073et_config"('search_path', 'pg_catalog', false)"""
LISTEN_IN_BLOCK = "do $$ begin listen news; end $$"
LONG_ERROR = """do $$ begin raise exception '% {name} %', repeat('x', {before}), repeat('y', {after}); end $$"""


@pytest.fixture(scope="module")
def lonely(world: World, pg18: ServerFacts) -> TenantUnderTest:
    """A tenant with one backend, which all its clients share in turns."""
    return world.tenant(pg18, seed=SEED, limits=Limits(pool_size=1))


def started(world: World, tenant: TenantUnderTest) -> RawClient:
    client = world.proxy.connect()
    client.login(tenant.user, tenant.password, tenant.slug, options="-c app.tenant=mine")
    return client


def kinds(client: RawClient, *messages: bytes) -> list[str]:
    client.send(*messages)
    return [message.kind for message in client.read_until("Z")]


def column(client: RawClient, *messages: bytes) -> list[bytes]:
    client.send(*messages)
    return [message.body[6:] for message in client.read_until("Z") if message.kind == "D"]


def pinned(world: World, reason: str) -> float:
    return world.proxy.metric("pgtenant_pins", reason=reason)


def test_unnamed_statement_outlives_a_startup_parameter_given_back(world: World, lonely: TenantUnderTest) -> None:
    with started(world, lonely) as client:
        assert kinds(client, parse("reset app.tenant", "reset"), sync()) == ["1", "Z"]
        assert kinds(client, parse(LONG), sync()) == ["1", "Z"]
        assert kinds(client, bind(statement="reset"), execute(), sync()) == ["2", "C", "Z"]
        assert column(client, bind(), execute(), sync()) == [b"mine"]
        assert column(client, bind(), execute(), sync()) == [b"mine"]
        client.rows("select 1")
        wait_until(lambda: pinned(world, "unnamed_statement") == 0)


def test_portals_outlive_a_startup_parameter_given_back_within_a_transaction(
    world: World, lonely: TenantUnderTest
) -> None:
    with started(world, lonely) as client:
        assert kinds(client, parse("reset app.tenant", "reset"), parse("begin"), bind(), execute(), sync())[-1] == "Z"
        numbers = parse("select generate_series(1, 3)::text", "numbers")
        assert column(client, numbers, bind(statement="numbers"), execute(limit=1), sync()) == [b"1"]
        for number in (2, 3):
            reset, look = f"reset {number}", f"look {number}"
            assert kinds(client, bind(statement="reset", portal=reset), execute(reset), sync()) == ["2", "C", "Z"]
            assert column(client, execute(limit=1), sync()) == [b"%d" % number]
            assert kinds(client, parse("select current_setting('app.tenant')", look), sync()) == ["1", "Z"]
            assert column(client, bind(statement=look, portal=look), execute(look), sync()) == [b"mine"]


@pytest.mark.parametrize("after", [100, 7000, 100_000])
def test_long_error_that_names_a_copy_arrives_whole(after: int, world: World, lonely: TenantUnderTest) -> None:
    with login(world.proxy, lonely) as client:
        kinds(client, parse("select 1", "mine"), sync())
        ((name,),) = client.rows("select name from pg_prepared_statements where name ~ '^pgtenant_[0-9a-f]{16}_'")
        for ask in (
            [query(LONG_ERROR.format(name=name, before=2000, after=after))],
            [parse(LONG_ERROR.format(name=name, before=2000, after=after)), bind(), execute(), sync()],
        ):
            client.send(*ask)
            error = next(message for message in client.read_until("Z") if message.kind == "E")
            said = {"mine"} if after < 5000 else {name, "mine"}
            assert error.fields["M"] in {f"{'x' * 2000} {one} {'y' * after}" for one in said}
            assert error.fields["C"] == "P0001"
            assert client.rows("select 1") == [("1",)]


def test_settings_that_end_the_proxys_own_statements_harm_nobody_else(world: World, lonely: TenantUnderTest) -> None:
    with login(world.proxy, lonely) as client, login(world.proxy, lonely) as other:
        for setting in ("statement_timeout", "transaction_timeout"):
            client.rows(f"set {setting} = 1000")
            for text in ("set search_path = ''", "set default_transaction_read_only = on"):
                client.rows(text)
                assert other.rows(f"select current_setting('{setting}')") == [("0",)]
                assert client.rows(f"select current_setting('{setting}')") == [("1s",)]
            client.rows("discard all")
    assert leftovers(world.proxy, lonely, 1) == set()


def test_set_config_behind_unicode_escapes_pins(world: World, lonely: TenantUnderTest) -> None:
    with login(world.proxy, lonely) as client:
        client.rows('select 1 as u&"\\0061b"')
        assert pinned(world, "set_config") == 0
        client.rows(ESCAPED_CALL)
        wait_until(lambda: pinned(world, "set_config") == 1)
        client.rows("discard all")
        client.rows('set u&"\\0073earch_path" = pg_catalog')
        wait_until(lambda: pinned(world, "settings") == 1)
    wait_until(lambda: pinned(world, "settings") == 0)
    assert leftovers(world.proxy, lonely, 1) == set()


def test_listen_within_a_block_pins(world: World, lonely: TenantUnderTest) -> None:
    with login(world.proxy, lonely) as client:
        client.rows("do $$ begin perform 'listen'; end $$")
        wait_until(lambda: pinned(world, "listen") == 0)
        client.rows(LISTEN_IN_BLOCK)
        wait_until(lambda: pinned(world, "listen") == 1)
        client.rows("unlisten *")
        wait_until(lambda: pinned(world, "listen") == 0)
