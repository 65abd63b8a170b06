"""What a client sets follows it from backend to backend and never reaches anybody else; compared with a connection of
its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness.disasters import leftovers, login
from harness.rawclient import Message, RawClient, bind, execute, parse, query, sync
from harness.registries import TenantUnderTest
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

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
    "set statement_timeout = 12345",
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
    "options": "-c app.tenant=mine -c statement_timeout=1500 -c search_path=pg_catalog,public",
    "TimeZone": "CET",
}


def test_what_is_reset_is_what_was_asked_for_at_startup_again(world: World, alone: TenantUnderTest) -> None:
    steps = [
        "set app.tenant = 'other'",
        "reset app.tenant",
        "set time zone 'UTC'",
        "set time zone default",
        "set statement_timeout = 1",
        "reset all",
        "set search_path = public",
        "set search_path to default",
        "set statement_timeout = 1; reset statement_timeout",
        "reset statement_timeout; set statement_timeout = 7",
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


UNREADABLE = [
    "do $$ begin execute 'set statement_' || 'timeout = 1234'; end $$; set statement_timeout = 1234",
    "set seed to 0.5",
    "set role none",
    "select set_config(n, 'x', false) from (values ('app.tenant')) as v (n)",
    "begin; " + "select 1; " * 1000 + "set app.tenant = 'far away'; commit",
    "set app.long = '" + "x" * 9000 + "'",
]
