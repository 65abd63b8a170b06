"""Servers that do not keep to the protocol: their clients get a clear error, and nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest
from harness.bystander import undisturbed
from harness.databases import Database
from harness.fakeserver import (
    AUTHENTICATION_OK,
    FakeServer,
    FakeSession,
    authentication,
    command_complete,
    data_row,
    echo,
    error_response,
    parameter_status,
    ready,
    row_description,
)
from harness.process import peak_memory
from harness.rawclient import Disconnected, Message, RawClient, ServerSaid, cstring, frame, query
from harness.registries import TenantUnderTest
from harness.waiting import eventually, wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Address, Limits
from registry.domain.models import ServerChange

CONNECT_TIMEOUT = 0.7
PROXY = {
    "pool": {"pool_size": 1, "connect_timeout": CONNECT_TIMEOUT, "retry_first": 0.02, "retry_most": 0.05},
    "listen": {"login_timeout": 20},
}
Script = Callable[[FakeSession], Awaitable[None]]


@pytest.fixture(scope="module")
def bystander_url(world: World, pg18: ServerFacts) -> str:
    return world.url(world.tenant(pg18))


@pytest.fixture(autouse=True)
def neighbours(bystander_url: str) -> Iterator[None]:
    """A client of a server that works notices nothing."""
    with undisturbed(bystander_url):
        yield


@pytest.fixture
def tenant_of(world: World, pg18: ServerFacts) -> Callable[[FakeServer], TenantUnderTest]:
    def make(server: FakeServer) -> TenantUnderTest:
        name = f"fake{next(NUMBERS)}"
        address = ServerChange(addresses=(Address("127.0.0.1", server.port),))
        world.registry.do(lambda service: service.add_server(name, address))
        nowhere = Database(pg18, "fake", "fake", "the password of fakes")
        tenant = world.registry.add_tenant(name, nowhere, server=name, limits=Limits(queue_wait_timeout=5.0))
        world.tenants.append(tenant)
        return tenant

    return make


NUMBERS = itertools.count(1)


def login(world: World, tenant: TenantUnderTest) -> RawClient:
    client = world.proxy.connect()
    try:
        client.login(tenant.user, tenant.password, tenant.slug)
    except BaseException:
        client.close()
        raise
    return client


def told(world: World, tenant: TenantUnderTest) -> dict[str, str]:
    """The error with which a login ends."""
    with pytest.raises(ServerSaid) as caught:
        login(world, tenant).close()
    return caught.value.fields


def saying(*answers: bytes, stay: bool = True) -> Script:
    """A server that says this to every StartupMessage, and then nothing more."""

    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(*answers)
        if stay:
            await session.reader.read()

    return script


def scram(first: Callable[[bytes], bytes], final: bytes | None = None) -> Script:
    """A server that asks for SCRAM and answers the client's nonce with `first`, and its proof with `final`."""

    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(authentication(10, b"SCRAM-SHA-256\0\0"))
        nonce = (await session.read()).body.rpartition(b"r=")[2]
        await session.send(authentication(11, first(nonce)))
        await session.read()
        if final is not None:
            await session.send(authentication(12, final), AUTHENTICATION_OK, ready())
        await session.reader.read()

    return script


async def silent(session: FakeSession) -> None:
    await session.reader.read()


async def closing(session: FakeSession) -> None:
    await session.read_startup()


async def resetting(session: FakeSession) -> None:
    await session.read_startup()
    session.reset()


async def noticing(session: FakeSession) -> None:
    """A server that warns and warns."""
    await session.read_startup()
    notice = frame("N", b"SWARNING\0C01000\0M" + b"x" * 10_000 + b"\0\0")
    while True:
        await session.send(notice)


