"""Whole conversations of strangers with the proxy: all bytes of one side are given, and neither side is random."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from harness.handshakes import account, connected, nobody
from proxy.errors import Failure
from proxy.net.backend_handshake import BackendOpenFailed, ReadyBackend, open_backend
from proxy.net.client_authentication import AuthPolicy, authenticate
from proxy.net.client_handshake import ClientGone, GreetPolicy, channel_of, greet
from proxy.net.tls import ServerTlsContexts
from registry.contract import Address, AuthMethod, Credentials, Secret, ServerInfo, TlsMode

PATIENCE = 10.0
"""Seconds in which a conversation must end that the other side has ended."""
ACCOUNTS = {
    "ann": account("ann", "right"),
    "clear": account("clear", "right", AuthMethod.PASSWORD),
    "md5": account("md5", "right", AuthMethod.MD5, md5=True),
}
POLICY = AuthPolicy(allow_cleartext=True, random=bytes)


def client_talks(data: bytes) -> None:
    """All that a client ever says, from its first byte to the proof of who it is."""

    async def listen() -> None:
        async with connected() as (io, peer), asyncio.timeout(PATIENCE):
            await peer.send(data)
            peer.writer.write_eof()
            try:
                greeting = await greet(io, GreetPolicy())
                if greeting.startup is not None:
                    user = greeting.startup.user or ""
                    await authenticate(io, user, ACCOUNTS.get(user) or nobody(user), POLICY, channel_of(greeting))
            except (Failure, ClientGone):
                pass

    asyncio.run(listen())


def server_talks(data: bytes) -> None:
    """All that a server ever says, from the answer to the request for TLS to its first ReadyForQuery."""

    async def answer(listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(listener)
        with connection, suppress(ConnectionError):
            await loop.sock_sendall(connection, data)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, 65536):
                pass

    async def log_in() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0.0)
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
                tasks.create_task(answer(listener))
                with suppress(BackendOpenFailed):
                    (await open_at(*listener.getsockname())).sock.close()

    asyncio.run(log_in())


async def open_at(host: str, port: int) -> ReadyBackend:
    return await open_backend(
        ServerInfo(1, "alpha", (Address(host, port),), tls_mode=TlsMode.DISABLE),
        "acme",
        Credentials("ann", Secret("right")),
        connect_timeout=PATIENCE,
        tls_contexts=ServerTlsContexts(),
        random=bytes,
    )
