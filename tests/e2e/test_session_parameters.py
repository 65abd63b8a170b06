"""What a client sets follows it from backend to backend and never reaches anybody else; compared with a connection of
its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import asyncpg
import psycopg
import pytest
from harness.disasters import leftovers, login
from harness.rawclient import Message, RawClient, ServerSaid, bind, execute, parse, query, sync, terminate
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from proxy.session.pins import NAMES
from registry.contract import Limits, PoolMode, SessionStatePolicy

PROXY = {"pool": {"pool_size": 2}}
MINE = "create table mine (id int primary key, note text); insert into mine values (1, 'one')"
LOOKED_AT = (
    "application_name",
    "search_path",
    "statement_timeout",
    "timezone",
    "datestyle",
    "client_min_messages",
    "extra_float_digits",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "app.tenant",
    "app.user.id",
    "work_mem",
    "random_page_cost",
    "client_encoding",
    "xmloption",
    "intervalstyle",
)
# A setting of an application's own that was ever set in a backend is empty there and not null for ever.
LOOK = "select " + ", ".join(f"coalesce(current_setting('{name}', true), '')" for name in LOOKED_AT)


@pytest.fixture(scope="module", params=[18, 17], ids=["pg18", "pg17"])
def alone(request: pytest.FixtureRequest, world: World, pg18: ServerFacts, pg17: ServerFacts) -> TenantUnderTest:
    """A tenant with one backend, which all its clients share in turns."""
    return world.tenant(pg18 if request.param == 18 else pg17, seed=MINE, limits=Limits(pool_size=1))


@pytest.fixture(scope="module")
def lonely(world: World, pg18: ServerFacts) -> TenantUnderTest:
    """The same on one version, for what does not depend on it."""
    return world.tenant(pg18, seed=MINE, limits=Limits(pool_size=1))


class Listening(RawClient):
    """A client that takes note of the parameters it is told of at any time."""

    def read(self) -> Message:
        message = super().read()
        if message.kind == "S":
            name, value, _ = message.body.decode().split("\0")
            self.parameters[name] = value
        return message


@contextmanager
def straight(tenant: TenantUnderTest, **parameters: str) -> Iterator[RawClient]:
    """A connection of its own to the tenant's database."""
    database = tenant.database
    with Listening(database.server.port, database.server.host) as client:
        client.login(database.role, database.password, database.name, **parameters)  # type: ignore[arg-type]
        yield client


@contextmanager
def through(world: World, tenant: TenantUnderTest, **parameters: str) -> Iterator[RawClient]:
    with Listening(world.proxy.port) as client:
        client.login(tenant.user, tenant.password, tenant.slug, **parameters)  # type: ignore[arg-type]
        yield client


def shown(messages: list[Message]) -> list[tuple[str, object]]:
    """What of the answers must not differ."""
    return [
        (message.kind, message.fields.get("C") if message.kind in "EN" else message.body)
        for message in messages
        if message.kind != "S"
    ]


def same_as_alone(world: World, tenant: TenantUnderTest, steps: list[list[bytes]], **parameters: str) -> None:
    """Play the steps through the proxy, other clients' turns between them, and on a connection of its own."""
    with (
        through(world, tenant, **parameters) as mine,
        straight(tenant, **parameters) as own,
        login(world.proxy, tenant) as other,
        through(world, tenant, options="-c app.tenant=other -c search_path=pg_catalog -c TimeZone=Asia/Tokyo") as third,
    ):
        plain = other.rows(LOOK)
        foreign = third.rows(LOOK)
        for step in steps:
            for client in (mine, own):
                client.send(*step)
            readies = sum(message[:1] in b"QS" for message in step)
            keeps = len(step) == 2 and step[0] == parse("set app.tenant = 'unnamed'")
            answers = [[part for _ in range(readies) for part in one.read_until("Z")] for one in (mine, own)]
            assert shown(answers[0]) == shown(answers[1]), step
            if answers[0][-1].text == "I" and not keeps:
                assert other.rows(LOOK) == plain, step
                assert third.rows(LOOK) == foreign
            if answers[0][-1].text != "E":
                assert mine.rows(LOOK) == own.rows(LOOK), step
                assert _told(mine) == _told(own), step
        pinned = world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug)
        assert pinned == 0


