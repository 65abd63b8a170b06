from __future__ import annotations

import asyncio
import socket

from proxy.net.endpoints import Endpoint, dial
from proxy.net.keepalive import COUNT, IDLE, INTERVAL, UNCONFIRMED
from proxy.net.listener import Listener

WANTED = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): IDLE,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): INTERVAL,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): COUNT,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): UNCONFIRMED,
}


async def test_silence_is_noticed_on_connections_to_servers_and_from_clients() -> None:
    accepted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

    async def login(sock: socket.socket, _address: tuple[str, int]) -> None:
        accepted.set_result(sock)

    listener = Listener("127.0.0.1", 0, login)
    listener.start()
    here = ("127.0.0.1", listener.port)
    with await dial(Endpoint(*here, socket.AF_INET, here)) as backend, await accepted as client:
        for sock in (backend, client):
            assert {option: sock.getsockopt(*option) for option in WANTED} == WANTED
    await listener.close()
