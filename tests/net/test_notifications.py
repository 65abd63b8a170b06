"""Notifications: those that a backend has sent itself carry the process id that its client was told."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from harness.fakeserver import command_complete, data_row, error_response, ready, row_description
from harness.linkworld import LinkWorld, Peer
from harness.rawclient import cstring, frame, query
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.net.backend_link import BackendLink
from proxy.net.client_link import ClientLink
from proxy.pool.ledger import RESETTING
from proxy.session.endings import readdressed

SERVER_PID, TOLD_PID, OTHER_PID = 0x00004242, 0xFFEEDDCC, 0x42420042
LONGEST = "x" * 7999


def notification(pid: int, payload: str = "payload") -> bytes:
    return frame("A", struct.pack("!I", pid) + cstring("channel") + cstring(payload))


def said(pid: int) -> bytes:
    """An answer with notifications wherever they can be, those of `pid` and others, and rows that look like them."""
    mine = notification(pid)
    return (
        mine
        + row_description("a")
        + data_row(notification(SERVER_PID).decode("latin-1"))
        + notification(OTHER_PID)
        + mine * 3
        + data_row("x")
        + command_complete("SELECT 2")
        + error_response("22012", notification(SERVER_PID).decode("latin-1"))
        + notification(pid, LONGEST)
        + ready()
        + mine
        + notification(OTHER_PID, notification(SERVER_PID).decode("latin-1"))
        + notification(pid, "")
    )


def linked(world: LinkWorld) -> tuple[ClientLink, Peer, Peer, BackendLink]:
    """A client in a transaction that was told a process id, its peer, and its server."""
    client, peer = world.connect(world.add_pool("acme", world.add_server("s")))
    client.told_pid = TOLD_PID.to_bytes(4, "big")
    peer.sock.sendall(query("begin"))
    world.settle()
    backend = client.backend
    assert backend is not None
    backend.introduce(SERVER_PID)
    peer.received.clear()
    world.answering = False
    return client, peer, world.servers[backend.entry], backend


@settings(max_examples=60)
@given(cuts=st.lists(st.integers(0, len(said(0))), max_size=6))
def test_own_notifications_carry_the_told_pid_however_the_bytes_are_cut(cuts: list[int]) -> None:
    with LinkWorld() as world:
        _, peer, server, _ = linked(world)
        peer.sock.sendall(query("listen"))
        world.settle()
        data = said(SERVER_PID)
        for start, end in pairwise([0, *sorted(cuts), len(data)]):
            server.sock.sendall(data[start:end])
            world.turn()
        world.settle()
        assert bytes(peer.received) == said(TOLD_PID)


@pytest.mark.parametrize("at", range(13))
def test_each_byte_of_a_notification_may_come_alone(at: int) -> None:
    with LinkWorld() as world:
        _, peer, server, _ = linked(world)
        data = notification(SERVER_PID)
        for piece in (data[:at], data[at : at + 1], data[at + 1 :]):
            server.sock.sendall(piece)
            world.settle()
        assert bytes(peer.received) == notification(TOLD_PID)


def test_a_chunk_that_is_judged_in_pieces_is_no_exception() -> None:
    with LinkWorld() as world:
        _, peer, server, _ = linked(world)
        peer.sock.sendall(query("listen"))
        world.settle()

        def chunk(pid: int) -> bytes:
            mine = notification(pid)
            return mine + command_complete("LISTEN") + ready("T") + error_response("25P03", "idle") + mine + mine

        server.sock.sendall(chunk(SERVER_PID))
        world.settle()
        assert bytes(peer.received) == chunk(TOLD_PID)


def test_a_backend_without_client_forgets_its_notifications() -> None:
    """They were at places in bytes that are gone."""
    with LinkWorld() as world:
        client, _, server, backend = linked(world)
        backend.state.status = ord("I")
        backend.run_own(b"own")
        client.close("the client disconnected")
        server.sock.sendall(notification(SERVER_PID) + command_complete("SELECT 1") + ready())
        world.until(lambda: backend.entry.state == RESETTING)
        assert not backend.state.notified


def test_a_client_that_was_told_nothing_sees_the_servers_own() -> None:
    places = [5]
    data = notification(SERVER_PID)
    assert readdressed(data, places, b"") == data
    assert places == []
