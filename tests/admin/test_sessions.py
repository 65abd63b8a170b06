"""Big tables in slices: whatever operators look at, the relay has its turns."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from harness.handshakes import Certificate
from harness.linkworld import LinkWorld
from harness.rawclient import execute, frame, parse, query, sync

from proxy.admin.commands import Do
from proxy.admin.node import NodeView
from proxy.admin.session import Session, Surroundings
from proxy.errors import Failure
from proxy.net.client_link import ClientLink
from proxy.net.handshake_io import HandshakeSocket
from proxy.net.sessions import CancelKey, ClientInfo
from proxy.settings import Reloaded, Settings
from proxy.version import BuildInfo
from proxy.wire.framing import FrameReader

CLIENTS = 2_000
ROWS_PER_SLICE = 20


class Clock:
    """Time that goes on with each look at it, so that a slice is a known number of rows."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        self.now += 0.001 / ROWS_PER_SLICE
        return self.now


@pytest.fixture
def crowd() -> Iterator[dict[int, ClientLink]]:
    """Many clients of one pool; they share a socket, which nobody touches."""
    with LinkWorld() as world, socket.socket() as sock:
        pool = world.add_pool("acme", world.add_server("pg-a"))
        clients = {}
        for pid in range(1, CLIENTS + 1):
            client = ClientLink(world.hub, world.selector, sock, pid, pool, world.plain)
            client.info = ClientInfo("app", f"127.0.0.1:{pid}", tls=False, since=900.0, key=CancelKey(pid, b""))
            clients[pid] = client
        yield clients


class Sessions:
    """Sessions of one console over socket pairs, and how many turns the loop has had meanwhile."""

    def __init__(self, clients: dict[int, ClientLink]) -> None:
        clock = Clock()
        node = NodeView(
            Settings,
            BuildInfo("1.2.3", "interpreted", source_matches=True, python="CPython 3"),
            clients,
            cast("Any", None),
            cast("Any", None),
            cast("Any", None),
            readiness=list,
            reload=lambda user: asyncio.sleep(0, Reloaded(1)),
            clock=clock,
            wall=clock,
            started=0.0,
        )
        self.around = Surroundings(node, "18.0 (test)", self.order, asyncio.Lock())
        self.turns = 0
        self.stack = ExitStack()
        self.tasks: list[asyncio.Task[Any]] = []

    async def order(self, user: str, do: Do) -> bytes:
        raise AssertionError(f"{user} ordered {do}")

    def open(self) -> socket.socket:
        """A session; returns its client's end."""
        far, near = socket.socketpair()
        for one in (far, near):
            one.settimeout(0)
        io = HandshakeSocket(near)
        self.stack.callback(far.close)
        self.stack.callback(io.close)
        self.tasks.append(asyncio.create_task(Session(io, "ann", self.around).serve()))
        return far

    async def count_turns(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)

    async def ask(self, far: socket.socket, message: bytes) -> list[int]:
        """Send a message and return the kinds of all that comes up to ReadyForQuery."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(far, message)
        reader, kinds = FrameReader(1 << 20), list[int]()
        while not kinds or kinds[-1] != ord("Z"):
            reader.push(await loop.sock_recv(far, 1 << 16))
            while (frame := reader.next_frame()) is not None:
                kinds.append(frame[0])
        return kinds


@pytest.fixture
async def sessions(crowd: dict[int, ClientLink]) -> AsyncIterator[Sessions]:
    made = Sessions(crowd)
    made.tasks.append(asyncio.create_task(made.count_turns()))
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    made.stack.close()


async def test_all_sessions_together_render_one_slice_per_turn_of_the_loop(sessions: Sessions) -> None:
    ends = [sessions.open() for _ in range(3)]
    answers = await asyncio.gather(*(sessions.ask(end, query("SHOW CLIENTS acme")) for end in ends))
    assert all(kinds.count(ord("D")) == CLIENTS for kinds in answers)
    assert sessions.turns >= len(ends) * CLIENTS / ROWS_PER_SLICE


async def test_looking_without_finding_has_its_turns_too(sessions: Sessions) -> None:
    assert ord("D") not in await sessions.ask(sessions.open(), query("SHOW CLIENTS nobody"))
    assert sessions.turns >= CLIENTS / ROWS_PER_SLICE


async def test_what_nobody_reads_is_not_made(sessions: Sessions, crowd: dict[int, ClientLink]) -> None:
    crowd.update({pid: crowd[pid % CLIENTS + 1] for pid in range(CLIENTS, 20 * CLIENTS)})
    far = sessions.open()
    await asyncio.get_running_loop().sock_sendall(far, query("SHOW CLIENTS"))
    clock = cast("Clock", sessions.around.node.clock)
    before = -1.0
    while clock.now != before:
        before = clock.now
        for _ in range(50):
            await asyncio.sleep(0)
    made = round((clock.now - 1_000.0) / 0.001 * ROWS_PER_SLICE)
    assert made < 10 * CLIENTS


async def test_a_row_limit_suspends_the_portal_and_clients_that_have_gone_are_left_out(
    sessions: Sessions, crowd: dict[int, ClientLink]
) -> None:
    far = sessions.open()
    start = parse("SHOW CLIENTS") + b"B\0\0\0\x0c\0\0\0\0\0\0\0\0"
    # Within a transaction a portal outlives its Sync.
    await sessions.ask(far, query("BEGIN"))
    kinds = await sessions.ask(far, start + execute(limit=5) + sync())
    assert bytes(kinds) == b"12DDDDDsZ"
    for pid in range(8, CLIENTS + 1):
        del crowd[pid]
    assert bytes(await sessions.ask(far, execute(limit=5) + sync())) == b"DDCZ"
    assert bytes(await sessions.ask(far, execute() + sync())) == b"CZ"
    assert bytes(await sessions.ask(far, query("COMMIT") + execute() + sync())) == b"CZ"


async def test_small_messages_in_one_record_of_tls_give_the_loop_its_turns(sessions: Sessions, tmp_path: Path) -> None:
    certificate = Certificate.issue(tmp_path)
    far, near = socket.socketpair()
    for one in (far, near):
        one.settimeout(0)
    client, io = HandshakeSocket(far), HandshakeSocket(near)
    sessions.stack.callback(client.close)
    sessions.stack.callback(io.close)
    shaking = asyncio.create_task(io.start_tls(certificate.tls().context, server_side=True))
    await client.start_tls(certificate.trusting(), server_hostname="localhost")
    await shaking
    sessions.tasks.append(asyncio.create_task(Session(io, "ann", sessions.around).serve()))
    await client.send(frame("H") * 1_000 + sync())
    before = sessions.turns
    assert await client.read_frame() == (ord("Z"), b"I")
    assert sessions.turns - before >= 1_000


async def test_a_client_that_takes_nothing_is_left_when_it_breaks_the_protocol(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.admin.session.SEND_PATIENCE", 0.05)
    far, near = socket.socketpair()
    with far, near:
        near.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                near.send(bytes(1 << 16))
        far.sendall(frame("\x7f"))
        reason = await Session(HandshakeSocket(near), "ann", sessions.around).serve()
    assert reason == "it did not take its answer in time"


async def test_a_session_that_asks_nothing_for_too_long_ends(sessions: Sessions) -> None:
    far, near = socket.socketpair()
    for one in (far, near):
        one.settimeout(0)
        sessions.stack.callback(one.close)
    session = Session(HandshakeSocket(near), "ann", sessions.around, idle=0.05)
    with pytest.raises(Failure) as ended:
        await session.serve()
    assert (ended.value.sqlstate, "0.05 s" in ended.value.message) == ("57P05", True)
