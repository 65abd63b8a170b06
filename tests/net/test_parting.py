"""How a client and its backend part while something is still on its way: the next client is served as ever."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial

import pytest
from harness.fakeserver import command_complete, data_row, error_response, ready, row_description
from harness.linkworld import LinkWorld, Peer
from harness.rawclient import query, terminate
from harness.relaymodel import kinds

from proxy.net.backend_link import BackendLink
from proxy.net.client_link import ClientLink
from proxy.net.hub import SETTLE_TIME
from proxy.net.settling import MAX_ATTEMPTS
from proxy.net.stream import HIGH_WATER
from proxy.pool.ledger import ACTIVE, CLOSING, FLAG_MODE, IDLE, RESETTING, BackendEntry, PoolLedger
from proxy.session.pins import PIN_SET
from proxy.session.relay import FOUND_TERMINATE

BULK = data_row("x" * 1000) * 60


@pytest.fixture
def world() -> Iterator[LinkWorld]:
    with LinkWorld() as made:
        yield made


@pytest.fixture
def pool(world: LinkWorld) -> PoolLedger:
    return world.add_pool("acme", world.add_server("s"), pool_size=1)


def asks(world: LinkWorld, pool: PoolLedger, *messages: bytes) -> tuple[ClientLink, Peer, BackendEntry, socket.socket]:
    """A client that has asked something, and the server's end of its backend, which the test plays."""
    client, peer = world.connect(pool)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    world.answering = False
    peer.sock.sendall(b"".join(messages))
    world.until(lambda: world.opening, "a backend")
    entry = world.opening[0]
    world.open_backend(entry)
    world.until(lambda: client.backend is not None, "a link")
    server = world.servers[entry].sock
    server.settimeout(10)
    return client, peer, entry, server


def answer_more_than_is_taken(world: LinkWorld, client: ClientLink, server: socket.socket, end: bytes) -> None:
    """Let the server answer so much that it is not read any further once its answer has come."""
    server.sendall(row_description("a"))
    while client.unsent_size + len(BULK) <= HIGH_WATER:
        server.sendall(BULK)
        world.until(lambda: world.selector.select(0) or True)
        while world.turn():
            pass
    server.sendall(BULK + end)
    world.until(lambda: client.unsent_size > HIGH_WATER, "more than the client takes")
    while world.turn():
        pass


def serves_another(world: LinkWorld, pool: PoolLedger, entry: BackendEntry, server: socket.socket) -> None:
    """Check that the backend serves the next client."""
    assert server.recv(65536) == query("select")
    _, peer = world.connect(pool)
    peer.sock.sendall(query("select"))
    world.until(lambda: entry.state == ACTIVE, "the next client's link")
    assert server.recv(65536) == query("select")
    server.sendall(command_complete("SELECT 1") + ready())
    world.until(lambda: (peer.pump(), bytes(peer.received[-6:]) == ready())[1], "the next client's answer")
    assert entry.state == IDLE


def vanish(world: LinkWorld, client: ClientLink, peer: Peer) -> None:
    """Let a client hang up without a goodbye."""
    peer.sock.close()
    peer.ended = True
    world.until(lambda: not client.polled, "the client's end")


def test_the_backend_of_a_client_that_took_too_little_and_left_is_read_again(
    world: LinkWorld, pool: PoolLedger
) -> None:
    client, peer, entry, server = asks(world, pool, query("select") + query("select")[:1])
    answer_more_than_is_taken(world, client, server, command_complete("SELECT 1") + ready())
    vanish(world, client, peer)
    assert entry.state == IDLE
    serves_another(world, pool, entry, server)