def _told(client: RawClient) -> dict[str, str]:
    return {name: value for name, value in client.parameters.items() if name != "session_authorization"}


SPELLINGS = [
    "set application_name = 'it''s \\ mine'",
    "SET SESSION application_name TO plain",
    "set application_name to E'tab\\there'",
    "set app.tenant = 'acme'",
    'set app.tenant = "Acme"',
    "set app.user.id to 42",
    'set "App"."Tenant" = $$dollar$$',
    "set search_path = pg_catalog, \"B c\", 'd''e', user",
    "set search_path to ''",
    "set schema 'other'",
    "set search_path to default",
    "set time zone 'Europe/Paris'",
    "set time zone -7",
    "set time zone interval '-08:00' hour to minute",
    "set time zone local",
    "set timezone to 'UTC'",
    "set datestyle = 'German', DMY",
    "set datestyle to iso, mdy",
    "set statement_timeout = 123456",
    "set statement_timeout = '2min'",
    "set work_mem = '123kB'",
    "set random_page_cost = 1.25",
    "set extra_float_digits = 3",
    "set client_min_messages = warning",
    "set names 'LATIN1'",
    "set client_encoding = 'UTF8'",
    "set session characteristics as transaction isolation level serializable, read only",
    "set default_transaction_read_only = off",
    "set default_transaction_isolation to default",
    "set xml option document",
    "/* why */ set -- not\n app.tenant = 'after a comment';",
    "  \n\tset app.tenant='compact'",
    "set local app.tenant = 'nothing'",
    "set intervalstyle = iso_8601",
    "set no_such_setting = 1",
    "set statement_timeout = never",
    "reset app.tenant",
    "reset time zone",
    "reset all",
    "select set_config('app.tenant', 'by call', false), set_config('search_path', 'pg_catalog', false)",
    "select set_config('app.tenant', 'for nothing', true)",
    "set app.tenant = 'one'; set app.user.id = '2'; select 1",
    "set app.tenant = 'gone'; select 1 / 0",
    "begin; set app.tenant = 'kept'; commit",
    "begin; set app.tenant = 'gone'; rollback",
    "discard all",
]


def test_any_spelling_of_set_does_what_it_does_on_a_connection_of_ones_own(
    world: World, alone: TenantUnderTest
) -> None:
    same_as_alone(world, alone, [[query(text)] for text in SPELLINGS])
    assert leftovers(world.proxy, alone, 1) == set()


STARTUP = {
    "options": "-c app.tenant=mine -c statement_timeout=150000 -c search_path=pg_catalog,public",
    "TimeZone": "CET",
}


def test_what_is_reset_is_what_was_asked_for_at_startup_again(world: World, alone: TenantUnderTest) -> None:
    steps = [
        "set app.tenant = 'other'",
        "reset app.tenant",
        "set time zone 'UTC'",
        "set time zone default",
        "set statement_timeout = 100001",
        "reset all",
        "set search_path = public",
        "set search_path to default",
        "set statement_timeout = 100001; reset statement_timeout",
        "reset statement_timeout; set statement_timeout = 70007",
        "discard all",
        "set app.tenant = 'other'",
        "begin",
        "reset app.tenant",
        "set time zone default",
        "rollback",
        "begin",
        "reset all",
        "savepoint a",
        "set app.tenant = 'more'",
        "rollback to a",
        "commit",
        "set work_mem = '1MB'",
        "begin; reset all; rollback",
        "begin; reset app.tenant; select 1 / 0",
        "commit",
        "begin; reset all; commit",
    ]
    same_as_alone(world, alone, [[query(text)] for text in steps], **STARTUP)
    assert leftovers(world.proxy, alone, 1) == set()


