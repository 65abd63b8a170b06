"""Named prepared statements in transaction mode: clients share backends and see what PostgreSQL itself would answer."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from harness.rawclient import Message, RawClient, bind, close, describe, execute, flush, frame, parse, query, sync
from harness.registries import TenantUnderTest
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

PROXY = {"pool": {"max_prepared_statements": 4, "queue_wait_timeout": 10}}
SEED = """
create table things (id int, label text); insert into things values (1, 'one'), (2, 'two');
create schema other; create table other.things (id int, price numeric); insert into other.things values (7, 7.5)
"""
SELECT = "select id, label from things where id = $1"

Answers = list[tuple[str, bytes]]


@pytest.fixture(scope="module", params=["pg18", "pg17"])
def any_version(request: pytest.FixtureRequest) -> ServerFacts:
    server = request.getfixturevalue(request.param)
    assert isinstance(server, ServerFacts)
    return server


@pytest.fixture
def tenant(world: World, any_version: ServerFacts) -> TenantUnderTest:
    return world.tenant(any_version, seed=SEED, limits=Limits(pool_size=2))


@contextmanager
def proxied(world: World, tenant: TenantUnderTest, options: str = "") -> Iterator[RawClient]:
    with world.proxy.connect() as client:
        client.login(tenant.user, tenant.password, tenant.slug, options=options)
        yield client


@contextmanager
def direct(tenant: TenantUnderTest, options: str = "") -> Iterator[RawClient]:
    database = tenant.database
    with RawClient(database.server.port) as client:
        client.login(database.role, database.password, database.name, options=options)
        yield client


@contextmanager
def busy(world: World, tenant: TenantUnderTest) -> Iterator[None]:
    """One backend, that which was used last, is in a transaction of somebody else."""
    with proxied(world, tenant) as other:
        other.query("begin")
        yield
        other.query("rollback")


def ask(client: RawClient, *messages: bytes) -> Answers:
    """Send a batch and collect what comes up to its ReadyForQuery."""
    client.send(*messages)
    return answers(client)


def answers(client: RawClient) -> Answers:
    """What comes up to the next ReadyForQuery; of errors not the place in the server's source."""
    return [(message.kind, _without_place(message)) for message in client.read_until("Z")]


def _without_place(message: Message) -> bytes:
    if message.kind != "E":
        return message.body
    return b"\0".join(field for field in message.body.split(b"\0") if field[:1] not in (b"F", b"L", b"R"))


def kinds(said: Answers) -> str:
    return "".join(kind for kind, _ in said)


def error(said: Answers) -> tuple[str, str]:
    fields = next(Message(kind, body).fields for kind, body in said if kind == "E")
    return fields["C"], fields["M"]


def names_on_the_server(client: RawClient) -> int:
    return int(client.rows("select count(*) from pg_prepared_statements where name like 'pgtenant%'")[0][0] or 0)


def test_statement_follows_its_client_to_a_backend_that_never_saw_it(world: World, tenant: TenantUnderTest) -> None:
    with proxied(world, tenant) as client, direct(tenant) as own:
        assert ask(client, parse(SELECT, "s"), sync()) == ask(own, parse(SELECT, "s"), sync())
        use = [bind(["2"], statement="s"), describe(), execute(), sync()]
        expected = ask(own, *use)
        first = client.rows("select pg_backend_pid()")
        assert ask(client, *use) == expected
        with busy(world, tenant):
            assert client.rows("select pg_backend_pid()") != first
            assert ask(client, *use) == expected
            assert ask(client, *use) == expected
            assert world.proxy.metric("pgtenant_prepared_again_total", tenant=tenant.slug) == 1
            assert ask(client, describe("s", kind="S"), sync()) == ask(own, describe("s", kind="S"), sync())
        assert world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug) == 0


def test_equal_names_of_two_clients_mean_what_each_has_prepared(world: World, tenant: TenantUnderTest) -> None:
    with proxied(world, tenant) as one, proxied(world, tenant) as two:
        ask(one, parse("select 'first'", "s"), sync())
        ask(two, parse("select 'second'", "s"), sync())
        for _ in range(3):
            assert b"first" in dict(ask(one, bind(statement="s"), execute(), sync()))["D"]
            assert b"second" in dict(ask(two, bind(statement="s"), execute(), sync()))["D"]


def test_equal_statements_of_many_clients_are_one_on_the_server(world: World, tenant: TenantUnderTest) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(proxied(world, tenant)) for _ in range(5)]
        for number, client in enumerate(clients):
            ask(client, parse(SELECT, f"s{number}"), sync())
        for number, client in enumerate(clients):
            assert "D" in kinds(ask(client, bind(["1"], statement=f"s{number}"), execute(), sync()))
        assert names_on_the_server(clients[0]) == 1