def test_so_is_one_whose_client_left_while_the_proxy_asked_for_its_settings(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer, entry, server = asks(world, pool, query("set my.x = 'y'; select"))
    answer_more_than_is_taken(world, client, server, command_complete("SELECT 1") + command_complete("SET") + ready())
    assert kinds(server.recv(65536)) == "QQ", "the proxy's own question"
    vanish(world, client, peer)
    assert entry.state == ACTIVE
    server.sendall(row_description("a") + data_row("y") + command_complete("SELECT 1") + ready())
    world.until(lambda: entry.state == RESETTING, "what it left is taken away")
    server.sendall(command_complete("DISCARD ALL") + ready())
    world.until(lambda: entry.state == IDLE, "a backend for others")
    assert kinds(server.recv(65536)) == "Q"
    assert not world.hub.settling


def attempted(backend: BackendLink, attempts: int) -> bool:
    return backend.inquiry is not None and backend.inquiry.attempts == attempts


@pytest.mark.parametrize("cancelled", [1, MAX_ATTEMPTS])
def test_a_question_that_the_clients_own_time_limit_cancels_is_asked_again(
    cancelled: int, world: LinkWorld, pool: PoolLedger
) -> None:
    client, _, entry, server = asks(world, pool, query("set my.x = 'y'"))
    server.sendall(command_complete("SET") + ready())
    backend = client.backend
    assert backend is not None
    for number in range(1, cancelled + 1):
        world.until(partial(attempted, backend, number), "a question")
        server.sendall(error_response("57014", "canceling statement due to statement timeout") + ready())
    if cancelled == MAX_ATTEMPTS:
        world.until(lambda: client.front.pins & PIN_SET != 0, "a client that keeps its backend")
        assert entry.state == ACTIVE
        return
    world.until(partial(attempted, backend, cancelled + 1), "another question")
    server.sendall(row_description("a") + data_row("y") + command_complete("SELECT 1") + ready())
    world.until(lambda: entry.state == IDLE, "a backend for others")
    assert client.parameters.pairs == ((b"my.x", b"y"),)


def test_a_server_that_never_answers_such_a_question_costs_its_slot_for_a_while_only(
    world: LinkWorld, pool: PoolLedger
) -> None:
    client, peer, entry, server = asks(world, pool, query("set my.x = 'y'"))
    server.sendall(command_complete("SET") + ready())
    world.until(lambda: client.backend is not None and client.backend.state.swallowing_own, "a question")
    vanish(world, client, peer)
    began = world.selector.now
    world.hub.sweep(began + SETTLE_TIME - 1)
    assert entry.state == ACTIVE
    world.hub.sweep(began + SETTLE_TIME + 1)
    assert entry.state == CLOSING
    assert not world.hub.settling


@pytest.mark.parametrize("rest", [query("select")[:1], terminate()], ids=["half a message", "a goodbye"])
def test_a_backend_that_is_always_reset_is_reset_however_its_client_left(
    rest: bytes, world: LinkWorld, pool: PoolLedger
) -> None:
    pool.reset_always = True
    pool.flags |= FLAG_MODE
    client, peer, entry, server = asks(world, pool, query("select") + rest)
    server.sendall(command_complete("SELECT 1") + ready())
    if rest != terminate():
        world.until(lambda: (peer.pump(), len(peer.received) > 0)[1], "the answer")
        vanish(world, client, peer)
    world.until(lambda: not client.polled, "the client's end")
    assert entry.state == RESETTING


def test_what_was_asked_before_a_goodbye_reaches_a_server_that_takes_it_slowly(
    world: LinkWorld, pool: PoolLedger
) -> None:
    client, peer, entry, server = asks(world, pool, query("select"))
    backend = client.backend
    assert backend is not None
    backend.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    asked = query("insert " + "x" * 60_000)
    peer.sock.sendall(asked + terminate())
    world.until(lambda: client.front.found == FOUND_TERMINATE, "a goodbye")
    assert backend.unsent_size > 0
    vanish(world, client, peer)
    assert entry.state == CLOSING
    heard = bytearray()
    server.settimeout(0)

    def has_ended() -> bool:
        try:
            data = server.recv(65536)
        except BlockingIOError:
            return False
        heard.extend(data)
        return not data

    world.until(has_ended, "the end of what is said")
    assert bytes(heard) == query("select") + asked + terminate()
    server.close()
    world.until(lambda: not entry.server.entries, "its slot")
