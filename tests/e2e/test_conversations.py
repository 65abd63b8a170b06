"""Random conversations, answered through the proxy byte for byte as by PostgreSQL itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
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

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

SEED = "create table sink (a int, b text); create table source (a int); insert into source values (1), (2)"
CONVERSATIONS = 40
MOST_STEPS = 14
END = "the end of this conversation"

STATEMENTS = [
    "select 1",
    "select repeat('x', 9000), null, ''",
    "select g from generate_series(1, 300) g",
    "select 1; select 2",
    "select 1; select 1 / 0; select 3",
    "select 1 / 0",
    "no SQL",
    "",
    ";",
    "begin",
    "begin; select 1",
    "commit",
    "rollback",
    "savepoint s",
    "rollback to savepoint s",
    "insert into sink values (1, 'x')",
    "insert into sink values (1, 'x') returning a, b",
    "copy source to stdout",
    "copy (select g, 'row' from generate_series(1, 50) g) to stdout",
    "copy sink from stdin",
    "copy sink from stdin; select 4",
    "select 5; copy sink from stdin",
    "copy sink from stdin; copy sink from stdin",
    "copy nothing from stdin",
    "set work_mem = '5MB'",
    "set timezone = 'Asia/Tokyo'",
    "set local timezone = 'Europe/Paris'",
    "reset timezone",
    "reset all",
    "discard all",
    "prepare p as select $1::int + 1",
    "execute p (1)",
    "deallocate all",
    "declare c cursor with hold for select generate_series(1, 9)",
    "fetch 3 from c",
    "listen news",
    "do $$ begin raise notice 'noticed'; end $$",
    "create temp table kept (a int) on commit preserve rows",
    "select count(*) from kept",
    "explain select 1",
    "show timezone",
    "set constraints all deferred",
]
NAMES = ["", "", "", "one", "two"]


def step(chance: random.Random) -> bytes:
    """One message, or a few that belong together."""
    name, portal = chance.choice(NAMES), chance.choice(NAMES)
    statement = chance.choice(STATEMENTS)
    kind = chance.randrange(20)
    if kind < 7:
        return query(statement)
    if kind < 10:
        unit = parse(statement, name) + bind(statement=name, portal=portal)
        return unit + chance.choice([b"", describe(portal)]) + execute(portal, limit=chance.choice([0, 0, 0, 2]))
    if kind < 13:
        return sync()
    return chance.choice(
        [
            parse(statement, name),
            parse("select $1::int, $2::text", name) + bind(["7", "seven"], statement=name) + execute(),
            parse("select $1::int", name) + bind(["seven"], statement=name) + execute(),
            # Of an unnamed statement from before the proxy knows only on which backend it was: see docs/errors.md.
            describe(name or "one", kind="S"),
            describe(portal),
            execute(portal, limit=chance.choice([0, 3])),
            close(name),
            close(portal, kind="P"),
            flush(),
            frame("d", b"7\tseven\n"),
            frame("d", b"no number\tseven\n"),
            frame("d", b"8\teight\n9\tni") + frame("d", b"ne\n"),
            frame("c"),
            frame("f", b"given up\0"),
            frame("F", b"\0\0\4\xba\0\1\0\0\0\0\0\1"),
            sync() + sync(),
        ]
    )


def pieces(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """The same bytes in one piece, in a few, or in small ones."""
    size = chance.choice([len(data), len(data), 400, 37, 5])
    for start in range(0, len(data), size):
        yield data[start : start + size]


def converse(client: RawClient, data: list[bytes]) -> list[tuple[str, bytes]]:
    """Send all of it, a last query and a goodbye, and collect everything that is answered."""
    answers: list[tuple[str, bytes]] = []
    try:
        for piece in data:
            client.send(piece)
        client.send(frame("f", b"over\0"), sync(), query("rollback"), query(f"select '{END}'"), terminate())
        while True:
            message = client.read()
            answers.append((message.kind, message.body))
    except (Disconnected, ConnectionError):
        return answers
    except TimeoutError:
        return [*answers, ("nothing more", b"")]


@pytest.fixture(scope="module")
def tenant(world: World, any_version: ServerFacts) -> TenantUnderTest:
    return world.tenant(any_version, seed=SEED, limits=Limits(pool_size=1))


@pytest.fixture(scope="module", params=["pg18", "pg17"])
def any_version(request: pytest.FixtureRequest) -> ServerFacts:
    server = request.getfixturevalue(request.param)
    assert isinstance(server, ServerFacts)
    return server


@contextmanager
def direct(tenant: TenantUnderTest) -> Iterator[RawClient]:
    database = tenant.database
    with RawClient(database.server.port) as client:
        client.login(database.role, database.password, database.name)
        yield client


@pytest.mark.parametrize("seed", range(3))
def test_random_conversations_are_answered_as_by_the_server_itself(
    seed: int, world: World, tenant: TenantUnderTest
) -> None:
    whole = 0
    for number in range(CONVERSATIONS):
        chance = random.Random(f"{seed}.{number}")
        steps = [step(chance) for _ in range(chance.randrange(1, MOST_STEPS))]
        data = list(pieces(b"".join(steps), chance))
        with direct(tenant) as client:
            expected = converse(client, data)
        with world.proxy.connect() as client:
            client.login(tenant.user, tenant.password, tenant.slug)
            got = converse(client, data)
        if ended(expected):
            assert got == expected, f"conversation {seed}.{number}: {steps}"
            whole += 1
        else:
            # How much a client still sees of a server that resets the connection is a matter of luck.
            assert not ended(got), f"conversation {seed}.{number}: {steps}"
            assert got[-1:] != [("nothing more", b"")], f"conversation {seed}.{number}: {steps}"
    assert whole > CONVERSATIONS / 2


def ended(answers: list[tuple[str, bytes]]) -> bool:
    """Whether a conversation came to its end, and was not cut off by the server."""
    return any(END.encode() in body for _, body in answers[-3:])
