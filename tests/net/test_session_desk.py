"""Logins that take a backend for their client: whenever they end, nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from harness.fakeserver import parameter_status
from harness.linkworld import LinkWorld, Peer, tcp_pair
from harness.rawclient import query
from harness.relaymodel import kinds
from routing.fake_registry import SERVER

from proxy.errors import BACKEND_LOST, QUEUE_TIMEOUT, TERMINATED, Failure
from proxy.net.client_link import ClientLink
from proxy.net.handshake_io import HandshakeSocket, PeerGone
from proxy.net.hub import MAIL_PROBED
from proxy.net.link_host import MODE_SESSION
from proxy.net.probe import Claim
from proxy.net.session_desk import SessionDesk
from proxy.net.statuses import StatusCache
from proxy.pool.ledger import ACTIVE, CLOSING, GONE, IDLE, RESETTING
from proxy.pool.pool import NEVER
from proxy.pool.tenancy import Target
from proxy.session.parameters import parameter_pairs
from proxy.session.pins import PIN_SESSION
from registry.contract import Credentials, Secret

HERE = Target(SERVER, "acme_data", Credentials("app", Secret("secret")), 1)


class Desk:
    """A desk, a pool with one backend at most, and logins that ask for it."""

    def __init__(self, world: LinkWorld) -> None:
        self.world = world
        self.pool = world.add_pool("acme", world.add_server("s"), pool_size=1)
        self.pool.target = HERE
        self.desk = SessionDesk(world.hub, StatusCache())
        self.parameters = world.hub.intern(parameter_pairs([(b"work_mem", b"1MB")]))
        self._delivered = 0

    def come(self) -> tuple[asyncio.Task[Claim], socket.socket]:
        """Let a client's login ask for a backend."""
        far, near = tcp_pair()
        self.world.sockets += [far, near]
        io = HandshakeSocket(near)
        task = asyncio.ensure_future(self.desk.claim(io, self.pool, self.parameters, cast("Any", None)))
        return task, far

    def link(self, claim: Claim) -> tuple[ClientLink, Peer]:
        client, peer = self.world.connect(self.pool, self.parameters)
        client.mode = MODE_SESSION
        client.front.pins |= PIN_SESSION
        self.desk.seat(client, claim)
        return client, peer

    def deliver(self) -> None:
        for mail in self.world.mail[self._delivered :]:
            if mail.kind == MAIL_PROBED:
                future = cast("Any", mail.subject).future
                if not future.done():
                    future.set_result(None)
        self._delivered = len(self.world.mail)

    async def settle(self) -> None:
        for _ in range(5):
            self.world.settle()
            self.deliver()
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await self.settle()

    async def claimed(self) -> Claim:
        task, _ = self.come()
        await self.until(task.done)
        return task.result()

    def check_rest(self) -> None:
        """Nobody waits, and what backends there are can be had by anybody."""
        assert self.pool.waiting == 0
        assert {entry.state for entry in self.pool.server.entries} <= {IDLE}
        assert not self.world.hub.settling
        assert not self.world.internal_errors()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with LinkWorld() as world:
        yield Desk(world)


