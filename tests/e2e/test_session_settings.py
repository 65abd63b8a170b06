"""Startup parameters, session state and pool modes: what a client has set is there for it, and for nobody else."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import psycopg
import pytest
from harness.disasters import leftovers, login
from harness.rawclient import RawClient, ServerSaid, bind, execute, parse, query, sync
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits, PoolMode, ResetPolicy

PROXY = {"pool": {"pool_size": 2}}
MINE = "create table mine (note text)"

ASKED = [
    ({"application_name": 'it\'s \\ "quoted"'}, "application_name", 'it\'s \\ "quoted"'),
    ({"options": "-c statement_timeout=432101"}, "statement_timeout", "432101ms"),
    ({"options": "-c search_path=pg_catalog,public"}, "search_path", "pg_catalog,public"),
    ({"options": r"-c application_name=two\ words\\"}, "application_name", "two words\\"),
    ({"options": "--work-mem=123kB --geqo=off"}, "work_mem", "123kB"),
    ({"options": "-c my.custom=hello"}, "my.custom", "hello"),
    ({"client_encoding": "LATIN1"}, "client_encoding", "LATIN1"),
    ({"DateStyle": "SQL, DMY"}, "DateStyle", "SQL, DMY"),
    ({"datestyle": "german"}, "datestyle", "German, DMY"),
    ({"TimeZone": "Asia/Kathmandu"}, "timezone", "Asia/Kathmandu"),
    ({"extra_float_digits": "1"}, "extra_float_digits", "1"),
    ({"IntervalStyle": "iso_8601"}, "intervalstyle", "iso_8601"),
    ({"default_transaction_read_only": "on"}, "default_transaction_read_only", "on"),
    ({"standard_conforming_strings": "off", "application_name": "a\\'b"}, "application_name", "a\\'b"),
]
REFUSED = [
    ({"options": "-c work_mem=lots"}, "22023", "invalid value for parameter"),
    ({"options": "-c no_such_setting=1"}, "42704", "unrecognized configuration parameter"),
    ({"DateStyle": "sometimes"}, "22023", "DateStyle"),
    ({"client_encoding": "KLINGON"}, "22023", "client_encoding"),
    ({"options": "-c shared_buffers=1MB"}, "55P02", "cannot be changed"),
    ({"options": "-c log_statement=all"}, "42501", "permission denied"),
    ({"options": "-x nonsense"}, "42601", "options"),
]


def connect(world: World, tenant: TenantUnderTest, parameters: dict[str, str]) -> RawClient:
    client = world.proxy.connect()
    client.login(tenant.user, tenant.password, tenant.slug, **parameters)  # type: ignore[arg-type]
    return client


@pytest.fixture(scope="module", params=[18, 17], ids=["pg18", "pg17"])
def alone(request: pytest.FixtureRequest, world: World, pg18: ServerFacts, pg17: ServerFacts) -> TenantUnderTest:
    """A tenant with one backend, which all its clients share in turns."""
    server = pg18 if request.param == 18 else pg17
    return world.tenant(server, seed=MINE, limits=Limits(pool_size=1))


@pytest.mark.parametrize(("parameters", "name", "value"), ASKED)
def test_startup_parameter_is_applied_reported_and_not_passed_on(
    parameters: dict[str, str], name: str, value: str, world: World, alone: TenantUnderTest
) -> None:
    with connect(world, alone, parameters) as asking, login(world.proxy, alone) as plain:
        before = plain.rows("select coalesce(current_setting('" + name + "', true), '')")
        for _ in range(3):
            assert asking.rows(f"show {name}") == [(value,)]
            assert plain.rows("select coalesce(current_setting('" + name + "', true), '')") in (before, [("",)])
        reported = {known.lower(): said for known, said in asking.parameters.items()}
        assert reported.get(name.lower(), value) == value
        with connect(world, alone, parameters) as again:
            assert again.parameters == asking.parameters, "a second login is told the same without a backend's help"
    assert leftovers(world.proxy, alone, 1) == set()


@pytest.mark.parametrize(("parameters", "sqlstate", "words"), REFUSED)
def test_startup_parameter_that_postgresql_refuses_ends_the_login_with_its_error(
    parameters: dict[str, str], sqlstate: str, words: str, world: World, alone: TenantUnderTest
) -> None:
    for _ in range(2):
        with world.proxy.connect() as client:
            with pytest.raises(ServerSaid) as caught:
                client.login(alone.user, alone.password, alone.slug, **parameters)  # type: ignore[arg-type]
            assert caught.value.sqlstate == sqlstate
            assert words in caught.value.fields["M"]
            assert caught.value.fields["S"] == "FATAL"
            assert client.read_to_end() == []
    assert leftovers(world.proxy, alone, 1) == set()


def test_what_a_login_is_told_is_what_postgresql_itself_tells(world: World, alone: TenantUnderTest) -> None:
    database = alone.database
    with (
        login(world.proxy, alone) as through,
        RawClient(database.server.port, database.server.host) as straight,
    ):
        straight.login(database.role, database.password, database.name)
        assert {**through.parameters, "session_authorization": ""} == {
            **straight.parameters,
            "session_authorization": "",
        }


def test_settings_of_a_role_and_a_database_are_kept_and_told(world: World, any_pg: ServerFacts) -> None:
    database = world.database(any_pg, seed=MINE)
    any_pg.psql(
        f"alter role {database.role} set application_name = 'of the role';"
        f"alter role {database.role} set statement_timeout = '7s';"
        f"alter database {database.name} set timezone = 'Asia/Tokyo'"
    )
    tenant = world.tenant(any_pg, database=database, limits=Limits(pool_size=1))
    for _ in range(2):
        with connect(world, tenant, {"application_name": "mine"}) as other, login(world.proxy, tenant) as client:
            assert client.parameters["TimeZone"] == "Asia/Tokyo"
            assert client.parameters["application_name"] == "of the role"
            for _ in range(2):
                assert other.rows("show application_name") == [("mine",)]
                assert client.rows("show application_name") == [("of the role",)]
                assert client.rows("show statement_timeout") == [("7s",)]
            client.rows("set statement_timeout = 0")
            client.rows("reset statement_timeout")
            assert client.rows("show statement_timeout") == [("7s",)]
        assert leftovers(world.proxy, tenant, 1) == set()


def test_many_clients_with_settings_of_their_own_share_few_backends(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, limits=Limits(pool_size=2))
    kinds = [
        {"application_name": name, "options": f"-c statement_timeout={timeout} -c my.x={name}"}
        for name, timeout in itertools.product(("a", "b", "c"), ("111111", "222222"))
    ]

    def work(number: int) -> None:
        chance = random.Random(number)
        asked = kinds[number % len(kinds)]
        expected = (asked["application_name"], f"{asked['options'][21:27]}ms", asked["application_name"])
        show = "select current_setting('application_name'), current_setting('statement_timeout')"
        with connect(world, tenant, asked) as client:
            for _ in range(40):
                if chance.random() < 0.2:
                    client.rows("begin")
                    client.rows("set local statement_timeout = 333333")
                    assert client.rows("show statement_timeout") == [("333333ms",)]
                    client.rows(chance.choice(["commit", "rollback"]))
                assert client.rows(f"{show}, current_setting('my.x')") == [expected]

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    world.wait_for_rest(tenant)
    assert tenant.database.backends() <= 2


def test_what_a_client_sets_itself_stays_in_force_on_top_of_its_parameters(
    world: World, alone: TenantUnderTest
) -> None:
    with connect(world, alone, {"options": "-c statement_timeout=432101"}) as client:
        client.rows("set statement_timeout = 123401")
        client.rows("set search_path = pg_catalog")
        for _ in range(3):
            assert client.rows("show statement_timeout") == [("123401ms",)]
            assert client.rows("show search_path") == [("pg_catalog",)]
    assert leftovers(world.proxy, alone, 1) == set()


def test_settings_inside_a_transaction_that_is_rolled_back_leave_nothing(world: World, alone: TenantUnderTest) -> None:
    with login(world.proxy, alone) as client:
        client.rows("begin")
        client.rows("set statement_timeout = 123401")
        client.rows("create temp table gone (a int)")
        client.rows("rollback")
        assert client.rows("show statement_timeout") == [("0",)]
    assert leftovers(world.proxy, alone, 1) == set()


@pytest.mark.parametrize(
    ("statement", "check", "clean"),
    [
        ("set statement_timeout = 99999", "show statement_timeout", "0"),
        ("create temp table left_over (a int)", "select coalesce(to_regclass('left_over')::text, '')", ""),
        (
            "select pg_advisory_lock(42)",
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
            "0",
        ),
        ("prepare p as select 1", "select count(*) from pg_prepared_statements", "0"),
        ("listen news", "select count(*) from pg_listening_channels()", "0"),
        ("select set_config('my.x', 'y', false)", "select coalesce(current_setting('my.x', true), '')", ""),
    ],
)
def test_session_state_stays_with_its_client_and_is_gone_for_the_next(
    statement: str, check: str, clean: str, world: World, alone: TenantUnderTest
) -> None:
    with login(world.proxy, alone) as first:
        first.rows(statement)
        for _ in range(2):
            assert first.rows(check) != [(clean,)]
    with login(world.proxy, alone) as second:
        assert second.rows(check) == [(clean,)]


def test_notifications_reach_who_listens(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, seed=MINE, limits=Limits(pool_size=2))
    with psycopg.connect(world.url(tenant), autocommit=True) as listener, login(world.proxy, tenant) as other:
        listener.execute("listen news")
        for number in range(3):
            other.rows(f"notify news, '{number}'")
            (found,) = listener.notifies(timeout=5, stop_after=1)
            assert (found.channel, found.payload) == ("news", str(number))
    world.wait_for_rest(tenant)
    assert leftovers(world.proxy, tenant, 2) == set()


def test_session_mode_is_a_connection_of_ones_own(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, seed=MINE, pool_mode=PoolMode.SESSION, limits=Limits(pool_size=1))
    state = [
        query("set my.x = 'y'"),
        query("create temp table leftover (a int)"),
        query("select pg_advisory_lock(1)"),
        query("listen leftover"),
        query("prepare p as select 1"),
        query("declare c cursor with hold for select 1"),
        query("select set_config('statement_timeout', '9999', false)"),
        query("do $$ begin perform set_config('search_path', 'pg_catalog', false); end $$"),
    ]
    pids = set()
    for _ in range(3):
        with login(world.proxy, tenant) as client:
            pids.add(client.rows("select pg_backend_pid()").pop())
            for message in state:
                client.send(message)
                assert "E" not in {one.kind for one in client.read_until("Z")}
            assert client.rows("select count(*) from leftover") == [("0",)]
        assert leftovers(world.proxy, tenant, 1) == set()
    assert len(pids) == 1


@pytest.mark.parametrize("asked", ["at startup", "by SET"])
def test_tables_that_are_temporary_by_their_search_path_stay_with_their_client(
    asked: str, world: World, pg18: ServerFacts
) -> None:
    tenant = world.tenant(pg18, seed=MINE, limits=Limits(pool_size=2))
    parameters = {"options": "-c search_path=pg_temp"} if asked == "at startup" else {}
    with connect(world, tenant, parameters) as client, login(world.proxy, tenant) as other:
        if asked == "by SET":
            client.rows('set search_path = "$user", pg_temp')
        client.rows("create table hidden (a int)")
        wait_until(lambda: world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug) == 1, what="a pin")
        assert other.rows("select to_regclass('hidden')") == [(None,)]
        assert client.rows("select * from hidden") == []
    assert leftovers(world.proxy, tenant, 2) == set()


def test_reset_always_cleans_what_cannot_be_seen_from_outside(world: World, any_pg: ServerFacts) -> None:
    tenant = world.tenant(any_pg, seed=MINE, reset=ResetPolicy.ALWAYS, limits=Limits(pool_size=1))
    hidden = "do $$ begin execute 'set statement_' || 'timeout = 1234'; end $$"
    with login(world.proxy, tenant) as client, login(world.proxy, tenant) as other:
        for _ in range(3):
            client.rows(hidden)
            assert other.rows("show statement_timeout") == [("0",)]
    assert leftovers(world.proxy, tenant, 1) == set()


async def test_statement_mode_works_with_a_driver_in_autocommit(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, pool_mode=PoolMode.STATEMENT, limits=Limits(pool_size=1))
    connection = await asyncpg.connect(world.url(tenant), statement_cache_size=0, ssl=False)
    for number in range(5):
        assert await connection.fetchval("select $1::int", number) == number
    with pytest.raises((asyncpg.FeatureNotSupportedError, asyncpg.ConnectionDoesNotExistError), match="statement mode"):
        await connection.execute("begin")
    connection.terminate()
    with login(world.proxy, tenant) as client:
        assert client.rows("begin; select 2; commit; select 3") == [("2",), ("3",)]
        client.send(parse("begin"), bind(), execute(), sync())
        messages = client.read_to_end()
        assert messages[-1].fields["C"] == "0A000"
