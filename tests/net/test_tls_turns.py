"""TLS handshakes wait for their turn before they take memory, and do not keep it for long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from harness.handshakes import Certificate
from harness.rawclient import SSL_REQUEST, client_hello
from harness.waiting import eventually

from proxy.net import client_handshake
from proxy.net.client_handshake import GreetPolicy, greet
from proxy.net.handshake_io import HandshakeSocket, PeerGone, TlsFailed
from proxy.net.listener import Listener, PeerAddress


class Door:
    """Greets clients, and keeps what became of them; `looks` counts how often their first bytes were looked at."""

    def __init__(self, certificate: Certificate, *, others_wait: bool = False) -> None:
        self.policy = GreetPolicy(certificate.tls())
        self.begun = 0
        self.others_wait = others_wait
        self.ended: list[str] = []
        self.looks = 0
        self.listener = Listener("127.0.0.1", 0, self.login)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        self.begun += 1
        yield self.others_wait

    async def login(self, sock: socket.socket, _peer: PeerAddress) -> None:
        io = HandshakeSocket(_Watched(self, fileno=sock.detach()))
        turn: Callable[[], AbstractAsyncContextManager[bool]] = self.turn
        try:
            await greet(io, self.policy, turn)
        except PeerGone as gone:
            self.ended.append(f"{type(gone).__name__}: {gone}")
        finally:
            io.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[socket.socket]:
        self.listener.start()
        with socket.create_connection(("127.0.0.1", self.listener.port), 10) as client:
            yield client
        await self.listener.close()


class _Watched(socket.socket):
    def __init__(self, door: Door, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self._door = door
        self.settimeout(0.0)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        self._door.looks += 1
        return super().recv(size, flags)


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate.issue(tmp_path)


@pytest.mark.parametrize("asks", [SSL_REQUEST, b""], ids=["requested", "direct"])
async def test_a_handshake_begins_with_the_last_byte_of_its_first_record(certificate: Certificate, asks: bytes) -> None:
    door = Door(certificate)
    hello = client_hello()
    async with door.client() as client:
        client.sendall(asks + hello[:100])
        await eventually(lambda: door.looks >= 3)
        looks = door.looks
        for byte in hello[100:-1]:
            client.sendall(bytes([byte]))
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert (door.begun, door.looks) == (0, looks), "nobody is woken for a part of it"
        client.sendall(hello[-1:])
        await eventually(lambda: door.begun == 1)


@pytest.mark.parametrize("others_wait", [False, True])
async def test_a_handshake_that_is_left_halfway_ends_sooner_while_others_wait(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, others_wait: bool
) -> None:
    monkeypatch.setattr(client_handshake, "TLS_HURRIED_SECONDS", 0.02)
    monkeypatch.setattr(client_handshake, "TLS_HANDSHAKE_SECONDS", 0.04)
    door = Door(certificate, others_wait=others_wait)
    async with door.client() as client:
        client.sendall(client_hello())
        await eventually(lambda: door.ended)
    assert door.ended == [f"{TlsFailed.__name__}: the handshake was not over in {0.02 if others_wait else 0.04} s"]


@pytest.mark.parametrize("size", [0, 3, 50])
async def test_who_leaves_before_the_first_record_is_whole_has_begun_nothing(
    certificate: Certificate, size: int
) -> None:
    door = Door(certificate)
    async with door.client() as client:
        client.sendall(SSL_REQUEST + client_hello()[:size])
        assert await asyncio.to_thread(client.recv, 1) == b"S"
        client.shutdown(socket.SHUT_WR)
        await eventually(lambda: door.ended)
    assert (door.begun, door.ended) == (0, [f"{PeerGone.__name__}: the connection was closed"])


async def test_what_is_no_first_record_is_refused_at_once(certificate: Certificate) -> None:
    door = Door(certificate)
    async with door.client() as client:
        client.sendall(SSL_REQUEST + b"\x16\3\1\xff\xff")
        await eventually(lambda: door.ended)
    assert door.ended[0].startswith(TlsFailed.__name__)