SALT = b"c2FsdHNhbHRzYWx0c2FsdA=="
NO_LOGIN: dict[str, Script] = {
    "is silent": silent,
    "closes": closing,
    "resets": resetting,
    "warns without end": noticing,
    "speaks HTTP": saying(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "stops within a message": saying(AUTHENTICATION_OK[:6]),
    "stops and closes within a message": saying(AUTHENTICATION_OK[:6], stay=False),
    "stops before it is ready": saying(AUTHENTICATION_OK, parameter_status("TimeZone", "UTC")),
    "sends an oversized frame": saying(b"R" + struct.pack("!I", 2**31 - 1)),
    "sends a negative frame": saying(b"R" + struct.pack("!I", 2**32 - 1)),
    "sends a frame shorter than its length": saying(b"R" + struct.pack("!I", 3) + b"xxx"),
    "asks for an unknown method": saying(authentication(99)),
    "asks for Kerberos": saying(authentication(7)),
    "asks for unknown mechanisms": saying(authentication(10, b"SCRAM-SHA-512\0OAUTHBEARER\0\0")),
    "asks for half a method": saying(frame("R", b"\0\0")),
    "goes on with SCRAM without beginning": saying(authentication(11, b"r=abc,s=" + SALT + b",i=4096")),
    "answers with a row": saying(data_row("1")),
    "is ready at once": saying(ready()),
    "begins in a transaction": saying(AUTHENTICATION_OK, ready("T")),
    "has a strange parameter": saying(AUTHENTICATION_OK, frame("S", b"no terminator"), ready()),
    "has a short key": saying(AUTHENTICATION_OK, frame("K", b"\0\1"), ready()),
    "has a thousand parameters": saying(
        AUTHENTICATION_OK, *[parameter_status(f"parameter{n}", "x" * 2000) for n in range(1000)], ready()
    ),
    "answers the request for TLS with junk": saying(b"", stay=False),
    "refuses without a SQLSTATE": saying(frame("E", b"SFATAL\0Mgo away\0\0")),
    "refuses without a word": saying(frame("E", b"\0")),
    "refuses in strange bytes": saying(frame("E", b"SFATAL\0C\xff\xfe\0M\x00\xffgo \x1b[31maway\0\0")),
    "refuses without an end": saying(frame("E", b"SFATAL\0CXX000\0Mno terminator")),
    "has a nonce of 100 kB": scram(lambda nonce: b"r=" + nonce + b"y" * 100_000 + b",s=" + SALT + b",i=4096"),
    "has a nonce of 5 kB": scram(lambda nonce: b"r=" + nonce + b"y" * 5_000 + b",s=" + SALT + b",i=4096"),
    "has a nonce of its own": scram(lambda _: b"r=mine,s=" + SALT + b",i=4096"),
    "wants two billion rounds": scram(lambda nonce: b"r=" + nonce + b"y,s=" + SALT + b",i=2147483647"),
    "wants no rounds": scram(lambda nonce: b"r=" + nonce + b"y,s=" + SALT + b",i=0"),
    "has a salt that is none": scram(lambda nonce: b"r=" + nonce + b"y,s=%%%,i=4096"),
    "does not know the password": scram(lambda nonce: b"r=" + nonce + b"y,s=" + SALT + b",i=4096", b"v=d3Jvbmc="),
    "signs nothing": scram(lambda nonce: b"r=" + nonce + b"y,s=" + SALT + b",i=4096", b""),
}


@pytest.mark.parametrize("case", NO_LOGIN)
async def test_a_server_that_at_login(
    case: str, world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async with FakeServer(NO_LOGIN[case]) as server:
        tenant = await asyncio.to_thread(tenant_of, server)
        fields = await asyncio.to_thread(told, world, tenant)
        assert fields["C"] == "57P03"
        assert tenant.slug in fields["M"]
        assert fields["H"]
        assert "\x1b" not in fields["M"]
        server.script = friendly
        await asyncio.to_thread(wait_until, partial(works, world, tenant), seconds=5.0, what="a server that is better")


async def friendly(session: FakeSession) -> None:
    await session.accept()
    await session.answer_queries()


def works(world: World, tenant: TenantUnderTest) -> bool:
    try:
        with login(world, tenant) as client:
            return client.rows("ping") == [("ping",)]
    except ServerSaid:
        return False


def answering(*answers: bytes, stay: bool = True) -> Script:
    """A server that says this to the query `break`; to others it repeats them."""

    async def script(session: FakeSession) -> None:
        await session.accept()
        while (message := await session.read()).kind != "X":
            if message.kind == "Q" and message.text == "break":
                await session.send(*answers)
                if not stay:
                    return
            elif message.kind == "Q":
                await session.send(echo(message.text))

    return script


def conversation(world: World, tenant: TenantUnderTest) -> tuple[list[Message], bytes]:
    """Everything that a client gets after asking for `break`, up to the end: messages, and what is left of one."""
    with login(world, tenant) as client:
        client.send(query("break"))
        messages: list[Message] = []
        try:
            while True:
                messages.append(client.read())
        except Disconnected as end:
            return messages, end.received


ROW = data_row("a value of some length that will be cut off somewhere in the middle of it, where nobody expects it")
LONG_ROW = data_row("x" * 50_000)
BREAKS: dict[str, tuple[bytes, ...]] = {
    "closes without an answer": (),
    "closes within the head of a message": (row_description("v"), ROW[:3]),
    "closes between messages": (row_description("v"), ROW),
    "speaks HTTP": (b"HTTP/1.1 500 Internal Server Error\r\n\r\n",),
    "sends junk": (b"\xde\xad\xbe\xef" * 20,),
    "sends a message of an unknown type": (frame("?", b"what"),),
    "sends a frame shorter than its length": (row_description("v"), b"D" + struct.pack("!I", 3)),
    "sends a negative frame": (row_description("v"), b"D" + struct.pack("!I", 2**32 - 1) + b"x" * 100),
    "sends an oversized status": (b"S" + struct.pack("!I", 2**31 - 1) + b"x" * 100,),
    "sends an oversized ReadyForQuery": (b"Z" + struct.pack("!I", 2**30) + b"x" * 100,),
    "is ready in an unknown way": (command_complete("SELECT 0"), ready("?")),
    "is ready twice": (command_complete("SELECT 0"), ready("T"), ready("T")),
    "asks for a password": (authentication(3),),
    "sends another key": (frame("K", b"\0\0\0\1\0\0\0\2"),),
    "completes a bind": (frame("2"),),
}


@pytest.mark.parametrize("case", BREAKS)
async def test_a_server_that_in_the_middle_of_a_session(
    case: str, world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async with FakeServer(answering(*BREAKS[case], stay="closes" not in case)) as server:
        tenant = await asyncio.to_thread(tenant_of, server)
        messages, rest = await asyncio.to_thread(conversation, world, tenant)
        assert messages[-1].kind == "E"
        assert messages[-1].fields["C"] == "08006"
        assert messages[-1].fields["S"] == "FATAL"
        assert rest == b""
        assert await asyncio.to_thread(works, world, tenant), "the next client got what this one left"


@pytest.mark.parametrize("row", [ROW, LONG_ROW], ids=["short", "long"])
@pytest.mark.parametrize("missing", [1, 10, 80])
async def test_a_row_that_is_cut_off_is_not_completed_with_the_text_of_an_error(
    missing: int, row: bytes, world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async with FakeServer(answering(row_description("v"), row[:-missing], stay=False)) as server:
        tenant = await asyncio.to_thread(tenant_of, server)
        messages, _ = await asyncio.to_thread(conversation, world, tenant)
        assert [message.kind for message in messages if message.kind == "D"] == []
        assert await asyncio.to_thread(works, world, tenant)


@pytest.mark.parametrize(
    "fields",
    [b"SERROR\0Mno state\0\0", b"\0", b"SERROR\0C\0M\0\0", b"SERROR\0VERROR\0CXX00", b"\xff\xff\xff", b""],
)
async def test_strange_errors_are_passed_on_as_they_are(
    fields: bytes, world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async with FakeServer(answering(frame("E", fields), ready())) as server:
        tenant = await asyncio.to_thread(tenant_of, server)

        def ask() -> list[tuple[str, bytes]]:
            with login(world, tenant) as client:
                answer = [(message.kind, message.body) for message in client.query("break")]
                assert client.rows("and on") == [("and on",)]
                return answer

        assert await asyncio.to_thread(ask) == [("E", fields), ("Z", b"I")]


UNSOLICITED = {
    "junk": b"\xde\xad\xbe\xef" * 8,
    "a row": data_row("of somebody else"),
    "a whole answer": echo("of somebody else"),
    "readiness": ready(),
    "the beginning of a message": b"D\0\0",
    "a fatal error": error_response("57P01", "terminating connection", severity="FATAL"),
    "a negative notice": b"N" + struct.pack("!I", 2**32 - 1),
    "an endless notice": b"N" + struct.pack("!I", 2**30) + b"x" * 1000,
    "a parameter without an end": frame("S", b"TimeZone"),
}


@pytest.mark.parametrize("case", UNSOLICITED)
async def test_what_an_idle_server_says_reaches_no_client(
    case: str, world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async with FakeServer(friendly) as server:
        tenant = await asyncio.to_thread(tenant_of, server)
        client = await asyncio.to_thread(login, world, tenant)
        assert await asyncio.to_thread(client.rows, "one") == [("one",)]
        before = len(server.sessions)
        await server.sessions[-1].send(UNSOLICITED[case])
        await eventually(lambda: backends(world, tenant) == 0, what="that backend closed")
        assert await asyncio.to_thread(client.rows, "two") == [("two",)]
        assert len(server.sessions) == before + 1
        client.close()


def backends(world: World, tenant: TenantUnderTest) -> int:
    return world.backends(tenant)


async def test_what_comes_right_behind_an_answer_reaches_no_other_client(
    world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async with FakeServer(answering(echo("break"), echo("of somebody else"))) as server:
        tenant = await asyncio.to_thread(tenant_of, server)
        messages, _ = await asyncio.to_thread(conversation, world, tenant)
        assert next(message.row for message in messages if message.kind == "D") == ("break",)
        for _ in range(3):
            assert await asyncio.to_thread(works, world, tenant)


async def test_notices_and_parameters_of_an_idle_server_are_no_reason_to_close(
    world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async with FakeServer(friendly) as server:
        tenant = await asyncio.to_thread(tenant_of, server)
        client = await asyncio.to_thread(login, world, tenant)
        await asyncio.to_thread(client.rows, "one")
        notice = frame("N", b"SNOTICE\0C00000\0M" + cstring("hello") + b"\0")
        await server.sessions[-1].send(notice + parameter_status("TimeZone", "Asia/Tokyo"))
        sessions = len(server.sessions)
        assert await asyncio.to_thread(client.rows, "two") == [("two",)]
        assert len(server.sessions) == sessions
        client.close()
        fresh = await asyncio.to_thread(login, world, tenant)
        assert fresh.parameters["TimeZone"] == "Asia/Tokyo", "the newest report is what new clients are told"
        fresh.close()


async def test_an_endless_row_is_passed_on_in_bounded_memory_until_its_client_has_enough(
    world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async def endless(session: FakeSession) -> None:
        await session.accept()
        await session.read_until("Q")
        await session.send(row_description("v"), b"D" + struct.pack("!I", 2**31 - 1))
        left = asyncio.create_task(session.reader.read())
        while not left.done():
            await session.send(b"x" * 65_536)

    async with FakeServer(endless) as server:
        tenant = await asyncio.to_thread(tenant_of, server)
        before = peak_memory(world.proxy.pid)

        def read_some() -> None:
            with login(world, tenant) as client:
                client.send(query("break"))
                client.read_until("T")
                for _ in range(300):
                    client.read_exactly(65_536)

        await asyncio.to_thread(read_some)
        assert peak_memory(world.proxy.pid) - before < 10_000_000
        server.script = friendly
        await asyncio.to_thread(wait_until, partial(works, world, tenant), what="the next client served")


async def test_a_server_whose_answers_come_in_single_bytes(
    world: World, tenant_of: Callable[[FakeServer], TenantUnderTest]
) -> None:
    async def dripping(session: FakeSession) -> None:
        await session.accept()
        while (message := await session.read()).kind != "X":
            if message.kind == "Q":
                await session.send_split(echo(message.text))

    async with FakeServer(dripping) as server:
        tenant = await asyncio.to_thread(tenant_of, server)
        client = await asyncio.to_thread(login, world, tenant)
        for number in range(5):
            assert await asyncio.to_thread(client.rows, f"query {number}") == [(f"query {number}",)]
        client.close()