DOUBTFUL = [
    ["begin", "set time zone 'UTC'", "reset time zone", "commit", "begin", "set work_mem = '1MB'", "rollback"],
    ["begin", "reset time zone", "commit", "begin", "set time zone 'UTC'", "set app.tenant = 'x'", "rollback"],
    ["begin", "set app.tenant = 'a'", "reset app.tenant", "commit", "begin", "set app.tenant = 'b'", "rollback"],
    ["set statement_timeout = 70007", "begin", "reset all", "rollback"],
    ["reset statement_timeout", "begin", "set statement_timeout = 70007", "rollback", "begin", "reset all", "rollback"],
    ["begin", "reset statement_timeout", "set statement_timeout = 0", "savepoint a", "reset all", "rollback to a"],
    ["begin", "reset time zone", "savepoint a", "set time zone 'UTC'", "rollback to a", "commit"],
    ["begin", "set local time zone 'UTC'", "reset time zone", "rollback and chain", "set search_path = public"],
]


@pytest.mark.parametrize("texts", DOUBTFUL, ids=range(len(DOUBTFUL)))
def test_what_is_reset_and_rolled_back_in_a_pipeline_is_what_was_asked_for_at_startup(
    texts: list[str], world: World, alone: TenantUnderTest
) -> None:
    end = [query("commit")]
    same_as_alone(world, alone, [[query(text) for text in texts], end], **STARTUP)
    same_as_alone(world, alone, [[query(text)] for text in texts] + [end], **STARTUP)
    same_as_alone(world, alone, [[query("; ".join(texts))], end], **STARTUP)
    pieces = [part for text in texts for part in (extended(text), sync())]
    same_as_alone(world, alone, [pieces[:-2], pieces[-2:], end], **STARTUP)


def extended(text: str, name: str = "") -> bytes:
    return parse(text, name) + bind(statement=name) + execute()


TRANSACTIONS: list[list[list[bytes]]] = [
    [[query("begin")], [query("set app.tenant = 'a'")], [query("commit")]],
    [[query("begin")], [query("set app.tenant = 'a'")], [query("rollback")]],
    [[query("begin")], [query("set app.tenant = 'a'")], [query("select 1 / 0")], [query("commit")]],
    [
        [query("set app.tenant = 'before'")],
        [query("begin")],
        [query("savepoint s")],
        [query("set app.tenant = 'within'")],
        [query("set search_path = public")],
        [query("rollback to savepoint s")],
        [query("set time zone 'Asia/Tokyo'")],
        [query("commit")],
    ],
    [[query("begin")], [query("set local time zone 'Asia/Tokyo'")], [query("commit")]],
    [[query("begin")], [query("set transaction isolation level serializable")], [query("commit")]],
    [[query("begin")], [query("set transaction_read_only = on")], [query("commit")]],
    [[extended("set app.tenant = 'extended'"), sync()]],
    [[extended("set app.tenant = 'a'"), extended("set app.user.id = '1'"), sync()]],
    [[extended("set app.tenant = 'gone'"), extended("select 1 / 0"), sync()]],
    [[extended("set app.tenant = 'kept'"), sync(), extended("select 1 / 0"), sync()]],
    [[query("set app.tenant = 'one'"), query("set app.tenant = 'two'"), query("select 1")]],
    [
        [parse("set app.tenant = 'named'", "n"), sync()],
        [bind(statement="n"), execute(), sync()],
        [query("reset app.tenant")],
        [bind(statement="n"), execute(), sync()],
        [query("select 1")],
    ],
    [[parse("set app.tenant = 'unnamed'"), sync()], [bind(), execute(), sync()], [bind(), execute(), sync()]],
    [
        [parse("select set_config('app.tenant', $1, false)", "c"), bind(["bound"], statement="c"), execute(), sync()],
        [query("select 1")],
        [bind(["again"], statement="c"), execute(), sync()],
    ],
    [[query("do $$ begin set time zone 'Asia/Tokyo'; end $$")]],
    [[query("do $$ begin perform set_config('datestyle', 'German', true); end $$")]],
]


