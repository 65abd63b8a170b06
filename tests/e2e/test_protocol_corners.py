"""Corners of the protocol that drivers reach, each answered as by PostgreSQL itself.

What nobody should send is in test_bad_input, what only a broken server says in test_broken_servers, TLS in
test_client_tls, sizes in test_copy_and_size, and conversations at random in test_conversations and test_pipelines.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
import pytest
from harness.disasters import SEED, leftovers, login
from harness.rawclient import (
    PROTOCOL_3_2,
    Message,
    RawClient,
    bind,
    close,
    cstring,
    describe,
    execute,
    flush,
    frame,
    parse,
    query,
    startup,
    sync,
)
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits


@dataclass(frozen=True)
class Step:
    """What a client sends in one segment, and the last message of the answer that it waits for."""

    sent: bytes
    until: str = "Z"


def to(until: str, *messages: bytes) -> Step:
    return Step(b"".join(messages), until)


def asked(*statements: str) -> list[Step]:
    return [Step(query(statement)) for statement in statements]


def call(function: int, *arguments: bytes) -> bytes:
    """A FunctionCall with arguments and a result in binary form."""
    values = b"".join(struct.pack("!I", len(argument)) + argument for argument in arguments)
    return frame("F", struct.pack("!IHHH", function, 1, 1, len(arguments)) + values + b"\0\1")


TOLD = """
create function told(n int) returns int language plpgsql as $$ begin raise notice '%', n; return n; end $$;
"""
INT4_ABS = 1251
HALF_A_ROW = frame("d", b"901\thalf"), frame("d", b" a row\tx\n")
CORNERS: dict[str, Sequence[Step]] = {
    "an empty query": asked("", "  ", ";", ";;;", "-- nothing\n"),
    "an empty statement": [to("Z", parse(""), bind(), describe(), execute(), sync())],
    "several statements in one query": asked("select 1; select 2; ; select 3"),
    "several statements, the second one fails": asked("update mine set note = 'x'; select 1 / 0; select 3", "select 4"),
    "a transaction within one query": asked("begin; select 1; commit; begin; select 2", "rollback"),
    "several statements that begin and fail": asked("begin; select 1 / 0; select 2", "select 3", "commit"),
    "rows, tags and notices by turns": asked(
        "select 1; do $$ begin raise notice 'one'; end $$; select 2; do $$ begin raise warning 'two'; end $$"
    ),
    "a notice between rows": asked(
        "select told(g) from generate_series(1, 3) g", "select told(g) from generate_series(1, 3) g; select 1 / 0"
    ),
    "parameters that change and change back": asked(
        "set timezone = 'Asia/Tokyo'", "begin; set local timezone = 'Europe/Paris'", "rollback", "reset timezone"
    ),
    "a parameter that a function changes": [
        *asked("select set_config('application_name', 'changed', false)"),
        to("Z", parse("select set_config('application_name', 'again', false)"), bind(), execute(), sync()),
        *asked("reset application_name"),
    ],
    "a message to oneself": asked("listen here", "notify here, 'one'; notify here, 'two'", "select 1", "unlisten *"),
    "errors skip to the next Sync": [
        to("E", parse("no SQL"), flush()),
        to("Z", bind(), execute(), parse("select 1"), describe(), query("select 2"), flush(), sync()),
        to("Z", parse("select 3"), bind(), execute(), sync()),
    ],
    "an error at the end of a pipeline": [
        to("Z", parse("update mine set note = 'gone' where id = 1"), bind(), execute(), parse("no SQL"), sync()),
        *asked("select note from mine where id = 1"),
    ],
    "a pipeline in several transactions": [
        Step(b"".join(parse(f"select {number}") + bind() + execute() + sync() for number in range(1, 4))),
        to("Z"),
        to("Z"),
    ],
    # PostgreSQL 18 says after this Sync that there is no transaction, and yet there is one.
    "a query within a pipeline": [
        to("Z", parse("select 1"), bind(), execute(), query("update mine set note = 'x' where id = 1")),
        to("Z", sync()),
        *asked("select 2", "select note from mine where id = 1", "update mine set note = ''"),
    ],
    "a query within a pipeline, and a goodbye": [
        to("Z", parse("select 1"), bind(), execute(), query("select 2")),
        to("Z", sync()),
    ],
    "a function call within a pipeline": [
        to("Z", parse("select 1"), bind(), execute(), call(INT4_ABS, struct.pack("!i", -7))),
        to("Z", sync()),
        *asked("select 2", "select 3"),
    ],
    "Flush without Sync": [
        to("1", parse("select g from generate_series(1, 3) g"), flush()),
        to("t", describe(kind="S"), flush()),
        to("T"),
        to("2", bind(), flush()),
        to("C", execute(), flush()),
        to("Z", sync()),
    ],
    "a portal that is suspended and goes on": [
        *asked("begin"),
        to("s", parse("select g from generate_series(1, 5) g"), bind(portal="p"), execute("p", limit=2), flush()),
        to("Z", execute("p", limit=2), sync()),
        to("Z", execute("p", limit=2), execute("p"), sync()),
        to("Z", close("p", kind="P"), execute("p"), sync()),
        *asked("rollback"),
    ],
    "a portal that is suspended outside of a transaction": [
        to("s", parse("select g from generate_series(1, 5) g"), bind(), execute(limit=2), flush()),
        to("s", execute(limit=1), flush()),
        to("Z", execute(), sync()),
        to("Z", execute(), sync()),
    ],
    "two portals by turns": [
        *asked("begin"),
        to("Z", parse("select g from generate_series(1, 4) g"), bind(portal="a"), bind(portal="b"), sync()),
        to("Z", execute("a", limit=1), execute("b", limit=3), execute("a"), execute("b"), sync()),
        *asked("commit"),
    ],
    "a portal outlives no transaction": [
        *asked("begin"),
        to("Z", parse("select 1"), bind(portal="p"), sync()),
        *asked("commit"),
        to("Z", execute("p"), sync()),
    ],
    "a cursor of SQL as a portal": [
        *asked("begin; declare c cursor for select g from generate_series(1, 5) g"),
        to("Z", describe("c"), execute("c", limit=2), sync()),
        *asked("fetch 2 from c", "close c; commit"),
    ],
    "results in binary form": [
        to(
            "Z",
            parse("select $1::int8, 'text'"),
            frame("B", b"\0\0\0\0\0\1\0\0\0\1" + b"7" + b"\0\1\0\1"),
            execute(),
            sync(),
        ),
        to("Z", parse("select 1"), frame("B", b"\0\0\0\1\0\1\0\0\0\1\0\1"), describe(), execute(), sync()),
    ],
    "parameters whose types are asked for": [
        to("Z", frame("P", cstring("typed") + cstring("select $1, $2::text") + b"\0\1\0\0\0\x17"), sync()),
        to("Z", describe("typed", kind="S"), bind(["1", None], statement="typed"), describe(), execute(), sync()),
        to("Z", close("typed"), describe("typed", kind="S"), sync()),
    ],
    "a function call": [to("Z", call(INT4_ABS, struct.pack("!i", -7)))],
    "a function call that fails": [to("Z", call(INT4_ABS)), to("Z", call(INT4_ABS, b"x")), *asked("select 1")],
    "a function call in a transaction": [
        *asked("begin"),
        to("Z", call(INT4_ABS, struct.pack("!i", -(2**31)))),
        to("Z", call(INT4_ABS, struct.pack("!i", 1))),
        *asked("rollback"),
    ],
    "COPY to the client": [
        *asked("copy (select g from generate_series(1, 3) g) to stdout"),
        to("Z", parse("copy (values (1), (2)) to stdout (format binary)"), bind(), describe(), execute(), sync()),
        *asked("copy (select 1 / (g - 2) from generate_series(1, 3) g) to stdout", "select 'on'"),
    ],
    "COPY to the server": [
        to("G", query("begin; copy mine from stdin")),
        to("Z", frame("d", b"900\ta\tb\n"), *HALF_A_ROW, frame("d", b""), frame("c")),
        *asked("select * from mine where id > 800 order by id", "rollback"),
    ],
    "COPY to the server with Flush and Sync inside": [
        *asked("begin"),
        to("G", parse("copy mine from stdin"), bind(), execute(), flush()),
        to("Z", frame("d", b"900\ta\tb\n"), flush(), sync(), frame("d", b"901\ta\tb\n"), frame("c"), sync()),
        *asked("select count(*) from mine where id > 800", "rollback"),
    ],
    "CopyFail": [
        to("G", query("copy mine from stdin")),
        to("Z", frame("d", b"900\ta\tb\n"), frame("f", cstring("changed my mind"))),
        to("G", parse("copy mine from stdin"), bind(), execute(), flush()),
        to("Z", frame("f", cstring("and again")), parse("select 1"), sync()),
        *asked("select count(*) from mine"),
    ],
    "an error within COPY while the client goes on": [
        to("G", query("copy mine from stdin")),
        to("E", frame("d", b"no number\ta\tb\n"), frame("d", b"900\ta\tb\n") * 20),
        to("Z", frame("d", b"901\ta\tb\n") * 20, frame("c")),
        *asked("select count(*) from mine"),
    ],
    "an error within COPY of a pipeline": [
        to("G", parse("copy mine from stdin"), bind(), execute(), flush()),
        to("E", frame("d", b"no number\ta\tb\n"), frame("c")),
        to("Z", frame("d", b"900\ta\tb\n"), parse("select 1"), bind(), execute(), sync()),
    ],
    "two COPY in one query": [
        to("G", query("copy mine from stdin; copy mine from stdin; select 'behind'")),
        to("G", frame("c")),
        to("Z", frame("f", cstring("no"))),
    ],
}


@pytest.fixture(scope="module", params=[18, 17], ids=["pg18", "pg17"])
def alone(request: pytest.FixtureRequest, world: World, pg18: ServerFacts, pg17: ServerFacts) -> TenantUnderTest:
    """A tenant with one backend, which all its clients share in turns."""
    server = pg18 if request.param == 18 else pg17
    return world.tenant(server, seed=SEED + TOLD, limits=Limits(pool_size=1))


def answers(client: RawClient, steps: Sequence[Step]) -> list[tuple[str, bytes]]:
    """All that is answered; the process in notifications, which is another one, left out."""
    found: list[Message] = []
    for step in steps:
        if step.sent:
            client.send(step.sent)
        found += client.read_until(step.until)
    return [(one.kind, one.body[4:] if one.kind == "A" else one.body) for one in found]


@pytest.mark.parametrize("case", CORNERS)
def test_corner_is_answered_as_by_postgresql(case: str, world: World, alone: TenantUnderTest) -> None:
    database = alone.database
    with RawClient(database.server.port) as direct:
        direct.login(database.role, database.password, database.name)
        expected = answers(direct, CORNERS[case])
    with login(world.proxy, alone) as client:
        assert answers(client, CORNERS[case]) == expected
        # Nothing of it is left, not even an answer that nobody has asked for.
        client.sock.settimeout(0.02)
        with pytest.raises(TimeoutError):
            client.read()
    assert leftovers(world.proxy, alone, 1) == set()


def test_protocol_is_negotiated_and_the_session_works(world: World, alone: TenantUnderTest) -> None:
    for minor, options, told in (
        (2, {}, None),
        (9, {}, (PROTOCOL_3_2, [])),
        (0, {"_pq_.one": "1"}, (3 << 16, ["_pq_.one"])),
        (9, {"_pq_.one": "1", "_pq_.two": ""}, (PROTOCOL_3_2, ["_pq_.one", "_pq_.two"])),
    ):
        with NoticingClient(world.proxy.port) as client:
            client.login(alone.user, alone.password, alone.slug, protocol=3 << 16 | minor, **options)
            assert client.negotiated == told
            assert len(client.key) == (32 if minor else 4)
            assert client.rows("select 1") == [("1",)]


class NoticingClient(RawClient):
    """Keeps what NegotiateProtocolVersion says: version and options."""

    negotiated: tuple[int, list[str]] | None = None

    def read(self) -> Message:
        message = super().read()
        if message.kind == "v":
            (count,) = struct.unpack_from("!I", message.body, 4)
            names = message.body[8:].split(b"\0")[:-1]
            assert len(names) == count
            self.negotiated = message.int32, [name.decode() for name in names]
        return message


def test_a_backend_that_is_ended_while_idle_is_replaced_and_nobody_notices(
    world: World, alone: TenantUnderTest
) -> None:
    with psycopg.connect(world.url(alone), autocommit=True) as connection:
        for _ in range(3):
            assert connection.execute("select 1").fetchone() == (1,)
            assert alone.database.terminate_backends() == 1
            wait_until(lambda: world.backends(alone) == 0, what="the loss seen")


def test_a_backend_that_is_ended_in_a_query_or_a_transaction_is_told_in_postgresqls_words(
    world: World, alone: TenantUnderTest
) -> None:
    for before, sent in (([], [query("select pg_sleep(30)")]), (["begin", "select 1"], [])):
        with login(world.proxy, alone) as client:
            for statement in before:
                client.rows(statement)
            client.send(*sent)
            busy = "state in ('active', 'idle in transaction')"
            wait_until(lambda: alone.database.terminate_backends(busy) == 1, what="a kill")  # noqa: B023
            error = client.read_to_end()[-1]
            assert (error.fields["S"], error.fields["C"]) == ("FATAL", "57P01")
    with login(world.proxy, alone) as client:
        assert client.rows("select 1") == [("1",)]


def test_a_login_that_asks_for_everything_at_once(world: World, alone: TenantUnderTest) -> None:
    """GSS and TLS are declined, in either order, and each only once."""
    gss, tls = struct.pack("!II", 8, 80877104), struct.pack("!II", 8, 80877103)
    for first, second in ((gss, tls), (tls, gss)):
        with world.proxy.connect() as client:
            client.send(first)
            assert client.read_exactly(1) == b"N"
            client.send(second)
            assert client.read_exactly(1) == b"N"
            client.login(alone.user, alone.password, alone.slug)
            assert client.rows("select 1") == [("1",)]
    with world.proxy.connect() as client:
        client.send(tls)
        assert client.read_exactly(1) == b"N"
        client.send(tls + startup({"user": alone.user, "database": alone.slug}))
        assert [message.fields["C"] for message in client.read_to_end()] == ["08P01"]
