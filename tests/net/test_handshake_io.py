from __future__ import annotations

import asyncio
import selectors
import socket
from collections import Counter
from typing import cast

import pytest
from harness.handshakes import Account, LoginServer, account, connected
from harness.rawclient import RawClient, frame, startup
from harness.waiting import eventually

from proxy.net.handshake_io import CHUNK, HandshakeSocket, PeerGone, Turnstile
from proxy.net.relay_loop import RelaySelector
from proxy.wire import ProtocolError

ACCOUNTS: dict[str, Account] = {"ann": account("ann", "right")}


async def test_exact_reads_leave_the_next_message_in_the_socket() -> None:
    async with connected() as (io, peer):
        await peer.send(frame("p", b"one"), frame("p", b"two"), b"rest")
        assert await io.read_frame() == (ord("p"), b"one")
        assert await io.read_frame() == (ord("p"), b"two")
        with io.detach() as sock:
            io.close()
            assert sock.recv(100) == b"rest", "closing is the new owner's affair"


async def test_a_peer_that_has_left_is_seen_behind_what_it_has_said() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.0)
    io = HandshakeSocket(ours)
    with theirs:
        theirs.sendall(frame("p", b"one"))
        assert not io.has_left()
    assert io.has_left()
    assert await io.read_frame() == (ord("p"), b"one")
    io.close()


async def test_greedy_reads_take_many_messages_at_once_and_tell_of_what_is_left() -> None:
    async with connected(greedy=True) as (io, peer):
        await peer.send(frame("S", b"one"), frame("Z", b"I"), frame("N", b"late"))
        assert await io.read_frame() == (ord("S"), b"one")
        assert await io.read_frame() == (ord("Z"), b"I")
        with pytest.raises(ProtocolError, match="more than belongs"):
            io.detach()


async def test_greedy_reads_put_together_what_arrives_in_pieces() -> None:
    async with connected(greedy=True) as (io, peer):
        body = bytes(3 * CHUNK)
        sending = asyncio.create_task(peer.send_bytewise(frame("S", b"small")))
        assert await io.read_frame() == (ord("S"), b"small")
        await sending
        await peer.send(frame("S", body))
        assert await io.read_frame(len(body)) == (ord("S"), body)
        io.detach().close()


async def test_a_length_beyond_the_limit_is_refused_before_the_body_comes() -> None:
    async with connected() as (io, peer):
        await peer.send(b"p" + (2**31 - 1).to_bytes(4, "big"))
        with pytest.raises(ProtocolError, match="limit"):
            await io.read_frame(1000)


async def test_the_end_of_the_stream_is_told_wherever_it_comes() -> None:
    for sent in (b"", b"p", b"p\0\0\0\x09half"):
        async with connected() as (io, peer):
            await peer.send(sent)
            await peer.close()
            with pytest.raises(PeerGone):
                await io.read_frame()


async def test_a_hang_up_while_nobody_reads_does_not_spin_the_loop() -> None:
    async with connected() as (io, peer):
        await peer.send(frame("p", b"one"))
        await io.read_frame()
        await peer.send(b"early")
        await peer.close()
        loop = asyncio.get_running_loop()
        await eventually(lambda: not loop.remove_reader(io.sock.fileno()), what="the descriptor is let go")
        assert await io.read_exactly(5) == b"early"
        with pytest.raises(PeerGone):
            await io.read_exactly(1)


async def test_a_cancelled_read_loses_nothing_and_leaves_the_socket_usable() -> None:
    async with connected() as (io, peer):
        await peer.send(b"p\0\0")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await io.read_frame()
        await peer.send(b"\0\x07abc")
        assert await io.read_frame() == (ord("p"), b"abc")


async def test_queued_messages_go_out_together_with_the_next() -> None:
    async with connected() as (io, peer):
        io.queue(b"one ")
        io.queue(b"two ")
        await io.send(b"three")
        assert await peer.reader.readexactly(13) == b"one two three"


async def test_a_message_larger_than_the_socket_takes_is_sent_to_its_end() -> None:
    async with connected() as (io, peer):
        data = bytes(range(256)) * 8192
        sending = asyncio.create_task(io.send(data))
        assert await peer.reader.readexactly(len(data)) == data
        await sending


async def test_nothing_is_sent_after_a_message_that_was_cut_short() -> None:
    async with connected() as (io, _peer):
        io.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await io.send(bytes(1 << 24))
        with pytest.raises(PeerGone):
            await io.send(b"an error message")


async def test_detach_and_close_leave_the_descriptor_unknown_to_the_loop() -> None:
    loop = asyncio.get_running_loop()
    async with connected() as (io, peer):
        await peer.send(frame("p", b"one"))
        await io.read_frame()
        with io.detach() as sock:
            assert not loop.remove_reader(sock.fileno())
            assert not loop.remove_writer(sock.fileno())