@pytest.mark.parametrize("steps", TRANSACTIONS, ids=range(len(TRANSACTIONS)))
@pytest.mark.parametrize("parameters", [{}, STARTUP], ids=["plain", "startup"])
def test_settings_follow_transactions_and_pipelines(
    steps: list[list[bytes]], parameters: dict[str, str], world: World, lonely: TenantUnderTest
) -> None:
    same_as_alone(world, lonely, steps, **parameters)
    assert leftovers(world.proxy, lonely, 1) == set()


OPERATIONS = [
    "set app.tenant = 'a{n}'",
    "set app.user.id = '{n}'",
    "set local app.tenant = 'local {n}'",
    "set time zone '{zone}'",
    "set local time zone '{zone}'",
    "set time zone default",
    "set search_path = s{n}, public",
    "set statement_timeout = {n}00000",
    "reset app.tenant",
    "reset statement_timeout",
    "reset all",
    "select set_config('app.tenant', 'call {n}', false)",
    "select set_config('search_path', 'call{n}', true)",
    "do $$ begin set time zone '{zone}'; end $$",
    "select 1",
    "select 1 / 0",
    "begin",
    "begin",
    "commit",
    "rollback",
    "savepoint s",
    "rollback to s",
    "release s",
]


def story(chance: random.Random, most: int) -> list[list[bytes]]:
    """Some turns of a client of so many statements at most, each of them answered before the next begins."""
    steps: list[list[bytes]] = []
    for _ in range(12):
        texts = [
            chance.choice(OPERATIONS).format(n=chance.randrange(1, 9), zone=chance.choice(["CET", "Asia/Tokyo"]))
            for _ in range(min(most, chance.choice([1, 1, 1, 2, 4])))
        ]
        way = chance.randrange(4)
        if way == 0:
            steps.append([query("; ".join(texts))])
        elif way == 1:
            steps.append([query(text) for text in texts])
        elif way == 2:
            steps.append([piece for text in texts for piece in (extended(text), sync())])
        else:
            steps.append([*(extended(text) for text in texts), sync()])
    return [*steps, [query("rollback")]]


@pytest.mark.parametrize("seed", range(12))
def test_any_course_of_settings_is_that_of_a_connection_of_ones_own(
    seed: int, world: World, lonely: TenantUnderTest
) -> None:
    chance = random.Random(seed)
    same_as_alone(world, lonely, story(chance, 4), **(STARTUP if seed % 2 else {}))
    assert leftovers(world.proxy, lonely, 1) == set()


UNREADABLE = [
    ("settings", "set seed to 0.5"),
    ("settings", "begin; " + "select 1; " * 1000 + "set app.tenant = 'far away'; commit"),
    ("settings", "set app.long = '" + "x" * 9000 + "'"),
    ("settings", "set app.tenant = '" + "x" * 8192 + "'"),
    ("settings", "update pg_settings set setting = 'german' where name = 'DateStyle'"),
    ("settings", " UPDATE ONLY \"pg_catalog\".pg_settings SET setting = 'german' WHERE name = 'DateStyle'"),
    ("set_config", "select set_config(n, 'x', false) from (values ('app.tenant')) as v (n)"),
]


