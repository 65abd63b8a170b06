"""Finding and connecting to a server's addresses."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy.net.handshake_io import reason_of
from proxy.net.host_names import Found, HostNames
from proxy.net.keepalive import notice_silence
from registry.contract import Address

MAX_ENDPOINTS: Final = 8
"""Most addresses that are tried of one host name."""

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str


class DialFailed(Exception):
    """There is no connection; the text says why, the address not included."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address to connect to, and the name by which it was found, which its certificate is held against."""

    host: str
    port: int
    family: socket.AddressFamily
    address: SocketAddress

    @property
    def is_local(self) -> bool:
        """Whether this is a Unix socket, where TLS is never spoken."""
        return self.family == socket.AF_UNIX

    def __str__(self) -> str:
        if isinstance(self.address, str):
            return self.address
        shown = f"{self.host}:{self.port}" if ":" not in self.host else f"[{self.host}]:{self.port}"
        return shown if self.address[0] == self.host else f"{shown} ({self.address[0]})"


async def find_endpoints(address: Address, names: HostNames) -> Sequence[Endpoint]:
    """Look up a host, in a thread unless it is a numeric address or a Unix socket's directory.

    Raises DialFailed when the name is not known.
    """
    if address.host.startswith("/"):
        path = os.path.join(address.host, f".s.PGSQL.{address.port}")  # noqa: PTH118 - no file is touched
        return [Endpoint(address.host, address.port, socket.AF_UNIX, path)]
    found: Found
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except socket.gaierror:
        try:
            found = await names.find(address.host, address.port)
        except (OSError, UnicodeError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else "not a host name"
            raise DialFailed(f"host name {address.host!r} could not be resolved: {reason}") from None
    return [
        Endpoint(address.host, address.port, socket.AddressFamily(family), (str(where[0]), int(where[1]), *where[2:]))
        for family, _, _, _, where in found[:MAX_ENDPOINTS]
    ]


async def dial(endpoint: Endpoint) -> socket.socket:
    """Connect and return the non-blocking socket, unknown to the loop; the time limit is the caller's.

    Raises DialFailed.
    """
    try:
        sock = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        # There is no IPv6 here, or no descriptor is left.
        raise DialFailed(reason_of(error)) from None
    try:
        if not endpoint.is_local:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            notice_silence(sock)
        try:
            sock.connect(endpoint.address)
        except BlockingIOError:
            if endpoint.is_local:
                raise DialFailed("its queue of connections is full") from None
            await _connected(sock)
    except OSError as error:
        sock.close()
        raise DialFailed(reason_of(error)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _connected(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()
    loop.add_writer(fd, _resolve, writable)
    try:
        await writable
    finally:
        loop.remove_writer(fd)
    failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise DialFailed(os.strerror(failed).lower())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
