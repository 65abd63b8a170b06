"""No backend is given on with a transaction open, nor kept for one that is over, whatever its client has sent.

The judge is the server itself: `pg_stat_activity` tells whether a transaction is open, and whether it has written.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from harness.databases import Database
from harness.disasters import login
from harness.observed import ObservedSession
from harness.rawclient import bind, close, describe, execute, flush, frame, parse, query, sync
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from proxy.session.pins import PIN_PIPELINE
from registry.contract import Limits

TABLE = "create table written (a int)"
WRITE = "insert into written values (1)"
CALL = frame("F", struct.pack("!IHHHI", 1251, 1, 1, 1, 4) + struct.pack("!i", -7) + b"\0\1")
STATEMENTS = [
    "select 1",
    WRITE,
    f"{WRITE} returning a",
    "select 1 / 0",
    "no SQL",
    "",
    "begin",
    "commit",
    "rollback",
    "savepoint s",
    "rollback to savepoint s",
    "select generate_series(1, 3)",
    "copy written to stdout",
    "do $$ begin insert into written values (2); exception when others then null; end $$",
]
CONVERSATIONS = 40
MESSAGES = 20


def unit(chance: random.Random) -> bytes:
    """One message, or those that drivers send together."""
    sql = chance.choice(STATEMENTS)
    whole = parse(sql) + bind() + execute()
    return chance.choice(
        [
            query(sql),
            query(sql),
            query(f"{sql}; select 1"),
            parse(sql) + describe(kind="S"),
            bind(),
            describe(),
            execute(),
            execute(limit=1),
            close(kind="P"),
            CALL,
            sync(),
            sync(),
            whole,
            whole,
            whole + sync(),
        ]
    )


@pytest.fixture
def observed(any_pg: ServerFacts, make_database: Callable[..., Database]) -> Callable[[], ObservedSession]:
    database = make_database(any_pg, seed=TABLE)
    return lambda: ObservedSession(any_pg.port, database.role, database.password, database.name)


def test_what_is_given_on_never_carries_a_transaction(observed: Callable[[], ObservedSession]) -> None:
    freed = kept = 0
    for seed in range(CONVERSATIONS):
        chance = random.Random(seed)
        said = []
        with observed() as session:
            pair = session.pair
            for _ in range(MESSAGES):
                said.append(unit(chance))
                session.say(said[-1])
                truth = session.truth()
                pinned = pair.pins() & PIN_PIPELINE != 0
                assert not (pair.releasable() and (truth.open or truth.written)), (seed, said)
                if not (truth.open or pinned or pair.back.skipping or pair.back.open_batch):
                    assert pair.releasable(), ("kept for no reason", seed, said)
                freed += pair.releasable()
                kept += truth.open
            if pair.releasable():
                assert session.hand_on() == [("t",)], (seed, said)
    assert min(freed, kept) > CONVERSATIONS, "neither was put to the test"


BEGUN = parse(WRITE) + bind() + execute()
PREPARED = parse("select $1::int") + describe(kind="S")


@pytest.mark.parametrize(
    ("said", "free", "free18"),
    [
        # Without an Execute the Query commits, and ends the batch.
        pytest.param([PREPARED, query(WRITE)], True, True, id="as asyncpg refuses a value"),
        pytest.param([PREPARED + bind() + describe() + close(kind="P"), query(WRITE), sync()], True, True, id="bound"),
        pytest.param([PREPARED, CALL], True, True, id="function call"),
        # With one, PostgreSQL 18 goes on within the transaction, and from the Sync on says that there is none.
        pytest.param([BEGUN, query("select 1")], True, False, id="query"),
        pytest.param([BEGUN, query("select 1"), sync()], True, False, id="query and Sync"),
        pytest.param([BEGUN, query("select 1"), sync(), sync()], True, False, id="query and two Syncs"),
        pytest.param([BEGUN, CALL, sync()], True, False, id="function call and Sync"),
        pytest.param([BEGUN, query(""), sync()], True, False, id="empty query and Sync"),
        pytest.param([BEGUN, query("select 1"), sync(), query("select 2")], True, True, id="which the next one ends"),
        pytest.param([BEGUN, query("select 1"), query("commit")], True, True, id="commit"),
        pytest.param([BEGUN, query("select 1; select 2")], True, True, id="several statements"),
        pytest.param([BEGUN, query("select 1 / 0"), sync()], True, True, id="error"),
        pytest.param([BEGUN, query("begin"), sync(), query("commit")], True, True, id="begin"),
        pytest.param(
            [BEGUN, query("begin"), sync(), parse("commit") + bind() + execute() + sync()], True, True, id="begin, Sync"
        ),
        pytest.param(
            [
                parse("begin") + bind() + execute(),
                query("savepoint s"),
                BEGUN + sync(),
                parse("commit") + bind() + execute() + sync(),
            ],
            True,
            True,
            id="as pgjdbc saves",
        ),
        # Where in doubt, it is kept: of this Sync no version says more than that there is no transaction.
        pytest.param(
            [BEGUN, query("begin"), parse("commit") + bind() + execute() + sync()], False, False, id="begin, no Sync"
        ),
    ],
)
def test_query_behind_an_unfinished_batch(
    said: list[bytes], free: bool, free18: bool, any_pg: ServerFacts, observed: Callable[[], ObservedSession]
) -> None:
    with observed() as session:
        for message in said:
            session.say(message)
        assert session.pair.releasable() == (free18 if any_pg.version >= 18 else free)
        if session.pair.releasable():
            assert not session.truth().open
            assert session.hand_on() == [("t",)]


async def _refused_value(connection: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.DataError):
        await connection.fetch("select $1::int", "x")
    await connection.execute("select 1")


async def _prepared(connection: asyncpg.Connection) -> None:
    await connection.prepare("select $1::int")
    async with connection.transaction():
        await connection.fetchval("select 2")


async def _copied(connection: asyncpg.Connection) -> None:
    await connection.copy_from_query("select generate_series(1, $1::int)", 3, output=io.BytesIO())


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("habit", [_refused_value, _prepared, _copied])
async def test_asyncpg_ends_its_batches_with_a_query_and_keeps_no_backend(
    habit: Callable[[asyncpg.Connection], Awaitable[None]], cached: bool, world: World, pg18: ServerFacts
) -> None:
    tenant = world.tenant(pg18, limits=Limits(pool_size=1, queue_wait_timeout=2))
    connections = [
        await asyncpg.connect(world.url(tenant), ssl=False, statement_cache_size=100 if cached else 0) for _ in range(2)
    ]
    for _ in range(2):
        for connection in connections:
            await habit(connection)
            assert world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug) == 0
    for connection in connections:
        await connection.close()


def test_a_transaction_that_the_server_denies_stays_with_its_client(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=TABLE, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as client, login(world.proxy, tenant) as other:
        client.send(BEGUN, flush())
        client.read_until("C")
        assert client.query("select 1")[-1].text == "T"
        client.send(sync())
        assert client.read().text == "I"
        wait_until(lambda: _pinned(world) == 1, what="the pin")
        other.send(query(f"{WRITE}; select 'other'"))
        # The client's own transaction ends with its own next query, and the other one's is not part of it.
        assert client.query("select 2")[0].fields["C"] == "XX000"
        assert [message.text for message in other.read_until() if message.kind == "C"] == ["INSERT 0 1", "SELECT 1"]
        assert _pinned(world) == 0
        assert client.rows("select count(*) from written") == [("1",)]


def test_who_leaves_such_a_transaction_leaves_nothing_of_it(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=TABLE, limits=Limits(pool_size=1))
    with login(world.proxy, tenant) as client:
        client.send(BEGUN, query("select 1"), sync())
        assert [client.read_until()[-1].text, client.read_until()[-1].text] == ["T", "I"]
    with login(world.proxy, tenant) as other:
        assert other.rows("select count(*) from written") == [("0",)]
        assert _pinned(world) == 0


def test_settings_taken_away_in_such_a_transaction_do_not_commit_it(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, seed=TABLE, limits=Limits(pool_size=1))
    with world.proxy.connect() as client:
        client.login(tenant.user, tenant.password, tenant.slug, work_mem="5MB")
        client.send(BEGUN, flush())
        client.read_until("C")
        assert client.query("reset work_mem")[-1].text == "T"
        assert client.query("rollback")[-1].text == "I"
        assert client.rows("select count(*), current_setting('work_mem') from written") == [("0", "5MB")]


def _pinned(world: World) -> float:
    return world.proxy.metric("pgtenant_pins", reason="pipeline")