FAR = "x" * 5000
HIDDEN: list[list[bytes]] = [
    [query("do $$ begin set search_path = pg_catalog; end $$")],
    [query("do $$ begin if true then set session search_path to pg_catalog; end if; end $$"), query("select 1")],
    [query("do $$ begin execute 'set search_path = pg_catalog'; end $$")],
    [query("/* x */ select 1; do language plpgsql 'begin reset all; set search_path = pg_catalog; end'")],
    [extended("do $$ begin set app.tenant = 'hidden'; end $$"), sync()],
    [query("begin"), *(query(f"select set_config('app.n{n % 50}', '{n}', false)") for n in range(50)), query("commit")],
]
HARD: list[tuple[str, list[bytes]]] = [
    ("settings", [query("set application_name = 'x'; select E'a'\n'\\''; set search_path = pg_catalog --'")]),
    ("settings", [query(f"select set_config('search_path', 'pg_catalog', false), '{FAR}'")]),
    ("settings", [extended(f"select set_config('search_path', 'pg_catalog', false), '{FAR}'"), sync()]),
    ("settings", [query(f"do $$ begin set search_path = pg_catalog; perform '{FAR}'; end $$")]),
    ("settings", [query(f"do $$ begin set search_path = pg_catalog; perform '{FAR * 3}'; end $$")]),
    ("settings", [query("do $$ begin execute format('set %I = pg_catalog', 'search_path'); end $$")]),
    ("set_config", [query("prepare p as select set_config('search_path', 'pg_catalog', false)"), query("execute p")]),
]


@pytest.mark.parametrize("steps", HIDDEN, ids=range(len(HIDDEN)))
def test_what_no_command_tag_tells_follows_its_client_all_the_same(
    steps: list[bytes], world: World, alone: TenantUnderTest
) -> None:
    if len(steps) < 10:
        same_as_alone(world, alone, [steps])
    with login(world.proxy, alone) as other, login(world.proxy, alone) as client:
        before = other.rows(LOOK)
        for step in steps:
            client.send(step)
            if step[:1] in b"QS":
                client.read_until("Z")
        assert len(steps) < 10 or pins(world) == {"settings"}
        client.rows("discard all")
        assert other.rows(LOOK) == before
    assert leftovers(world.proxy, alone, 1) == set()


@pytest.mark.parametrize(("reason", "steps"), HARD, ids=range(len(HARD)))
def test_what_no_command_tag_tells_and_nobody_can_read_pins(
    reason: str, steps: list[bytes], world: World, alone: TenantUnderTest
) -> None:
    with login(world.proxy, alone) as client:
        for step in steps:
            client.send(step)
            if step[:1] in b"QS":
                client.read_until("Z")
        assert reason in pins(world)
        assert client.rows("show search_path") == [("pg_catalog",)]
        client.rows("discard all")
        assert pins(world) == set()
        with login(world.proxy, alone) as other:
            assert other.rows("show search_path") != [("pg_catalog",)]
    assert leftovers(world.proxy, alone, 1) == set()


def test_role_that_nobody_could_read_outlives_reset_all(world: World, alone: TenantUnderTest) -> None:
    with login(world.proxy, alone) as client:
        client.rows("select 1; " * 1000 + "set role none; select set_config('role', current_user, false)")
        client.rows("reset all")
        assert pins(world) == {"role"}
        client.rows("reset role")
        assert pins(world) == set()


