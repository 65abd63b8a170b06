"""Listening for clients: a login for each, as a task of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import TypeAlias

import structlog

from proxy.net.acceptor import Acceptor, ListenError, PeerAddress, PortTaken

__all__ = ["ListenError", "Listener", "Login", "PeerAddress", "PortTaken"]

log = structlog.get_logger(__name__)

Login: TypeAlias = Callable[[socket.socket, PeerAddress], Coroutine[object, object, None]]


class Listener:
    """Accepts clients and runs `login` as a task for each.

    `login` gets a connected, non-blocking socket (TCP_NODELAY and keepalive on) and the peer's address, owns the
    socket, and must not raise: it ends when the login is complete or refused.  How many logins there may be is for
    `login` to say; `backlog` and `accepts_per_turn` are those of the Acceptor.

    Call `start`, in the end `stop` and `close`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        login: Login,
        *,
        backlog: int = 1024,
        accepts_per_turn: int = 8,
    ) -> None:
        self._login = login
        self._acceptor = Acceptor(host, port, self._begin, section="listen", backlog=backlog, per_turn=accepts_per_turn)
        self._logins: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port that is listened on; only between `start` and `stop`."""
        return self._acceptor.port

    @property
    def accepted(self) -> int:
        """How many connections there have been."""
        return self._acceptor.accepted

    @property
    def exhausted(self) -> int:
        """How often the system had nothing left to accept one with."""
        return self._acceptor.exhausted

    @property
    def logins(self) -> int:
        """How many logins are under way, those that wait for their place included."""
        return len(self._logins)

    def start(self) -> None:
        """Bind and begin to accept; raises PortTaken, ListenError."""
        self._acceptor.start()

    def stop(self) -> None:
        """Accept nobody any more and free the port; logins under way go on."""
        self._acceptor.stop()

    def tune(self, *, backlog: int, accepts_per_turn: int) -> None:
        """Put other limits in force."""
        self._acceptor.tune(backlog=backlog, per_turn=accepts_per_turn)

    async def close(self, grace: float = 0.0) -> None:
        """Stop, wait up to `grace` seconds for the logins under way, and cancel those that are left."""
        self.stop()
        # A task cancelled before its first step never runs, and would not close its socket.
        await asyncio.sleep(0)
        logins = set(self._logins)
        if logins and grace > 0:
            _, logins = await asyncio.wait(logins, timeout=grace)
        for login in logins:
            login.cancel()
        await asyncio.gather(*logins, return_exceptions=True)

    def _begin(self, sock: socket.socket, peer: PeerAddress) -> None:
        task = asyncio.get_running_loop().create_task(self._login(sock, peer))
        self._logins.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._logins.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a login ended with an exception that was not handled", exc_info=error)
