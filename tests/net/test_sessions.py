"""The register of clients: cancel requests find the client with the process id and the secret, and nobody else."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator

import pytest
from harness.linkworld import LinkWorld

from proxy.net.client_link import ClientLink
from proxy.net.sessions import NODE_SHIFT, CancelKey, ClientInfo, Sessions

PID = 4711


class Register:
    """Sessions, and clients to enter."""

    def __init__(self, world: LinkWorld, sock: socket.socket) -> None:
        self.sessions = Sessions()
        self._world = world
        self._sock = sock
        self._pool = world.add_pool("acme", world.add_server("s"))

    def enter(self, key: CancelKey) -> ClientLink:
        ident = len(self.sessions.links) + 1
        client = ClientLink(self._world.hub, self._world.selector, self._sock, ident, self._pool, self._world.plain)
        client.info = ClientInfo("app", "127.0.0.1:1", tls=False, since=0.0, key=key)
        self.sessions.add(client)
        return client


@pytest.fixture
def register() -> Iterator[Register]:
    with LinkWorld() as world, socket.socket() as sock:
        yield Register(world, sock)


def test_clients_of_two_servers_with_one_pid_are_told_apart_by_their_secrets(register: Register) -> None:
    sessions = register.sessions
    keys = [sessions.promise(0, minor, PID) for minor in (0, 0, 2)]
    one, other, third = (register.enter(key) for key in keys)
    assert {key.pid for key in keys} == {PID}
    assert [sessions.find(PID, key.secret) for key in keys] == [one, other, third]
    assert sessions.find(PID, b"\0" * 4) is None
    assert sessions.find(PID, keys[2].secret[:4]) is None
    assert sessions.find(PID + 1, keys[0].secret) is None
    assert sessions.remove(one)
    assert not sessions.remove(one)
    assert [sessions.find(PID, key.secret) for key in keys] == [None, other, third]
    assert sessions.remove(other)
    assert sessions.remove(third)
    assert not sessions.links
    assert not sessions._by_pid


def test_promised_key_finds_nobody_and_is_given_to_nobody_else(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([b"aaaa", b"aaaa", b"bbbb", b"aaaa"])
    monkeypatch.setattr(secrets, "token_bytes", lambda size: next(drawn))
    sessions = register.sessions
    first = sessions.promise(0, 0, PID)
    assert sessions.find(PID, first.secret) is None
    assert sessions.promise(0, 0, PID).secret == b"bbbb"
    sessions.forget(first)
    assert sessions.promise(0, 0, PID).secret == b"aaaa"


def test_made_up_pids_are_nobody_elses(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([0, PID, 5, 5, 6])
    monkeypatch.setattr(secrets, "randbits", lambda bits: next(drawn))
    sessions = register.sessions
    register.enter(sessions.promise(0, 0, PID))
    assert sessions.promise(0, 0).pid == 5, "0 is no process, and another client has the next"
    assert sessions.promise(3, 0).pid == 3 << NODE_SHIFT | 5
    assert sessions.promise(0, 0).pid == 6