@pytest.mark.parametrize(("reason", "text"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_cannot_be_followed_pins_and_is_gone_with_its_client(
    reason: str, text: str, world: World, lonely: TenantUnderTest
) -> None:
    with login(world.proxy, lonely) as client:
        client.rows(text)
        wait_until(lambda: world.proxy.metric("pgtenant_pins", reason=reason) == 1, what="the pin")
        assert world.proxy.metric("pgtenant_pinned_clients", tenant=lonely.slug) == 1
    assert leftovers(world.proxy, lonely, 1) == set()
    assert world.proxy.metric("pgtenant_pins", reason=reason) == 0


def free(world: World, tenant: TenantUnderTest) -> bool:
    """Whether the only backend is to be had."""
    with login(world.proxy, tenant) as other:
        other.sock.settimeout(0.3)
        try:
            other.rows("select 1")
        except TimeoutError:
            return False
        return True


# What is said, and which pins hold after it.
COURSES: dict[str, list[tuple[str, set[str]]]] = {
    "a word that means nothing": [("select 1 as temp", set()), ("select 'advisory_lock', 'with hold'", set())],
    "channels": [
        ("listen a", {"listen"}),
        ("listen b", {"listen"}),
        ("unlisten a", {"listen"}),
        ("unlisten b", set()),
        ("begin; listen c; rollback", set()),
        ("listen d", {"listen"}),
        ("unlisten *", set()),
    ],
    "temporary tables": [
        ("create temp table t1 (a int)", {"temporary"}),
        ("create temp table t2 (a int)", {"temporary"}),
        ("drop table t1", {"temporary"}),
        ("drop table t2", set()),
        ("begin; create temp table t3 (a int) on commit drop; commit", set()),
        ("create function pg_temp.f() returns int language sql return 1", {"temporary"}),
        ("discard temp", set()),
    ],
    "cursors": [
        ("declare c cursor with hold for select 1", {"hold_cursor"}),
        ("close c", set()),
        ("begin; declare c cursor with hold for select 1; rollback", set()),
        ("declare c cursor with hold for select 1", {"hold_cursor"}),
        ("close all", set()),
    ],
    "locks": [
        ("select pg_advisory_lock(7), pg_advisory_lock(8)", {"advisory_lock"}),
        ("select pg_advisory_unlock(7)", {"advisory_lock"}),
        ("select pg_advisory_unlock(8)", set()),
        ("select pg_advisory_lock(7)", {"advisory_lock"}),
        ("select pg_advisory_unlock_all()", set()),
        ("select pg_advisory_xact_lock(7)", set()),
    ],
    "prepared statements": [
        ("prepare p as select pg_advisory_lock(7)", {"prepare"}),
        ("execute p", {"prepare"}),
        ("deallocate p", {"advisory_lock"}),
        ("select pg_advisory_unlock(7)", set()),
        ("prepare p as select 1", {"prepare"}),
        ("deallocate all", set()),
    ],
    "roles": [
        ("set role none", set()),
        ("begin; set local role none; commit", set()),
        ("set session authorization default", set()),
    ],
    "all of it": [
        ("listen a; set app.tenant = 'x'", {"listen"}),
        ("create temp table t (a int); select pg_advisory_lock(1)", {"listen", "temporary", "advisory_lock"}),
        ("discard all", set()),
        ("select current_setting('app.tenant')", set()),
    ],
    "a setting of a pinned client": [
        ("listen a", {"listen"}),
        ("set app.tenant = 'mine'", {"listen"}),
        ("unlisten a", set()),
    ],
}


@pytest.mark.parametrize("name", COURSES)
def test_client_is_pinned_as_long_as_there_is_a_reason(name: str, world: World, lonely: TenantUnderTest) -> None:
    kept: set[str] = set()
    with login(world.proxy, lonely) as client:
        for text, expected in COURSES[name]:
            client.send(query(text))
            error = [message.fields for message in client.read_until("Z") if message.kind == "E"]
            if error and "permission denied" in error[0]["M"]:
                return
            assert not error
            wait_until(partial(_pinned_by, world, expected), what=f"{expected} after {text}")
            assert world.proxy.metric("pgtenant_pinned_clients", tenant=lonely.slug) == bool(expected)
            kept |= expected
        assert free(world, lonely)
    assert leftovers(world.proxy, lonely, 1) == set()
    if kept:
        wait_until(lambda: "client pinned" in world.proxy.logs(), what="a line in the log")


def _pinned_by(world: World, expected: set[str]) -> bool:
    return pins(world) == expected


def pins(world: World) -> set[str]:
    names = {name for _, name in NAMES}
    return {name for name in names if world.proxy.metric("pgtenant_pins", reason=name)}


def test_statement_that_was_prepared_for_it_pins_when_it_is_executed(world: World, lonely: TenantUnderTest) -> None:
    with login(world.proxy, lonely) as client:
        client.send(parse("create temp table late (a int)", "later"), sync())
        client.read_until("Z")
        assert free(world, lonely)
        client.send(bind(statement="later"), execute(), sync())
        client.read_until("Z")
        wait_until(lambda: pins(world) == {"temporary"}, what="the pin")
        assert client.rows("select count(*) from late") == [("0",)]
    assert leftovers(world.proxy, lonely, 1) == set()


def test_client_that_sets_and_leaves_at_once_costs_no_backend(world: World, lonely: TenantUnderTest) -> None:
    pids = set()
    for number in range(10):
        client = login(world.proxy, lonely)
        pids.update(client.rows("select pg_backend_pid()"))
        client.send(query(f"set app.tenant = 'n{number}'"))
        client.read_until("Z")
        client.send(terminate())
        client.close()
    assert leftovers(world.proxy, lonely, 1) == set()
    assert len(pids) == 1


def test_settings_that_harm_the_proxys_own_statements_harm_nobody_else(world: World, lonely: TenantUnderTest) -> None:
    with login(world.proxy, lonely) as client, login(world.proxy, lonely) as other:
        # What the client itself says behind the last of them may well be cancelled.
        for text in ("set search_path = ''", "set default_transaction_read_only = on", "set statement_timeout = 1"):
            client.rows(text)
            assert other.rows("select 1") == [("1",)]
    assert leftovers(world.proxy, lonely, 1) == set()


def test_tenant_may_reject_state_in_sessions(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=MINE, session_state=SessionStatePolicy.REJECT, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as client:
        for text in (
            "listen news",
            "create temp table t (a int)",
            "prepare p as select 1",
            "select pg_advisory_lock(1)",
        ):
            with pytest.raises(ServerSaid) as refused:
                client.rows(text)
            assert refused.value.sqlstate == "0A000"
            assert refused.value.fields["S"] == "ERROR"
        client.send(parse("listen news"), bind(), execute(), sync())
        assert [message.kind for message in client.read_until("Z")] == ["E", "Z"]
        client.rows("set app.tenant = 'follows'")
        client.rows("begin; create temp table t (a int) on commit drop; commit")
        assert client.rows("show app.tenant") == [("follows",)]
        assert free(world, tenant)
        client.send(query("begin; listen news; commit"))
        error = client.read_to_end()[-1]
        assert error.fields["S"] == "FATAL"
        assert "listen" in error.fields["M"]
    assert leftovers(world.proxy, tenant, 1) == set()


def test_tenant_may_allow_state_in_sessions(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=MINE, session_state=SessionStatePolicy.ALLOW, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as client, login(world.proxy, tenant) as other:
        client.rows("create temp table shared (a int)")
        client.rows("set app.tenant = 'mine'")
        assert other.rows("select count(*) from shared") == [("0",)]
        assert other.rows("select coalesce(current_setting('app.tenant', true), '')") == [("",)]
        assert client.rows("show app.tenant") == [("mine",)]
        assert pins(world) == set()
        other.rows("discard all")


def test_session_mode_gives_startup_parameters_back_too(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=MINE, pool_mode=PoolMode.SESSION, limits=Limits(pool_size=1))
    with through(world, tenant, **STARTUP) as mine, straight(tenant, **STARTUP) as own:
        for text in (
            "set app.tenant = 'x'",
            "reset all",
            "set time zone 'UTC'",
            "begin",
            "reset time zone",
            "commit",
            "discard all",
        ):
            for client in (mine, own):
                client.rows(text)
            assert mine.rows(LOOK) == own.rows(LOOK), text
            assert _told(mine) == _told(own), text
    assert leftovers(world.proxy, tenant, 1) == set()


def test_psycopg_sets_in_a_pipeline(world: World, lonely: TenantUnderTest) -> None:
    with (
        psycopg.connect(world.url(lonely), autocommit=True) as mine,
        psycopg.connect(world.url(lonely), autocommit=True) as other,
    ):
        with mine.pipeline():
            mine.execute("set time zone 'Europe/Paris'")
            mine.execute("set app.tenant = 'piped'")
            answer = mine.execute("show app.tenant")
        assert answer.fetchone() == ("piped",)
        for _ in range(7):
            assert other.execute("show timezone").fetchone() != ("Europe/Paris",)
            assert mine.execute("show timezone").fetchone() == ("Europe/Paris",)
            mine.execute("set app.tenant = 'again'")
        assert mine.info.timezone.key == "Europe/Paris"  # type: ignore[attr-defined]
    assert leftovers(world.proxy, lonely, 1) == set()


async def test_pool_of_asyncpg_resets_its_connections(world: World, lonely: TenantUnderTest) -> None:
    async with asyncpg.create_pool(
        world.url(lonely), min_size=2, max_size=2, ssl=False, server_settings={"app.tenant": "started"}
    ) as pool:
        for number in range(4):
            async with pool.acquire() as connection:
                assert await connection.fetchval("show app.tenant") == "started"
                await connection.execute(f"set app.tenant = 'n{number}'; set search_path = pg_catalog")
                assert await connection.fetchval("show app.tenant") == f"n{number}"
        assert pins(world) == set()
    assert leftovers(world.proxy, lonely, 1) == set()


# What drivers and frameworks say first.
GREETINGS = {
    "django": ["SELECT set_config('TimeZone', 'UTC', false)", "SET default_transaction_read_only = off"],
    "rails": [
        "SET client_min_messages TO 'warning'",
        "SET standard_conforming_strings = on",
        "SET SESSION timezone TO 'UTC'",
        "SET intervalstyle = iso_8601",
    ],
    "jdbc": ["SET extra_float_digits = 3", "SET application_name = 'PostgreSQL JDBC Driver'"],
    "row level security": ["SET app.tenant = '7'", "SELECT set_config('app.user.id', '8', false)"],
    "postgrest": [
        "begin",
        "select set_config('search_path', '\"public\"', true), set_config('role', 'none', true)",
        "commit",
    ],
}


@pytest.mark.parametrize("who", GREETINGS)
def test_greetings_of_drivers_follow_them(who: str, world: World, lonely: TenantUnderTest) -> None:
    same_as_alone(world, lonely, [[query(text)] for text in GREETINGS[who]])
    same_as_alone(world, lonely, [[extended(text, f"s{at}"), sync()] for at, text in enumerate(GREETINGS[who])])
    assert leftovers(world.proxy, lonely, 1) == set()


def test_clients_of_two_tenants_with_few_backends_never_see_each_others_settings(
    world: World, pg18: ServerFacts
) -> None:
    tenants = [world.tenant(pg18, seed=MINE, limits=Limits(pool_size=2)) for _ in range(2)]
    look = "select current_setting('app.tenant'), current_database()"

    def work(number: int) -> set[str | None]:
        tenant = tenants[number % 2]
        mine = f"client {number}"
        pids = set()
        with login(world.proxy, tenant) as client:
            client.rows(f"set app.tenant = '{mine}'")
            for turn in range(25):
                ((setting, database, pid),) = client.rows(f"{look}, pg_backend_pid()")
                assert (setting, database) == (mine, tenant.database.name)
                pids.add(pid)
                if turn % 5 == number % 5:
                    mine = f"client {number}, turn {turn}"
                    client.rows(f"begin; set app.tenant = 'lost'; rollback; set app.tenant = '{mine}'")
        return pids

    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(work, range(8)))
    for at, tenant in enumerate(tenants):
        assert len(set().union(*seen[at::2])) <= 2, "its four clients have shared two backends"
        assert leftovers(world.proxy, tenant, 2) == set()
    assert not set().union(*seen[0::2]) & set().union(*seen[1::2])
