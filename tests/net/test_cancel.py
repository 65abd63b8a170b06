from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from harness.databases import Database
from harness.fakeserver import FakeServer, FakeSession
from harness.rawclient import cstring, frame
from harness.shared import ca_file
from harness.waiting import eventually

from proxy.demo.facts import ServerFacts
from proxy.net.backend_handshake import ReadyBackend, open_backend
from proxy.net.cancel import CancelUncertain, send_cancel
from proxy.net.endpoints import Endpoint, find_endpoints
from proxy.net.host_names import HostNames
from proxy.net.tls import ServerTlsContexts
from registry.contract import Address, Credentials, ProtocolVersion, Secret, ServerInfo, TlsMode

CONTEXTS = ServerTlsContexts()


def wanted() -> bool:
    return True


@asynccontextmanager
async def sleeping_backend(server: ServerInfo, database: Database) -> AsyncIterator[ReadyBackend]:
    """A backend in the middle of a long query."""
    credentials = Credentials(database.role, Secret(database.password))
    backend = await open_backend(server, database.name, credentials, connect_timeout=10, tls_contexts=CONTEXTS)
    with backend.sock:
        backend.sock.settimeout(10)
        backend.sock.sendall(frame("Q", cstring("select pg_sleep(60)")))
        await eventually(lambda: database.backends("wait_event = 'PgSleep'") == 1, what="the query runs")
        yield backend


def answer_of(backend: ReadyBackend) -> bytes:
    answer = b""
    while not answer.endswith(frame("Z", b"I")):
        answer += backend.sock.recv(4096)
    return answer


@pytest.mark.parametrize("protocol", ProtocolVersion)
@pytest.mark.parametrize("tls_mode", [TlsMode.DISABLE, TlsMode.PREFER, TlsMode.VERIFY_FULL])
async def test_a_running_query_is_cancelled(
    pg17: ServerFacts, make_database: Callable[..., Database], protocol: ProtocolVersion, tls_mode: TlsMode
) -> None:
    server = ServerInfo(
        1,
        "alpha",
        (Address("localhost", pg17.port),),
        tls_mode=tls_mode,
        tls_ca=ca_file(pg17).read_text(),
        protocol=protocol,
    )
    async with sleeping_backend(server, make_database(pg17)) as backend:
        assert await send_cancel(
            server, backend.address, backend.pid, backend.key, still_wanted=wanted, timeout=10, tls_contexts=CONTEXTS
        )
        assert b"C57014" in await asyncio.to_thread(answer_of, backend)


async def test_a_long_key_of_protocol_3_2_is_sent_whole(
    pg18: ServerFacts, make_database: Callable[..., Database]
) -> None:
    server = ServerInfo(1, "alpha", (Address(pg18.host, pg18.port),))
    async with sleeping_backend(server, make_database(pg18)) as backend:
        assert len(backend.key) == 32
        assert await send_cancel(
            server, backend.address, backend.pid, backend.key, still_wanted=wanted, timeout=10, tls_contexts=CONTEXTS
        )
        assert b"C57014" in await asyncio.to_thread(answer_of, backend)


async def endpoint_of(port: int) -> Endpoint:
    return (await find_endpoints(Address("127.0.0.1", port), HostNames()))[0]


async def cancel_at(
    port: int, still_wanted: Callable[[], bool] = wanted, *, seconds: float = 10.0, key: bytes = b"abcd"
) -> bool:
    server = ServerInfo(1, "alpha", (Address("127.0.0.1", port),))
    return await send_cancel(
        server, await endpoint_of(port), 7, key, still_wanted=still_wanted, timeout=seconds, tls_contexts=CONTEXTS
    )


async def test_the_server_is_asked_once_connected_and_only_if_it_is_still_wanted() -> None:
    asked = []

    async def script(session: FakeSession) -> None:
        await session.read_startup()

    async with FakeServer(script) as fake:

        def not_any_more() -> bool:
            asked.append(len(fake.sessions))
            return False

        assert not await cancel_at(fake.port, not_any_more)
        assert asked == [1], "there was a connection by then"
        await eventually(fake.sessions[0].reader.at_eof)
        assert fake.sessions[0].cancel is None
        assert await cancel_at(fake.port)
        assert fake.sessions[1].cancel == (7, b"abcd")


async def test_it_ends_only_when_the_server_has_closed_the_connection() -> None:
    released = asyncio.Event()

    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await released.wait()

    async with FakeServer(script) as fake:
        cancelling = asyncio.create_task(cancel_at(fake.port))
        await eventually(lambda: fake.sessions and fake.sessions[0].cancel)
        assert not cancelling.done()
        released.set()
        assert await cancelling


async def test_a_server_that_does_not_close_leaves_it_uncertain() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.reader.read()

    async with FakeServer(script) as fake:
        with pytest.raises(CancelUncertain, match=r"no answer within 0\.05 s"):
            await cancel_at(fake.port, seconds=0.05)
        await eventually(fake.sessions[0].reader.at_eof, what="the connection is closed")


async def test_a_reset_after_the_request_leaves_it_uncertain() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        sock = session.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        session.reset()

    async with FakeServer(script) as fake:
        with pytest.raises(CancelUncertain):
            await cancel_at(fake.port)


async def test_a_server_that_cannot_be_reached_was_sent_nothing() -> None:
    async with FakeServer() as fake:
        port = fake.port
    assert not await cancel_at(port)
