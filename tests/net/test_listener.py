from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import struct
from contextlib import ExitStack

import pytest
from harness.shortage import no_descriptors_left
from harness.waiting import eventually

from proxy.net.listener import Listener, ListenError, PortTaken


class Door:
    """Holds every accepted socket until it is let go."""

    def __init__(self) -> None:
        self.inside: list[socket.socket] = []
        self.addresses: list[tuple[str, int]] = []
        self.open = asyncio.Event()

    async def login(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self.inside.append(sock)
        self.addresses.append(address)
        try:
            await self.open.wait()
        finally:
            sock.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


async def test_clients_are_accepted_with_their_sockets_prepared() -> None:
    door = Door()
    listener = Listener("127.0.0.1", 0, door.login)
    listener.start()
    with connect(listener.port) as client:
        await eventually(lambda: door.inside)
        sock = door.inside[0]
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert door.addresses == [client.getsockname()]
        await listener.close()
        assert sock.fileno() == -1, "a login that goes on is cancelled in the end"


async def test_a_taken_port_is_a_clear_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is taken") as caught:
            Listener("127.0.0.1", port, Door().login).start()
        assert "listen.port" in caught.value.hint


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "does-not-exist.invalid"])
async def test_an_address_of_another_machine_is_a_clear_message(host: str) -> None:
    with pytest.raises(ListenError) as caught:
        Listener(host, 0, Door().login).start()
    assert "listen.host" in caught.value.hint


@pytest.mark.parametrize("host", ["", "*"])
async def test_all_interfaces(host: str) -> None:
    door = Door()
    listener = Listener(host, 0, door.login)
    listener.start()
    with connect(listener.port):
        await eventually(lambda: door.inside)
    await listener.close()


async def test_stopping_frees_the_port_and_leaves_logins_alone() -> None:
    door = Door()
    listener = Listener("127.0.0.1", 0, door.login)
    listener.start()
    port = listener.port
    with connect(port):
        await eventually(lambda: door.inside)
        listener.stop()
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        assert listener.logins == 1
        door.open.set()
        await listener.close(grace=10)
        assert listener.logins == 0


async def test_closing_right_after_accepting_leaves_no_socket_open() -> None:
    door = Door()
    listener = Listener("127.0.0.1", 0, door.login)
    listener.start()
    with connect(listener.port):
        turns = 0
        while not listener.accepted:
            await asyncio.sleep(0)
            turns += 1
        await listener.close()
        assert turns > 0
        assert [sock.fileno() for sock in door.inside] == [-1]


async def test_a_few_clients_are_accepted_per_turn_of_the_loop() -> None:
    door = Door()
    listener = Listener("127.0.0.1", 0, door.login, accepts_per_turn=2)
    with ExitStack() as stack:
        listener.start()
        for _ in range(10):
            stack.enter_context(connect(listener.port))
        seen = []
        while listener.accepted < 10:
            seen.append(listener.accepted)
            await asyncio.sleep(0)
        seen.append(listener.accepted)
        assert max(later - earlier for earlier, later in itertools.pairwise(seen)) == 2
        await listener.close()


async def test_a_client_that_is_gone_before_it_is_accepted_does_no_harm() -> None:
    door = Door()
    door.open.set()
    listener = Listener("127.0.0.1", 0, door.login)
    listener.start()
    client = connect(listener.port)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with connect(listener.port):
        await eventually(lambda: len(door.addresses) == 2)
    await listener.close()


async def test_without_descriptors_it_pauses_and_goes_on_when_there_are_some(
    capsys: pytest.CaptureFixture[str],
) -> None:
    door = Door()
    listener = Listener("127.0.0.1", 0, door.login)
    listener.start()
    client = socket.socket()
    client.settimeout(0.0)
    with client:
        assert client.connect_ex(("127.0.0.1", listener.port)) in {0, errno.EINPROGRESS}
        with no_descriptors_left():
            turns = 0
            while listener.exhausted < 2:
                await asyncio.sleep(0.02)
                turns += 1
            assert turns > 5, "it pauses between the attempts"
        await eventually(lambda: door.inside)
    await listener.close()
    said = capsys.readouterr()
    assert (said.out + said.err).count("connections cannot be accepted") == 1


async def test_a_login_that_raises_does_not_end_the_listener(capsys: pytest.CaptureFixture[str]) -> None:
    calls = 0

    async def login(sock: socket.socket, _address: tuple[str, int]) -> None:
        nonlocal calls
        calls += 1
        sock.close()
        raise RuntimeError("a mistake")

    listener = Listener("127.0.0.1", 0, login)
    listener.start()
    with connect(listener.port), connect(listener.port):
        await eventually(lambda: calls == 2)
    await listener.close()
    assert "a mistake" in "".join(capsys.readouterr())