def test_equal_text_under_another_search_path_is_another_statement(world: World, tenant: TenantUnderTest) -> None:
    text = "select * from things"
    with (
        proxied(world, tenant) as plain,
        proxied(world, tenant, options="-c search_path=other") as special,
        direct(tenant, options="-c search_path=other") as own,
    ):
        ask(plain, parse(text, "s"), sync())
        assert ask(special, parse(text, "s"), sync()) == ask(own, parse(text, "s"), sync())
        use = [bind(statement="s"), describe(), execute(), sync()]
        expected = ask(own, *use)
        for _ in range(2):
            assert b"7.5" in dict(expected)["D"]
            assert ask(special, *use) == expected
            assert b"two" in b"".join(body for kind, body in ask(plain, *use) if kind == "D")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([[parse("no SQL", "s"), sync()], [bind(statement="s"), execute(), sync()]], id="failed Parse"),
        pytest.param(
            [[parse("no SQL", "s"), sync()], [parse("select 1", "s"), sync()], [bind(statement="s"), sync()]],
            id="name of a failed Parse",
        ),
        pytest.param(
            [
                [parse("select 1", "s"), sync()],
                [parse("select 2", "s"), sync()],
                [bind(statement="s"), execute(), sync()],
            ],
            id="name in use",
        ),
        pytest.param(
            [[parse("select 1", "s"), close("s"), parse("select 2", "s"), bind(statement="s"), execute(), sync()]],
            id="closed and prepared again in one batch",
        ),
        pytest.param(
            [
                [query("begin")],
                [query("select 1/0")],
                [parse("select 1", "s"), sync()],
                [query("rollback")],
                [bind(statement="s"), sync()],
            ],
            id="Parse in a failed transaction",
        ),
        pytest.param(
            [
                [parse("rollback", "r"), parse("select 1", "s"), sync()],
                [query("begin")],
                [query("select 1/0")],
                [bind(statement="s"), execute(), sync()],
                [bind(statement="r"), execute(), sync()],
                [bind(statement="s"), execute(), sync()],
            ],
            id="Bind in a failed transaction",
        ),
        pytest.param(
            [
                [parse("select 1", "s"), sync()],
                [execute("none"), close("s"), parse("select 2", "t"), sync()],
                [bind(statement="s"), execute(), sync()],
                [bind(statement="t"), execute(), sync()],
            ],
            id="Close and Parse that were skipped",
        ),
        pytest.param(
            [
                [parse("select 1", "s"), sync()],
                [query("deallocate s")],
                [bind(statement="s"), sync()],
                [query("deallocate s")],
            ],
            id="DEALLOCATE",
        ),
        pytest.param(
            [
                [parse("select 1", "S'"), sync()],
                [query("begin")],
                [query("select 1/0")],
                [query('deallocate "S\'"')],
                [query("rollback")],
                [bind(statement="S'"), execute(), sync()],
                [query('DEALLOCATE PREPARE "S\'";')],
                [bind(statement="S'"), execute(), sync()],
            ],
            id="DEALLOCATE in a failed transaction",
        ),
        pytest.param(
            [
                [parse("select 1", "s"), sync()],
                [parse("deallocate s"), bind(), execute(), sync()],
                [bind(statement="s"), execute(), sync()],
            ],
            id="DEALLOCATE by extended query",
        ),
        pytest.param(
            [
                [parse("select 1", "a"), parse("select 2", "b"), sync()],
                [query("deallocate all")],
                [bind(statement="a"), sync()],
                [parse("select 3", "a"), bind(statement="a"), execute(), sync()],
            ],
            id="DEALLOCATE ALL",
        ),
        pytest.param(
            [
                [parse("select 1", "a"), sync()],
                [
                    parse("deallocate all"),
                    bind(),
                    execute(),
                    parse("select 2", "a"),
                    bind(statement="a"),
                    execute(),
                    sync(),
                ],
            ],
            id="DEALLOCATE ALL within a batch",
        ),
        pytest.param(
            [[parse("select 1", "a"), sync()], [query("discard all")], [bind(statement="a"), sync()]], id="DISCARD ALL"
        ),
        pytest.param(
            [
                [parse("select $1::int", "s"), sync()],
                [bind(["no number"], statement="s"), execute(), sync()],
                [bind(["5"], statement="s"), execute(), sync()],
                [bind(["5", "6"], statement="s"), execute(), sync()],
            ],
            id="Bind that fails",
        ),
        pytest.param(
            [
                [parse("select generate_series(1, 5)", "s"), sync()],
                [query("begin")],
                [bind(statement="s", portal="p"), execute("p", limit=2), sync()],
                [execute("p", limit=2), close("s"), execute("p"), sync()],
                [query("commit")],
            ],
            id="portal that outlives its statement",
        ),
        pytest.param([[close("never"), describe("never", kind="S"), sync()]], id="name that never was"),
        pytest.param(
            [[parse("select 1", "s"), bind(statement="s"), execute(), sync(), parse("select 1", "s"), sync()]],
            id="name in use within a pipeline",
        ),
    ],
)
def test_answers_are_those_of_the_server_itself(
    script: list[list[bytes]], world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client, direct(tenant) as own:
        for batch in script:
            ready = sum(message == sync() or message[:1] == b"Q" for message in batch)
            client.send(*batch)
            own.send(*batch)
            for _ in range(ready):
                expected = answers(own)
                assert answers(client) == expected, batch


@pytest.mark.parametrize(
    ("ending", "options"),
    [(query("select 1"), "-c search_path=other"), (close("") + sync(), "")],
    ids=["query", "close"],
)
def test_unnamed_statement_is_made_again_where_somebody_else_has_ended_it(
    ending: bytes, options: str, world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client, proxied(world, tenant, options=options) as other:
        for step in (
            [parse("select 'mine'")],
            [describe(kind="S")],
            [bind(), describe(), execute()],
            [bind(), execute()],
        ):
            assert "E" not in kinds(ask(client, *step, sync()))
            ask(other, ending)


@pytest.mark.parametrize("ended", [False, True])
def test_unnamed_statement_that_was_replaced_on_another_backend_is_not_run(
    ended: bool, world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client, proxied(world, tenant) as other:
        for name in ("begin", "commit"):
            ask(other, parse(name, name), sync())
        ask(client, parse("select 'first'"), sync())
        # It has the backend that knows the first one, and says nothing there that would end it.
        ask(other, bind(statement="begin"), execute(), sync())
        ask(client, parse("select 'second'"), sync())
        if ended:
            client.query("select 1")
        with busy(world, tenant):
            ask(other, bind(statement="commit"), execute(), sync())
            said = ask(client, bind(), execute(), sync())
        if ended:
            assert error(said)[0] == "26000"
        else:
            assert b"second" in dict(said)["D"]


def test_unnamed_statement_of_any_length_is_there_until_it_is_replaced(world: World, tenant: TenantUnderTest) -> None:
    text = f"select id, label from things where id = $1 -- {'x' * 20_000}"
    use = [bind(["1"]), describe(), execute(), sync()]
    with proxied(world, tenant) as client, direct(tenant) as own:
        assert ask(client, parse(text), describe(kind="S"), sync()) == ask(own, parse(text), describe(kind="S"), sync())
        with busy(world, tenant):
            for _ in range(3):
                assert ask(client, *use) == ask(own, *use)
        assert world.proxy.metric("pgtenant_pins", reason="unnamed_statement") == 1
        failing = [bind(["one"]), parse("select 1"), bind(), execute(), sync()]
        assert ask(client, *failing) == ask(own, *failing)
        assert ask(client, *use) == ask(own, *use), "its replacement was skipped"
        for replacement in ([query("select 1")], [parse(text), *use[:-1], sync()], [close(""), sync()]):
            ask(client, parse(text), sync())
            assert world.proxy.metric("pgtenant_pins", reason="unnamed_statement") == 1
            ask(client, *replacement)
            assert world.proxy.metric("pgtenant_pins", reason="unnamed_statement") == 0


def test_unnamed_statement_is_made_again_where_it_is_used(world: World, tenant: TenantUnderTest) -> None:
    with proxied(world, tenant) as client:
        ask(client, parse("select 'unnamed'"), bind(), execute(), sync())
        with busy(world, tenant), proxied(world, tenant) as other:
            assert "D" in kinds(ask(other, parse("select 'another'"), bind(), execute(), sync()))
            assert b"unnamed" in dict(ask(client, bind(), execute(), sync()))["D"]
            ask(other, parse("select 'another'"), bind(), execute(), sync())
            client.query("select 1")
            assert error(ask(client, bind(), execute(), sync()))[0] == "26000", "a simple query ends it"


def test_changed_result_type_is_refused_on_a_backend_that_never_saw_the_old_one(
    world: World, tenant: TenantUnderTest
) -> None:
    text = "select * from things"
    use = [bind(statement="s"), execute(), sync()]
    with proxied(world, tenant) as client, direct(tenant) as own:
        for each in (client, own):
            ask(each, parse(text, "s"), describe("s", kind="S"), sync())
        own.query("alter table things add column more int")
        expected = error(ask(own, *use))
        assert expected == ("0A000", "cached plan must not change result type")
        with busy(world, tenant):
            client.query("begin")
            assert error(ask(client, *use)) == expected
            assert dict(ask(client, sync()))["Z"] == b"E", "as everywhere, the transaction has failed"
            client.query("rollback")
            assert error(ask(client, *use)) == expected
        assert error(ask(client, *use)) == expected
        for name in ("fresh", "s"):
            ask(client, close(name), parse(text, name), describe(name, kind="S"), sync())
            with busy(world, tenant):
                assert "D" in kinds(ask(client, bind(statement=name), execute(), sync()))
            assert "D" in kinds(ask(client, bind(statement=name), execute(), sync()))


def test_cursor_that_is_gone_is_missed_by_a_prepared_fetch(world: World, tenant: TenantUnderTest) -> None:
    use = [bind(statement="f"), execute(), sync()]
    with proxied(world, tenant) as client, direct(tenant) as own:
        for each in (client, own):
            each.query("begin")
            each.query("declare c cursor for select 1")
            ask(each, parse("fetch 1 from c", "f"), sync())
            each.query("commit")
        expected = ask(own, *use)
        assert error(expected)[0] == "34000"
        with busy(world, tenant):
            assert ask(client, *use) == expected
        assert ask(client, *use) == expected


def test_statement_that_can_no_longer_be_prepared_is_refused_as_by_the_server(
    world: World, tenant: TenantUnderTest
) -> None:
    use = [bind(["1"], statement="s"), execute(), sync()]
    with proxied(world, tenant) as client, direct(tenant) as own:
        for each in (client, own):
            ask(each, parse(SELECT, "s"), sync())
        own.query("alter table things rename to gone")
        with busy(world, tenant):
            assert error(ask(client, *use)) == error(ask(own, *use)) == ("42P01", 'relation "things" does not exist')
            own.query("alter table gone rename to things")
            assert ask(client, *use) == ask(own, *use)


def test_backend_keeps_no_more_statements_than_allowed(world: World, tenant: TenantUnderTest) -> None:
    with proxied(world, tenant) as client:
        for number in range(12):
            ask(client, parse(f"select {number}", f"s{number}"), sync())
        assert names_on_the_server(client) == 4
        for number in range(12):
            assert str(number).encode() in dict(ask(client, bind(statement=f"s{number}"), execute(), sync()))["D"]
        assert names_on_the_server(client) == 4


def test_copy_that_a_client_has_taken_away_is_made_again(world: World, tenant: TenantUnderTest) -> None:
    use = [bind(["1"], statement="s"), execute(), sync()]
    with proxied(world, tenant) as client, proxied(world, tenant) as meddler:
        ask(client, parse(SELECT, "s"), sync())
        ((name,),) = meddler.rows("select name from pg_prepared_statements where name like 'pgtenant%'")
        meddler.query(f"deallocate {name}")
        ask(meddler, close(str(name)), sync())
        assert "D" in kinds(ask(client, *use))
        meddler.query(f"do $$ begin execute 'deallocate {name}'; end $$")
        assert error(ask(client, *use)) == ("26000", 'prepared statement "s" does not exist')
        assert "D" in kinds(ask(client, *use))


@pytest.mark.parametrize(
    "text",
    [
        'select * from "pgtenant_x"',
        "execute pgtenant_5",
        "select 1; select 'x'::int as \"pgtenant_q\"",
        "deallocate pgtenant_7",
    ],
)
def test_error_that_speaks_of_a_name_like_the_proxys_own_reaches_the_client(
    text: str, world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client, direct(tenant) as own:
        for batch in ([query(text)], [parse(text), bind(), execute(), sync()]):
            assert ask(client, *batch) == ask(own, *batch)


def test_names_in_the_server_cannot_be_guessed_from_those_of_another_node(
    world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client:
        ask(client, parse("select 1", "a"), parse("select 2", "b"), sync())
        names = [str(name) for (name,) in client.rows("select name from pg_prepared_statements order by name")]
    first, second = (name.rsplit("_", 1) for name in names)
    assert first[0] == second[0]
    assert re.fullmatch(r"pgtenant_[0-9a-f]{16}", first[0])


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param([parse(f"select 1 -- {'x' * 70_000}", "s"), sync()], id="a long one"),
        pytest.param(
            [part for n in range(45) for part in (parse(f"select {n} -- {'x' * 60_000}", f"s{n}"), sync())],
            id="many long ones",
        ),
    ],
)
def test_statements_beyond_the_bounds_keep_their_client_on_its_backend(
    prepare: list[bytes], world: World, tenant: TenantUnderTest
) -> None:
    with proxied(world, tenant) as client:
        for message in prepare:
            client.send(message)
            if message == sync():
                client.read_until("Z")
        assert world.proxy.metric("pgtenant_pinned_clients", tenant=tenant.slug) == 1
        name = "s" if len(prepare) == 2 else "s44"
        with busy(world, tenant):
            assert "D" in kinds(ask(client, bind(statement=name), execute(), sync()))
    world.wait_for_rest(tenant)


def test_bind_of_any_size_reaches_the_statement_whole(world: World, tenant: TenantUnderTest) -> None:
    value = "payload " * 500_000
    with proxied(world, tenant) as client:
        ask(client, parse("select length($1), md5($1)", "s"), sync())
        with busy(world, tenant):
            for _ in range(2):
                said = ask(client, bind([value], statement="s"), execute(), sync())
                assert Message("D", dict(said)["D"]).row[0] == str(len(value))


STATEMENTS = [
    "select 1",
    "select $1::text",
    SELECT,
    "insert into things values (3, 'three') returning *",
    "begin",
    "commit",
    "rollback",
    "select 1 / 0",
    "no SQL",
    "show search_path",
    "",
]
VALUES: dict[str, list[str]] = {"select $1::text": ["text"], SELECT: ["2"]}


def random_batch(chance: random.Random) -> list[bytes]:
    """A batch that ends with one ReadyForQuery."""
    if chance.random() < 0.2:
        return [query(chance.choice(["begin", "commit", "rollback", "deallocate b", "deallocate all", "select 2"]))]
    messages: list[bytes] = []
    for _ in range(chance.randrange(1, 5)):
        name, statement = chance.choice(["a", "b", "c", ""]), chance.choice(STATEMENTS)
        messages += chance.choice(
            [
                [parse(statement, name), bind(VALUES.get(statement, []), statement=name), execute()],
                [parse(statement, name)],
                [bind(chance.choice([[], ["1"]]), statement=name or "a"), execute()],
                [describe(name or "b", kind="S")],
                [close(name or "a")],
                [parse("deallocate a"), bind(), execute()],
                [parse("deallocate all"), bind(), execute()],
                [flush()],
            ]
        )
    return [*messages, sync()]


@pytest.mark.parametrize("seed", range(4))
def test_interleaved_clients_are_answered_as_by_servers_of_their_own(
    seed: int, world: World, tenant: TenantUnderTest
) -> None:
    chance = random.Random(seed)
    with ExitStack() as stack:
        pairs = [(stack.enter_context(proxied(world, tenant)), stack.enter_context(direct(tenant))) for _ in range(3)]
        open_by: dict[int, bytes] = {}
        for _ in range(120):
            number = chance.randrange(3)
            if len(open_by) == 2 and number not in open_by:
                number = next(iter(open_by))
            batch = random_batch(chance)
            client, own = pairs[number]
            expected, got = ask(own, *batch), ask(client, *batch)
            if open_by.get(number) == b"E":
                # Which of several errors a failed transaction meets first depends on what a backend has prepared.
                assert kinds(got) == kinds(expected), (number, batch)
            else:
                assert got == expected, (number, batch)
            status = expected[-1][1]
            open_by.pop(number, None)
            if status != b"I":
                open_by[number] = status


def test_session_ends_where_a_statement_from_before_a_failed_copy_cannot_be_had(
    world: World, tenant: TenantUnderTest
) -> None:
    """As tokio-postgres and libpq copy: with a Sync ahead of the data."""
    with proxied(world, tenant) as client:
        ask(client, parse(SELECT, "s"), sync())
        client.send(parse("copy things from stdin"), bind(), execute(), sync())
        client.read_until("G")
        assert [kind for kind, _ in ask(client, frame("d", b"no row\n"), frame("c"), sync())] == ["E", "Z"]
        client.send(bind(["1"], statement="s"), execute(), sync())
        said = client.read_to_end()[0].fields
        assert (said["V"], said["C"]) == ("FATAL", "08P01")
        assert "a copy that failed" in said["M"]
    with proxied(world, tenant) as client:
        assert client.rows("select count(*) from things") == [("2",)]
