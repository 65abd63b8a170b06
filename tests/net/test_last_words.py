"""What a server says right before it closes reaches its client, also when the client was just asking for more."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from harness.fakeserver import command_complete, data_row, error_response, ready
from harness.linkworld import LinkWorld
from harness.rawclient import query, sync
from harness.relaymodel import frames, kinds

from proxy.pool.ledger import PoolLedger

WHY = error_response("57P01", "terminating connection due to administrator command", severity="FATAL")
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def world() -> Iterator[LinkWorld]:
    with LinkWorld() as made:
        yield made


@pytest.fixture
def pool(world: LinkWorld) -> PoolLedger:
    return world.add_pool("acme", world.add_server("s"), pool_size=1)


@pytest.mark.parametrize("said", [WHY, data_row("1") * 2000 + WHY, b""], ids=["short", "long", "nothing"])
@pytest.mark.parametrize("asked", [query("select"), sync(), query("select")[:-3]], ids=["query", "sync", "half"])
def test_the_last_words_of_a_server_that_resets_the_connection(
    asked: bytes, said: bytes, world: LinkWorld, pool: PoolLedger
) -> None:
    client, peer = world.connect(pool)
    peer.sock.sendall(query("begin") + (query("select") if len(said) > len(WHY) else b""))
    world.settle()
    assert client.backend is not None
    entry = client.backend.entry
    client.backend.state.owe(1)
    peer.received.clear()
    server = world.servers[entry]
    server.sock.sendall(said)
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    server.sock.close()
    server.ended = True
    # The client's bytes are served first, as they may be within one batch of events.
    client.feed(asked)
    world.settle()
    told = list(frames(bytes(peer.received)))
    assert told[-1][0] == "E"
    assert (b"57P01" if said else b"08006") in told[-1][1]
    assert kinds(bytes(peer.received)).count("D") == said.count(data_row("1"))
    assert peer.ended
    assert pool.idle == []
    assert entry not in entry.server.entries
    assert world.internal_errors() == []


def test_a_server_that_finishes_its_reply_before_it_closes(world: LinkWorld, pool: PoolLedger) -> None:
    client, peer = world.connect(pool)
    peer.sock.sendall(query("begin"))
    world.settle()
    assert client.backend is not None
    entry = client.backend.entry
    client.backend.state.owe(1)
    peer.received.clear()
    server = world.servers[entry]
    server.sock.sendall(command_complete("COMMIT") + ready())
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    server.sock.close()
    server.ended = True
    client.feed(query("select"))
    world.settle()
    assert kinds(bytes(peer.received))[:2] == "CZ"
    assert entry not in entry.server.entries
    assert world.internal_errors() == []