async def ended(task: asyncio.Task[Claim]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_login_ended_in_the_queue_leaves_it(desk: Desk) -> None:
    holder = await desk.claimed()
    task, _ = desk.come()
    await desk.settle()
    assert desk.pool.waiting == 1
    await ended(task)
    desk.desk.give_up(holder)
    await desk.settle()
    desk.check_rest()


async def test_login_ended_while_a_backend_is_opened_leaves_that_to_others(desk: Desk) -> None:
    desk.world.answering = False
    task, _ = desk.come()
    await desk.settle()
    assert desk.world.opening
    await ended(task)
    desk.world.answering = True
    await desk.settle()
    desk.check_rest()
    assert len(desk.pool.idle) == 1


async def test_login_ended_while_its_settings_are_made_gives_the_backend_back_afterwards(desk: Desk) -> None:
    desk.desk.give_up(await desk.claimed())
    desk.parameters = desk.world.hub.intern(parameter_pairs([(b"work_mem", b"2MB")]))
    desk.world.answering = False
    task, _ = desk.come()
    await desk.settle()
    (entry,) = desk.pool.server.entries
    assert entry.state == ACTIVE
    assert not task.done()
    await ended(task)
    assert entry.state == ACTIVE, "it is not done yet"
    desk.world.answering = True
    await desk.settle()
    desk.check_rest()
    assert desk.pool.idle == [entry]


async def test_login_ended_as_its_backend_comes_gives_it_back(desk: Desk) -> None:
    task, _ = desk.come()
    await asyncio.sleep(0)
    desk.world.settle()
    desk.deliver()
    await ended(task)
    await desk.settle()
    desk.check_rest()
    assert len(desk.pool.idle) == 1


async def test_backend_given_up_serves_the_next_client_with_its_own_settings(desk: Desk) -> None:
    claim = await desk.claimed()
    backend = claim.backend
    assert backend is not None
    assert backend.applied is desk.parameters
    desk.desk.give_up(claim)
    desk.check_rest()
    client, peer = desk.world.connect(desk.pool)
    peer.sock.sendall(query("select"))
    await desk.settle()
    assert kinds(bytes(peer.received))[-1] == "Z"
    assert backend.applied is desk.world.plain
    assert client.backend is None
    desk.check_rest()


@pytest.mark.parametrize("early", [b"", b"early"], ids=["silent", "with something unread"])
async def test_client_that_leaves_ends_the_wait(desk: Desk, early: bytes) -> None:
    holder = await desk.claimed()
    task, far = desk.come()
    await desk.settle()
    assert desk.pool.waiting == 1
    far.sendall(early)
    await desk.settle()
    assert not task.done()
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerGone):
        await asyncio.wait_for(task, 10)
    desk.desk.give_up(holder)
    await desk.settle()
    desk.check_rest()


async def test_wait_has_the_limit_of_the_pool(desk: Desk) -> None:
    desk.pool.queue_wait_timeout = 5.0
    await desk.claimed()
    task, _ = desk.come()
    await desk.settle()
    desk.world.hub.driver.tick(desk.world.selector.now + 6.0, NEVER)
    await desk.until(task.done)
    failure = task.exception()
    assert isinstance(failure, Failure)
    assert failure.spec is QUEUE_TIMEOUT


async def test_server_lost_before_the_client_is_there_is_found_out(desk: Desk) -> None:
    claim = await desk.claimed()
    assert claim.backend is not None
    entry = claim.backend.entry
    desk.world.servers[entry].sock.close()
    await desk.settle()
    assert entry.state == GONE
    with pytest.raises(Failure) as failed:
        desk.desk.check(claim, desk.pool)
    assert failed.value.spec is BACKEND_LOST
    desk.desk.give_up(claim)
    desk.check_rest()


async def test_server_that_speaks_out_of_turn_before_the_client_is_there_is_closed(desk: Desk) -> None:
    claim = await desk.claimed()
    assert claim.backend is not None
    entry = claim.backend.entry
    desk.world.servers[entry].sock.sendall(query("a request"))
    await desk.settle()
    assert entry.state >= CLOSING
    with pytest.raises(Failure):
        desk.desk.check(claim, desk.pool)


async def test_tenant_that_moves_during_the_login_is_found_out(desk: Desk) -> None:
    claim = await desk.claimed()
    assert desk.desk.check(claim, desk.pool) is claim.backend
    desk.pool.target = Target(SERVER, "elsewhere", HERE.credentials, 2)
    with pytest.raises(Failure) as failed:
        desk.desk.check(claim, desk.pool)
    assert failed.value.spec is TERMINATED


async def test_what_the_server_reports_during_the_login_reaches_the_client(desk: Desk) -> None:
    claim = await desk.claimed()
    assert claim.backend is not None
    news = parameter_status("in_hot_standby", "on")
    desk.world.servers[claim.backend.entry].sock.sendall(news)
    await desk.settle()
    client, peer = desk.link(claim)
    await desk.settle()
    assert bytes(peer.received) == news
    assert client.backend is not None
    peer.sock.sendall(query("select"))
    await desk.settle()
    assert kinds(bytes(peer.received))[-1] == "Z"
    assert client.backend is claim.backend, "it keeps its backend"


async def test_client_that_asks_nothing_gives_its_backend_back_clean(desk: Desk) -> None:
    claim = await desk.claimed()
    client, peer = desk.link(claim)
    backend = client.backend
    assert backend is not None
    peer.sock.close()
    peer.ended = True
    desk.world.until(lambda: backend.entry.state != ACTIVE)
    assert backend.entry.state == RESETTING, "others see what it has left"
    await desk.settle()
    desk.check_rest()