def test_a_turnstile_lets_a_few_through_per_turn_in_the_order_in_which_they_came() -> None:
    now = [0.0]
    loop = asyncio.new_event_loop()
    through: list[str] = []

    def turn() -> str:
        """What goes on in one turn of the loop."""
        through.clear()
        loop.call_soon(loop.stop)
        loop.run_forever()
        return "".join(through)

    def come(names: str) -> list[bool]:
        return [gate.enter(loop, lambda name=name: through.append(name)) for name in names]  # type: ignore[misc]

    try:
        gate = Turnstile(steps=3, seconds=1.0, clock=lambda: now[0])
        assert come("abcdefgh") == [True] * 3 + [False] * 5
        assert come("i") == [False], "nobody overtakes those who queue"
        assert [turn(), turn(), turn()] == ["def", "ghi", ""]
        assert come("j") == [True]
        now[0] = 1.5
        assert come("k") == [False], "the time of this turn is used up"
        assert turn() == "k"
    finally:
        loop.close()


def test_who_queues_at_a_turnstile_is_not_watched_meanwhile() -> None:
    selector = selectors.DefaultSelector()
    turnstile = Turnstile(steps=1, seconds=60.0)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.settimeout(0.0)
        with theirs:
            io = HandshakeSocket(ours, turnstile=turnstile)
            reading = asyncio.create_task(io.read_packet(100))
            theirs.sendall(b"\0\0\0\x08ping")
            for _ in range(50):
                turnstile.enter(loop, lambda: None)
            for _ in range(20):
                await asyncio.sleep(0)
            assert not reading.done()
            assert ours.fileno() not in selector.get_map()
            assert await asyncio.wait_for(reading, 5) == b"ping"
            io.close()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(scenario())


async def test_logins_behind_a_turnstile_all_get_through() -> None:
    async with LoginServer(ACCOUNTS, turnstile=Turnstile(steps=1)) as server:

        def log_in() -> str:
            with RawClient(server.port) as client:
                return client.login("ann", "right")[-1].kind

        assert await asyncio.gather(*(asyncio.to_thread(log_in) for _ in range(20))) == ["Z"] * 20


def test_a_login_works_on_the_selector_of_the_relay_and_leaves_nothing_registered() -> None:
    selector = RelaySelector()

    async def scenario() -> None:
        async with LoginServer(ACCOUNTS) as server:
            before = len(selector.get_map())

            def log_in() -> RawClient:
                client = RawClient(server.port)
                client.login("ann", "right")
                return client

            client = await asyncio.to_thread(log_in)
            with client:
                await eventually(lambda: server.sockets)
                assert server.sockets[0].fileno() not in selector.get_map()
                assert len(selector.get_map()) == before
                client.send(frame("Q", b"select 1\0"))
                await eventually(lambda: _peeked(server.sockets[0]))
                assert server.sockets[0].recv(100) == frame("Q", b"select 1\0")

    # It has the surface of BaseSelector without being one: compiled, it could not be.
    surface = cast("selectors.BaseSelector", selector)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(surface)) as runner:
        runner.run(scenario())


def _peeked(sock: socket.socket) -> bool:
    try:
        return len(sock.recv(100, socket.MSG_PEEK)) == 14
    except BlockingIOError:
        return False


async def test_the_last_message_reaches_a_client_that_sent_more_than_was_read() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, socket.create_connection(listening.getsockname()) as client:
        ours, _ = listening.accept()
        ours.settimeout(0.0)
        io = HandshakeSocket(ours)
        client.sendall(bytes(100_000))
        await io.read_exactly(10)
        await io.send(b"goodbye")
        ending = asyncio.create_task(io.discard_to_end())

        def read_all() -> bytes:
            said = b""
            while piece := client.recv(100):
                said += piece
            client.close()
            return said

        assert await asyncio.to_thread(read_all) == b"goodbye"
        await ending
        io.close()


class TurnCounter(selectors.DefaultSelector):
    """Counts the turns of the loop."""

    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        return super().select(timeout)


def test_a_storm_of_logins_is_spread_over_many_turns() -> None:
    counter = TurnCounter()
    turnstile = Turnstile(steps=4, seconds=60.0)
    read_in: list[int] = []

    async def read_one(sock: socket.socket) -> None:
        io = HandshakeSocket(sock, turnstile=turnstile)
        await io.read_packet(100)
        read_in.append(counter.turns)
        io.close()

    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(100):
                ours, theirs = socket.socketpair()
                ours.settimeout(0.0)
                with theirs:
                    theirs.sendall(startup({"user": "ann"}))
                tasks.create_task(read_one(ours))

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(counter)) as runner:
        runner.run(scenario())
    assert len(read_in) == 100
    assert max(Counter(read_in).values()) == 4
