"""Pipelines with malformed messages in them are answered as on a connection of one's own, and disturb nobody behind.

PostgreSQL itself is the judge: the same bytes go to it directly and through a pool of one backend, for which another
client waits meanwhile.  `PGTENANT_MALFORMED=5000` tries so many pipelines.
"""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from harness.disasters import login
from harness.malformed import MALFORMED, damaged
from harness.rawclient import (
    Disconnected,
    RawClient,
    bind,
    close,
    describe,
    execute,
    flush,
    frame,
    parse,
    query,
    sync,
    terminate,
)
from harness.registries import TenantUnderTest
from harness.world import World
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

TRIES = int(os.environ.get("PGTENANT_MALFORMED", "20"))
USE = bind() + describe() + execute()
END = "the end of this pipeline"
TAIL = frame("f", b"over\0") + sync() + USE + sync() + query("rollback") + USE + sync() + query(f"select '{END}'")
SLOW = parse("select pg_sleep(0.01)") + bind() + execute() + sync()
ONE = parse("select 'one'") + bind() + describe() + execute()
PORTAL = parse("select generate_series(1, 3)") + bind(portal="p") + execute("p", limit=1)
NAMED = parse("select 'named'", "name")
Answers = list[tuple[str, bytes]]

messages = st.sampled_from(
    [
        query("select 1"),
        query("begin"),
        query("rollback"),
        query("select 1/0"),
        parse("select 'first'"),
        parse("select 'second'"),
        parse("no SQL"),
        parse("select $1::int"),
        NAMED,
        parse("select $1::text", "name"),
        parse("select 'other'", "other"),
        bind(),
        bind(["5"]),
        bind(statement="name"),
        bind(["x"], statement="name", portal="p"),
        describe(),
        describe(kind="S"),
        describe("name", kind="S"),
        execute(),
        execute("p", limit=1),
        close(),
        close("name"),
        close("p", kind="P"),
        sync(),
        sync(),
        flush(),
        frame("F", b"\0\0\4\xba\0\1\0\0\0\0\0\1"),
    ]
)
# Text that is none leaves the unnamed statement as it is, too, but here that is gone then.
bad = st.one_of(
    st.sampled_from(MALFORMED),
    messages.flatmap(damaged).filter(lambda one: one[0] not in b"QP" or b"\xff" not in one),
)
units = st.one_of(messages, messages, bad, st.sampled_from([SLOW, PORTAL, ONE, ONE + sync(), NAMED + sync()]))
pipelines = st.tuples(st.lists(units, max_size=6), bad, st.lists(units, max_size=6)).map(
    lambda parts: b"".join([*parts[0], parts[1], *parts[2]])
)


@pytest.fixture(scope="module", params=["pg18", "pg17"])
def tenant(world: World, request: pytest.FixtureRequest) -> TenantUnderTest:
    server: ServerFacts = request.getfixturevalue(request.param)
    return world.tenant(server, limits=Limits(pool_size=1, queue_wait_timeout=20.0))


def answers_of(client: RawClient) -> Answers:
    """All up to the end; of a FATAL error, which may be the proxy's, its SQLSTATE."""
    answers: Answers = []
    with suppress(Disconnected, ConnectionError):
        while True:
            message = client.read()
            fatal = message.kind == "E" and b"VFATAL\0" in message.body
            answers.append(("FATAL", message.fields["C"].encode()) if fatal else (message.kind, message.body))
    return answers


@settings(max_examples=TRIES, suppress_health_check=list(HealthCheck))
@given(pipelines)
@example(SLOW + frame("H", b"yy"))
@example(frame("H", b"yy") + parse("select 1") + sync() + query("select 2"))
@example(parse("select 'kept'") + sync() + frame("Q", b"select 1\0select 2\0") + bind() + execute() + sync())
@example(parse("select 'kept'") + sync() + frame("P", b"\0select 2\0\0\1") + sync() + bind() + execute() + sync())
@example(NAMED + sync() + frame("C", b"Snamex") + sync() + bind(statement="name") + execute() + sync())
@example(NAMED + sync() + frame("D", b"Snamex") + sync())
@example(NAMED + sync() + frame("Q", b"deallocate name\0x\0") + sync() + bind(statement="name") + execute() + sync())
def test_malformed_messages_are_answered_as_postgresql_does_and_to_nobody_else(
    world: World, tenant: TenantUnderTest, said: bytes
) -> None:
    database = tenant.database
    with RawClient(database.server.port) as client:
        client.login(database.role, database.password, database.name)
        with suppress(ConnectionError):
            client.send(said + TAIL + terminate())
        expected = answers_of(client)
    with login(world.proxy, tenant) as waiting, login(world.proxy, tenant) as client:
        client.send(said)
        waiting.send(query("select 'mine'"))
        with suppress(ConnectionError):
            client.send(TAIL + terminate())
        assert answers_of(client) == expected
        answer = waiting.read_until()
        assert "".join(message.kind for message in answer) == "TDCZ"
        assert answer[1].row == ("mine",)


REFUSED_PARSES = {
    "without its end": frame("P", b"\0select 'mine'\0\0\1"),
    "that is no text": frame("P", b"\0select '\xff'\0\0\0"),
    "too long to be seen whole": frame("P", b"\0select '" + b"x" * 100_000 + b"'\0\0\1"),
    "of no SQL": parse("no SQL"),
}


@pytest.mark.parametrize("case", REFUSED_PARSES)
def test_behind_a_refused_parse_nobody_has_the_statement_of_another_client(
    case: str, world: World, tenant: TenantUnderTest
) -> None:
    with login(world.proxy, tenant) as other, login(world.proxy, tenant) as client:
        other.send(parse("select 'of the other'"), sync())
        other.read_until()
        client.send(REFUSED_PARSES[case], sync())
        assert "".join(message.kind for message in client.read_until()) == "EZ"
        client.send(bind(), execute(), sync())
        assert [one.fields["C"] if one.kind == "E" else one.text for one in client.read_until()] == ["26000", "I"]
        other.send(bind(), execute(), sync())
        assert [one.row for one in other.read_until() if one.kind == "D"] == [("of the other",)]


@pytest.mark.parametrize("failing", [frame("H", b"yy"), parse("no SQL", "name"), execute("nothing")])
def test_behind_a_skipped_parse_nobody_has_the_statement_of_another_client(
    failing: bytes, world: World, tenant: TenantUnderTest
) -> None:
    with login(world.proxy, tenant) as other, login(world.proxy, tenant) as client:
        other.send(parse("select 'of the other'"), sync())
        other.read_until()
        client.send(failing, parse("select 'mine'"), sync(), bind(), execute(), sync())
        answers = client.read_until() + client.read_until()
        assert "".join(message.kind for message in answers) == "EZEZ"
        assert answers[2].fields["C"] == "26000"
