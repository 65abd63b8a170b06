"""Bytes that no driver would send: a clear error, nothing lost, and nobody else notices."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from harness.bystander import undisturbed
from harness.process import peak_memory
from harness.rawclient import (
    SSL_REQUEST,
    BytewiseClient,
    Disconnected,
    EagerClient,
    Message,
    RawClient,
    ServerSaid,
    bind,
    close,
    describe,
    execute,
    flush,
    frame,
    parse,
    query,
    startup,
    sync,
    terminate,
)
from harness.registries import TenantUnderTest
from harness.waiting import allowed, wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

LOGIN_TIMEOUT = 1.0
PROXY = {"listen": {"login_timeout": LOGIN_TIMEOUT}}
SEED = "create table mine (id int primary key, note text); insert into mine values (1, 'clean')"

PROTOCOL = struct.pack("!I", 3 << 16)
IMPOSSIBLE = [0, 1, 3, 2**31 - 1, 2**31, 2**32 - 1]


@pytest.fixture(scope="module")
def acme(world: World, pg18: ServerFacts) -> TenantUnderTest:
    """A tenant with one backend: whoever comes next gets what the last one left."""
    return world.tenant(pg18, seed=SEED, limits=Limits(pool_size=1, queue_wait_timeout=10.0))


@pytest.fixture(autouse=True)
def neighbours(world: World, acme: TenantUnderTest, bystander_url: str) -> Iterator[None]:
    """A client of another tenant works meanwhile, and the next client of this one finds everything in order."""
    with undisturbed(bystander_url):
        yield
    with logged_in(world, acme) as client:
        assert client.rows("select note from mine") == [("clean",)]
        assert client.rows("select current_database()") == [(acme.database.name,)]


@pytest.fixture(scope="module")
def bystander_url(world: World, pg18: ServerFacts) -> str:
    return world.url(world.tenant(pg18))


def logged_in(world: World, tenant: TenantUnderTest) -> RawClient:
    client = world.proxy.connect()
    client.login(tenant.user, tenant.password, tenant.slug)
    return client


def end_of(client: RawClient) -> tuple[str, str] | None:
    """Read until the proxy closes; the SQLSTATE and text of the last error, None where it closed without a word."""
    told = None
    with suppress(Disconnected):
        for message in client.read_to_end():
            if message.kind == "E":
                told = (message.fields["C"], message.fields["M"])
    return told


NO_STARTUP = {
    **{f"a length of {length}": struct.pack("!I", length) + PROTOCOL for length in [*IMPOSSIBLE, 7, 10_005]},
    "a packet above 10 kB": startup({"user": "app", "database": "acme", "application_name": "x" * 10_000}),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: acme\r\n\r\n",
    "an SSH greeting": b"SSH-2.0-OpenSSH_9.9\r\n",
    "TLS, which is switched off": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "a short cancel request": struct.pack("!III", 12, 80877102, 1),
    "a cancel request with a long key": struct.pack("!III", 12 + 5000, 80877102, 1) + bytes(5000),
    "a query": query("select 1"),
    "a goodbye": terminate(),
}
CUT_SHORT = {
    "nothing": b"",
    "half a length": b"\0\0",
    "a length": struct.pack("!I", 20),
    "half a packet": startup({"user": "app", "database": "acme"})[:20],
}


@pytest.mark.parametrize("before", [b"", SSL_REQUEST], ids=["first", "after asking for TLS"])
@pytest.mark.parametrize("case", [*NO_STARTUP, *CUT_SHORT])
def test_what_is_no_packet_ends_the_connection_without_a_word(
    case: str, before: bytes, world: World, acme: TenantUnderTest
) -> None:
    def ending(client: RawClient) -> bytes:
        client.send(before)
        assert client.read_exactly(1) == b"N" if before else True
        client.send({**NO_STARTUP, **CUT_SHORT}[case])
        if case in CUT_SHORT:
            client.sock.shutdown(socket.SHUT_WR)
        return client.sock.recv(100)

    with RawClient(acme.database.server.port) as direct, suppress(ConnectionResetError):
        # A reset is what PostgreSQL's end looks like where it has left bytes unread.
        assert ending(direct) == b""
    with world.proxy.connect() as client:
        started = time.monotonic()
        assert ending(client) == b""
        assert time.monotonic() - started < allowed(LOGIN_TIMEOUT * 0.9)


BEFORE_LOGIN = {
    "no user": startup({"database": "acme"}),
    "a name without a value": struct.pack("!I", 13) + PROTOCOL + b"user\0",
    "no terminator": struct.pack("!I", 16) + PROTOCOL + b"user\0abc",
    "bytes behind the terminator": struct.pack("!I", 24) + PROTOCOL + b"user\0app\0\0junk"[:16] + b"\0\0",
    "protocol 2": struct.pack("!II", 8, 2 << 16),
    "protocol 4": startup({"user": "app"}, 4 << 16),
    "an unknown request": struct.pack("!II", 8, 80877105),
}


@pytest.mark.parametrize("case", BEFORE_LOGIN)
def test_what_is_no_startup_is_refused(case: str, world: World) -> None:
    with world.proxy.connect() as client:
        client.send(BEFORE_LOGIN[case])
        told = end_of(client)
    assert told is not None, "closed without a word"
    # What is not seen, but waited for in vain, ends with another one.
    assert told[0] in {"08P01", "0A000", "28000", "28P01"}
    assert told[1]


def after_mechanism(world: World, acme: TenantUnderTest) -> RawClient:
    """A client that has been asked for SCRAM."""
    client = world.proxy.connect()
    client.send(startup({"user": acme.user, "database": acme.slug}))
    assert client.read().int32 == 10
    return client


def initial(mechanism: bytes, data: bytes, size: int | None = None) -> bytes:
    return frame("p", mechanism + b"\0" + struct.pack("!I", len(data) if size is None else size & 0xFFFFFFFF) + data)


FIRST = b"n,,n=,r=abcdefghijklmnopqrstuvwx"
DURING_LOGIN = {
    **{f"a length of {length}": b"p" + struct.pack("!I", length) + b"SCRAM" for length in IMPOSSIBLE},
    "a password of 10 kB": frame("p", b"x" * 10_000),
    "a password of 1 MB": frame("p", b"x" * 1_000_000),
    "an unknown mechanism": initial(b"SCRAM-SHA-1", FIRST),
    "a mechanism without its end": frame("p", b"SCRAM-SHA-256"),
    "more data announced than there is": initial(b"SCRAM-SHA-256", FIRST, 5000),
    "data that is no SCRAM": initial(b"SCRAM-SHA-256", b"\xff" * 50),
    "a nonce of 9 kB": initial(b"SCRAM-SHA-256", b"n,,n=,r=" + b"y" * 9000),
    "a channel binding that was not offered": initial(b"SCRAM-SHA-256", b"p=tls-server-end-point,,n=,r=abcdefgh"),
    "a mandatory extension": initial(b"SCRAM-SHA-256", b"n,,m=1,n=,r=abcdefgh"),
    "a query in its place": query("select 1"),
    "a startup in its place": startup({"user": "app"}),
    "a goodbye": terminate(),
}


@pytest.mark.parametrize("case", DURING_LOGIN)
def test_what_is_no_password_is_refused(case: str, world: World, acme: TenantUnderTest) -> None:
    with after_mechanism(world, acme) as client:
        with suppress(ConnectionError):
            client.send(DURING_LOGIN[case])
        told = end_of(client)
    assert told is None or told[0] in {"08P01", "28P01"}
    assert told is not None or case in {"a goodbye", "a password of 1 MB"}


@pytest.mark.parametrize("final", [b"c=biws,r=wrong,p=AAAA", b"", b"\0" * 300, b"c=biws", b"x" * 9000])
def test_the_second_half_of_a_login_that_is_no_scram(final: bytes, world: World, acme: TenantUnderTest) -> None:
    with after_mechanism(world, acme) as client:
        client.send(initial(b"SCRAM-SHA-256", FIRST))
        assert client.read().int32 == 11
        client.send(frame("p", final))
        told = end_of(client)
    assert told is not None
    assert told[0] in {"08P01", "28P01"}


STUCK = {
    "before the first byte": [],
    "within the length": [b"\0\0"],
    "within the packet": [startup({"user": "app", "database": "acme"})[:20]],
    "after asking for TLS": [SSL_REQUEST],
    "before the password": [startup({"user": "app", "database": "t1"})],
    "within the password": [startup({"user": "app", "database": "t1"}), initial(b"SCRAM-SHA-256", FIRST)[:20]],
}


def test_a_login_that_never_ends_is_ended_with_a_word(world: World) -> None:
    with ExitStack() as stack:
        started = time.monotonic()
        clients = {case: stack.enter_context(world.proxy.connect()) for case in STUCK}
        for case, client in clients.items():
            client.send(*STUCK[case])
        assert clients["after asking for TLS"].read_exactly(1) == b"N"
        told = {case: end_of(client) for case, client in clients.items()}
        assert LOGIN_TIMEOUT * 0.9 < time.monotonic() - started < allowed(LOGIN_TIMEOUT + 2)
    assert {case: said and said[0] for case, said in told.items()} == dict.fromkeys(STUCK, "57014")
    assert all(said and "authentication due to timeout" in said[1] for said in told.values())


def test_dripping_bytes_do_not_buy_a_login_more_time(world: World) -> None:
    with world.proxy.connect() as client:
        started = time.monotonic()
        client.sock.settimeout(0.05)
        told = b""
        for byte in startup({"user": "app", "application_name": "x" * 5000}):
            with suppress(BrokenPipeError):
                client.sock.sendall(bytes([byte]))
            with suppress(TimeoutError):
                told = client.sock.recv(10_000)
                break
        assert b"57014" in told
        assert time.monotonic() - started < allowed(LOGIN_TIMEOUT + 2)


def outcome(client: RawClient, data: bytes) -> tuple[list[tuple[str, str]], bool]:
    """What is answered to these bytes (types, errors as severity and SQLSTATE), and whether the session goes on."""
    client.send(data)
    answers: list[tuple[str, str]] = []

    def note(message: Message) -> None:
        answers.append((message.fields["S"], message.fields["C"]) if message.kind == "E" else (message.kind, ""))

    try:
        # What the server does not answer by itself it answers with the next query.
        client.send(query("select 'on'"))
        while answers[-2:] != [("C", ""), ("Z", "")]:
            note(client.read())
    except (Disconnected, ConnectionError):
        return answers, False
    return answers, True


AFTER_LOGIN = {
    "an unknown type": frame("?", b"what"),
    "a zero byte": b"\0",
    "zeros": bytes(100),
    "an answer": frame("T", b"\0\0"),
    "a password": frame("p", b"secret\0"),
    "a second startup": startup({"user": "app", "database": "t1"}),
    "the beginning of an unknown message": b"?\0\0\1\0",
    "a query without its end": frame("Q", b"select 1"),
    "a query with something behind its end": frame("Q", b"select 1\0select 2\0"),
    "an empty query message": frame("Q"),
    "a query with a character that is none": frame("Q", b"select '\xff\xfe'\0"),
    "a parse without its names": frame("P") + sync(),
    "a parse with more types than there are": frame("P", b"\0select 1\0\x00\x09") + sync(),
    "a bind with more values than there are": parse("select $1") + frame("B", b"\0\0\0\0\0\x09\0\0\0\1x") + sync(),
    "a bind with a value longer than the message": parse("select $1")
    + frame("B", b"\0\0\0\0\0\1\0\0\xff\xffx\0\0")
    + sync(),
    "a bind to nothing": bind(statement="nothing") + sync(),
    "a describe of another kind": describe(kind="X") + sync(),
    "a describe of nothing": describe("nothing", kind="S") + sync(),
    "an execute without a portal": execute("nothing") + sync(),
    "an execute with half a limit": frame("E", b"\0\0\0") + sync(),
    "a close of another kind": close("x", kind="X") + sync(),
    "a close of nothing": close("nothing") + sync(),
    "a sync with a body": frame("S", b"junk"),
    "a function that does not exist": frame("F", b"\x7f\xff\xff\xff\0\0\0\0\0\0"),
    "half a function call": frame("F", b"\0\0"),
    "copy data out of turn": frame("d", b"1\t2\n"),
    "the end of a copy out of turn": frame("c"),
    "the failure of a copy out of turn": frame("f", b"no\0"),
    "a query within a copy": query("copy mine from stdin") + query("select 1"),
    "a failed copy": query("copy mine from stdin") + frame("d", b"no row\n") + frame("c"),
    "a copy that is given up": query("copy mine from stdin") + frame("f", b"changed my mind\0"),
    "a syntax error": query("this is no SQL"),
    "errors in a pipeline": parse("no SQL") + bind() + execute() + parse("select 1") + bind() + execute() + sync(),
    "a pipeline of empty messages": sync() * 5 + flush() * 5,
}


@pytest.mark.parametrize("kind", ["Q", "B", "S", "d", "X"])
@pytest.mark.parametrize("length", IMPOSSIBLE)
@pytest.mark.parametrize("before", [b"", query("begin")], ids=["outside", "inside"])
def test_impossible_lengths_end_a_session_with_a_word(
    before: bytes, length: int, kind: str, world: World, acme: TenantUnderTest
) -> None:
    with logged_in(world, acme) as client:
        client.send(before, kind.encode() + struct.pack("!I", length) + b"x" * 20)
        told = end_of(client)
    assert told is not None
    assert told[0] == "08P01"
    assert "length" in told[1]


@pytest.mark.parametrize("case", AFTER_LOGIN)
def test_malformed_messages_are_answered_as_postgresql_does(case: str, world: World, acme: TenantUnderTest) -> None:
    with RawClient(acme.database.server.port) as direct:
        direct.login(acme.database.role, acme.database.password, acme.database.name)
        expected, goes_on = outcome(direct, AFTER_LOGIN[case])
    with logged_in(world, acme) as client:
        assert outcome(client, AFTER_LOGIN[case]) == (expected, goes_on)


def test_what_was_asked_before_something_impossible_is_answered_first(world: World, acme: TenantUnderTest) -> None:
    with logged_in(world, acme) as client:
        client.send(query("select 'asked'"), query("select 'and asked'"), frame("?", b"what"))
        answers = client.read_to_end()
    assert [message.row[0] for message in answers if message.kind == "D"] == ["asked", "and asked"]
    assert answers[-1].fields["C"] == "08P01"


GOODBYES = {
    "a query": [query("select 'answered'")],
    "a pipeline": [parse("select 'answered'"), bind(), execute(), sync()],
    "a pipeline without its end": [parse("select 'answered'"), bind(), execute()],
    "a transaction": [query("begin"), query("update mine set note = 'dirty'"), query("select 'answered'")],
    "a copy": [query("copy mine from stdin"), frame("d", b"9\tdirty\n")],
    "a failed copy": [query("copy mine from stdin"), frame("d", b"no row\n"), query("select 'answered'")],
    "a copy with a Sync inside": [
        parse("copy mine from stdin"),
        bind(),
        execute(),
        sync(),
        frame("f", b"no\0"),
        sync(),
    ],
}


@pytest.mark.parametrize("case", GOODBYES)
def test_a_goodbye_in_the_segment_of_the_last_request_ends_as_with_postgresql(
    case: str, world: World, acme: TenantUnderTest
) -> None:
    def told(client: RawClient) -> list[str]:
        client.send(*GOODBYES[case], terminate())
        with suppress(Disconnected):
            return [message.kind for message in client.read_to_end()]
        return []

    with RawClient(acme.database.server.port) as direct:
        direct.login(acme.database.role, acme.database.password, acme.database.name)
        expected = told(direct)
    with logged_in(world, acme) as client:
        assert told(client) == expected
    for _ in range(3):
        with logged_in(world, acme) as client:
            assert client.rows("select note from mine") == [("clean",)]


def test_the_beginning_of_an_unknown_message_ends_a_transaction_with_a_word(
    world: World, acme: TenantUnderTest
) -> None:
    with logged_in(world, acme) as client:
        client.rows("begin")
        client.send(b"?\0\0\1\0")
        told = end_of(client)
    assert told is not None
    assert told[0] == "08P01"


def test_names_that_are_no_utf8_are_names_that_nobody_has(world: World) -> None:
    with world.proxy.connect() as client:
        client.send(startup({"user": "app", "database": "acme"}).replace(b"acme", b"\xff\xfe\xfd\xfc"))
        assert client.read().int32 == 10
        client.send(initial(b"SCRAM-SHA-256", FIRST))
        assert client.read().int32 == 11
        client.send(frame("p", b"c=biws,r=wrong,p=AAAA"))
        assert end_of(client) is not None


def test_a_query_of_two_gigabytes_that_is_only_announced_costs_no_memory(world: World, acme: TenantUnderTest) -> None:
    before = peak_memory(world.proxy.pid)
    for kind in b"QPBd":
        client = logged_in(world, acme)
        client.send(bytes([kind]) + struct.pack("!I", 2**31 - 1) + b"x" * 100_000)
        client.reset()
    assert peak_memory(world.proxy.pid) - before < 10_000_000


def test_a_session_split_at_every_byte_is_the_same_session(world: World, acme: TenantUnderTest) -> None:
    script = [
        query("select 1, null, 'one'"),
        parse("select $1::text || '!'") + bind(["two"]) + describe() + execute() + sync(),
        query("begin") + query("update mine set note = 'split'") + query("rollback"),
        query("create temp table c (a int, b text)") + query("copy c from stdin"),
        frame("d", b"1\tone\n2\tt") + frame("d", b"wo\n") + frame("c") + query("copy c to stdout"),
        parse("select 1 / $1::int", "named")
        + bind(["0"], statement="named")
        + execute()
        + sync()
        + close("named")
        + sync(),
        query("select repeat('x', 20000)") + query(""),
        flush() + sync(),
    ]

    def run(client: RawClient) -> list[tuple[str, bytes]]:
        client.login(acme.user, acme.password, acme.slug)
        client.send(*script)
        client.send(query("select 'the end'"))
        answers = client.read_until("Z")
        while not any(message.kind == "D" and message.row == ("the end",) for message in answers):
            answers += client.read_until("Z")
        client.send(terminate())
        assert client.read_to_end() == []
        return [(message.kind, message.body) for message in answers]

    with world.proxy.connect() as client:
        whole = run(client)
    with BytewiseClient(world.proxy.port) as client:
        assert run(client) == whole
    assert len(whole) > 40


def test_many_messages_in_one_segment_are_answered_in_order(world: World, acme: TenantUnderTest) -> None:
    with logged_in(world, acme) as client:
        client.send(*[query(f"select {number}") for number in range(3000)])
        for number in range(3000):
            assert [message.row for message in client.read_until() if message.kind == "D"] == [(str(number),)]
        pipeline = [parse("select $1::int") + bind([str(number)]) + execute() for number in range(1000)]
        client.send(*pipeline, sync())
        assert [int(message.row[0] or 0) for message in client.read_until() if message.kind == "D"] == [*range(1000)]
        blocks = [query("begin"), query("select 'in'"), query("commit"), sync()] * 300
        client.send(*blocks)
        statuses = [client.read_until()[-1].text for _ in blocks]
        assert statuses == ["T", "T", "I", "I"] * 300


def test_queries_in_the_segment_of_the_last_login_message(world: World, acme: TenantUnderTest) -> None:
    with EagerClient(world.proxy.port, query("select 'early'") + query("select 'bird'") + terminate()) as client:
        client.login(acme.user, acme.password, acme.slug)
        rows = [message.row for message in client.read_to_end() if message.kind == "D"]
    assert rows == [("early",), ("bird",)]


def mutations(chance: random.Random) -> bytes:
    """A valid conversation with some bytes changed, left out, doubled or made up."""
    valid = [
        query("select 1"),
        query("begin"),
        query("update mine set note = 'dirty'"),
        query("rollback"),
        query("copy mine to stdout"),
        query("copy mine from stdin"),
        frame("d", b"7\tdirty\n"),
        frame("f", b"stop\0"),
        parse("select $1::int"),
        bind(["7"]),
        describe(),
        execute(),
        close(),
        flush(),
        sync(),
    ]
    data = bytearray(b"".join(chance.choices(valid, k=chance.randrange(1, 12))))
    data = bytearray(data.replace(b"update", b"begin; update"))
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.randrange(1, 8)]
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randrange(1, 8))
        else:
            data[at:at] = data[at : at + chance.randrange(1, 40)]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_random_and_mutated_bytes_harm_nobody(seed: int, world: World, acme: TenantUnderTest) -> None:
    chance = random.Random(seed)
    for turn in range(40):
        client = world.proxy.connect() if turn % 4 == 0 else logged_in(world, acme)
        data = chance.randbytes(chance.randrange(1, 400)) if turn % 4 < 2 else mutations(chance)
        with suppress(ConnectionError):
            client.send(data)
            if chance.random() < 0.5:
                client.sock.settimeout(0.02)
                with suppress(TimeoutError):
                    while client.sock.recv(65536):
                        pass
        client.reset() if chance.random() < 0.5 else client.close()
        if turn % 8 == 7:
            with logged_in(world, acme) as next_one:
                assert next_one.rows("select note from mine") == [("clean",)]


def test_hundreds_of_silent_connections_keep_nobody_out(world: World, acme: TenantUnderTest) -> None:
    silent = [socket.create_connection((world.proxy.host, world.proxy.port)) for _ in range(300)]
    started = time.monotonic()
    with logged_in(world, acme) as client:
        assert client.rows("select 1") == [("1",)]
    assert time.monotonic() - started < allowed(3)
    for sock in silent:
        sock.close()


def test_refusals_are_counted_by_their_reason(world: World) -> None:
    def count(reason: str) -> float:
        return world.proxy.metric("pgtenant_logins_refused_total", reason=reason)

    before = count("protocol_violation"), count("invalid_password")
    with world.proxy.connect() as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        end_of(client)
    with world.proxy.connect() as client, pytest.raises(ServerSaid):
        client.login("nobody", "wrong", "nowhere")
    wait_until(lambda: (count("protocol_violation"), count("invalid_password")) > before, what="the refusals counted")
