"""Waiting for a place: who is told, who is counted by which address, and what the log says of it."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_network
from typing import Self

import pytest
from harness.waiting import eventually
from structlog.testing import capture_logs

from proxy.net import admission as admission_module
from proxy.net.admission import Admission, Admissions, NoPlace
from proxy.net.arrivals import Arrivals
from proxy.net.handshake_io import HandshakeSocket, PeerGone
from proxy.net.listener import Listener, PeerAddress
from proxy.net.places import PlaceLimits
from proxy.net.real_address import ProxyPolicy
from proxy.net.visit import Visit


def admission(places: int = 8, per_address: int = 2, queue: int = 4, trusted: tuple[str, ...] = ()) -> Admission:
    return Admission("logins", PlaceLimits(places, per_address, queue), trusted=[ip_network(one) for one in trusted])


async def test_who_queues_is_woken_when_a_place_is_free() -> None:
    mine = admission()
    first, _ = (mine.arrive("192.0.2.1") for _ in range(2))
    waiting = asyncio.create_task(mine.arrive("192.0.2.1").admitted())
    await eventually(lambda: mine.places.queued == 1)
    assert mine.describe_queue() == "logins: 2 of 8 under way, 1 queued"
    first.leave()
    await asyncio.wait_for(waiting, 5)
    assert mine.describe_queue() == ""


async def test_who_gives_up_while_waiting_leaves_the_queue() -> None:
    mine = admission()
    held = [mine.arrive("192.0.2.1") for _ in range(2)]

    async def come() -> None:
        async with mine.place("192.0.2.1"):
            raise AssertionError("there is no place")

    waiting = asyncio.create_task(come())
    await eventually(lambda: mine.places.queued == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (mine.places.queued, mine.places.used) == (0, len(held))


async def test_beyond_the_queue_there_is_no_waiting() -> None:
    mine = admission()
    for _ in range(4):
        mine.arrive("192.0.2.1")
    with pytest.raises(NoPlace):
        await mine.arrive("192.0.2.1").admitted()


@pytest.mark.parametrize(
    ("one", "other"), [("2001:db8::1", "2001:db8::ffff:2"), ("192.0.2.1", "::ffff:192.0.2.1")], ids=["/64", "mapped"]
)
async def test_addresses_that_somebody_could_take_at_will_count_as_one(one: str, other: str) -> None:
    mine = admission()
    for host in (one, other, one):
        mine.arrive(host)
    assert (mine.places.used, mine.places.queued) == (2, 1)
    mine.arrive("2001:db8:0:1::1")
    assert mine.places.used == 3


async def test_trusted_networks_have_no_share() -> None:
    mine = admission(trusted=("10.0.0.0/8",))
    for host in ("10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"):
        mine.arrive(host)
    assert mine.places.used == 4


async def test_one_line_tells_of_all_that_were_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "REPORT_AFTER", 0.01)
    mine = admission()
    with capture_logs() as lines:
        for _ in range(50):
            mine.arrive("192.0.2.1")
        await eventually(lambda: lines)
        mine.arrive("192.0.2.1")
        await asyncio.sleep(0.05)
    assert lines == [
        {
            "event": "logins held back",
            "log_level": "warning",
            "under_way": 2,
            "silent": 0,
            "queued": 2,
            "had_to_wait": 2,
            "evicted": 0,
            "refused": 46,
            "last_from": "192.0.2.1",
            "most_from": "192.0.2.1",
            "most": 4,
        }
    ]
    mine.close()


class Door:
    """Receives connections, and keeps those that have said something."""

    def __init__(self, logins: Admission, proxied: ProxyPolicy | None = None) -> None:
        self.admissions = Admissions(logins, admission())
        self.arrivals = Arrivals(self.admissions, proxied)
        self.received: list[str] = []
        self.ended: list[str] = []
        self.listener = Listener("127.0.0.1", 0, self.login)
        self.clients: list[socket.socket] = []

    async def login(self, sock: socket.socket, peer: PeerAddress) -> None:
        io = HandshakeSocket(sock)
        visit = Visit(f"{peer[0]}:{peer[1]}", 0.0, 10.0)
        request = self.arrivals.request_place(io, peer[0])
        try:
            await self.arrivals.admit(io, peer, visit, request)
            self.received.append(visit.host)
            await asyncio.Event().wait()
        except (NoPlace, PeerGone, asyncio.CancelledError) as error:
            self.ended.append(type(error).__name__)
        finally:
            request.leave()
            io.close()

    def connect(self, source: str = "127.0.0.1", say: bytes = b"") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.listener.port), 10, (source, 0))
        client.sendall(say)
        self.clients.append(client)
        return client

    async def __aenter__(self) -> Self:
        self.listener.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()
        self.admissions.close()
        for client in self.clients:
            client.close()


async def test_a_silent_connection_is_told_and_closed_when_its_place_is_wanted() -> None:
    async with Door(admission()) as door:
        silent = [door.connect("127.0.0.2") for _ in range(2)]
        await eventually(lambda: door.admissions.logins.places.silent == 2)
        door.connect("127.0.0.2", b"hello")
        await eventually(lambda: door.received == ["127.0.0.2"])
        assert b"too many logins" in await asyncio.to_thread(silent[0].recv, 1000)
        assert await asyncio.to_thread(silent[0].recv, 1000) == b""
        assert door.ended == ["CancelledError"]
        assert door.admissions.logins.places.used == 2


async def test_who_has_spoken_is_not_evicted_for_one_who_says_nothing() -> None:
    async with Door(admission()) as door:
        for _ in range(2):
            door.connect("127.0.0.2", b"hello")
        await eventually(lambda: len(door.received) == 2)
        for _ in range(10):
            door.connect("127.0.0.2")
        await eventually(lambda: door.ended.count("NoPlace") == 8)
        assert (door.admissions.logins.places.used, door.admissions.logins.places.queued) == (2, 2)
        door.connect("127.0.0.1", b"hello")
        await eventually(lambda: door.received[-1] == "127.0.0.1")


async def test_behind_a_load_balancer_the_clients_own_address_counts() -> None:
    proxied = ProxyPolicy([ip_network("127.0.0.9")])
    async with Door(admission(), proxied) as door:

        def come(client: str) -> None:
            door.connect("127.0.0.9", f"PROXY TCP4 {client} 127.0.0.1 50000 6432\r\nhello".encode())

        for _ in range(4):
            come("192.0.2.1")
        await eventually(lambda: door.admissions.logins.places.queued == 2)
        come("192.0.2.2")
        await eventually(lambda: door.received == ["192.0.2.1", "192.0.2.1", "192.0.2.2"])
        # Before its header a connection counts for nobody, and goes first like all who have said nothing.
        door.connect("127.0.0.9")
        await eventually(lambda: door.admissions.logins.places.used == 4)
        assert door.admissions.logins.places.silent == 1
