"""Replication connections: a client and a backend of its own, and bytes between them both ways.

Nobody follows what is said: after a CopyBothResponse both sides send whenever they like, and the backend never serves
anybody else.  So there is no reply queue; only the client's messages are looked at where it may not say everything
(`proxy.session.replication`).  Memory is bounded as for any session: each side is read no further while the other takes
nothing, but a client that is not reading is still heard, as its status updates keep the stream alive.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Any

from proxy.errors import Failure
from proxy.net.backend_link import BackendLink
from proxy.net.client_link import ClientLink
from proxy.net.link_host import FAREWELL_TIME, LinkHost
from proxy.net.relay_loop import EPOLLIN, EPOLLRDHUP, RelaySelector
from proxy.net.stream import HIGH_WATER, LOW_WATER
from proxy.pool.ledger import CLOSING, BackendEntry, PoolLedger
from proxy.session.parameters import ParameterSet
from proxy.session.replication import CommandFilter
from proxy.session.reply_queue import OWE_QUERY


class Seat:
    """A login that waits for a backend of its own.

    When `done` is set, one of `backend` and `failure` says how that ended.  `future` belongs to the coroutine that
    waits.
    """

    def __init__(self, future: object) -> None:
        self.future = future
        self.done = False
        self.backend: PipeBackend | None = None
        self.failure: Failure | None = None

    def take(self, backend: BackendLink) -> None:
        """Take note of the backend."""
        assert isinstance(backend, PipeBackend)
        self.done = True
        self.backend = backend

    def fail(self, failure: Failure) -> None:
        """Take note that there is none."""
        if not self.done:
            self.done = True
            self.failure = failure


class PipeBackend(BackendLink):
    """A connection to a server that was opened for one client."""

    def __init__(
        self, host: LinkHost, selector: RelaySelector, sock: Any, entry: BackendEntry, plain: ParameterSet
    ) -> None:
        super().__init__(host, selector, sock, entry, plain)
        # It may always be in the middle of something: when it is closed, it is cancelled.
        self.state.owe(OWE_QUERY)
        # What the server has said, its client has heard: there is nothing to add when it closes.
        self.state.fatal = True

    def reading(self) -> int:
        """It is read while its client takes what there is; before that client has come, only its end is noticed."""
        if self.entry.state >= CLOSING:
            return EPOLLIN | EPOLLRDHUP
        client = self.client
        if client is None:
            return EPOLLRDHUP
        return 0 if client.unsent_size > HIGH_WATER else EPOLLIN | EPOLLRDHUP

    def buffered(self) -> None:
        """Read once and pass it on."""
        data = self.read()
        if data is None:
            return
        if len(data) == 0:
            self.lost("the server closed the connection")
            return
        if self.entry.state >= CLOSING:
            return
        client = self.client
        if client is None:
            self.host.discard(self, "its server spoke before its client had come")
            return
        client.write(data)
        client.pool.counters.bytes_to_clients += len(data)
        if client.broken:
            client.hang_up("the client closed the connection")
        elif client.unsent_size > HIGH_WATER:
            self.watch()

    def between_transactions(self) -> bool:
        """Replication has no end to wait for: it may be ended at any time."""
        return True

    def leave(self) -> None:
        """Say Terminate behind what the server is still doing, and close without cancelling it."""
        self.state.queue.clear()
        self.host.discard(self, "its client disconnected")

    def _drain(self) -> None:
        self.flush()
        if self.broken:
            self.hear_out()
            return
        client = self.client
        if client is not None and self.unsent_size <= LOW_WATER:
            client.watch()


class PipeClient(ClientLink):
    """A client with a backend of its own, `server`; `commands` has a say in what it may send."""

    def __init__(
        self,
        host: LinkHost,
        selector: RelaySelector,
        sock: Any,
        ident: int,
        pool: PoolLedger,
        parameters: ParameterSet,
        commands: CommandFilter,
        server: PipeBackend,
    ) -> None:
        super().__init__(host, selector, sock, ident, pool, parameters)
        self.commands: CommandFilter = commands
        self.server: PipeBackend = server

    def attach(self) -> None:
        """Begin to pass bytes on; both sockets are the selector's by now."""
        backend = self.server
        self.backend = backend
        backend.client = self
        self.linked_at = self.selector.now
        backend.watch()
        if backend.tls:
            self.selector.serve_buffered(backend)

    def reading(self) -> int:
        """A client is read while its server takes what there is."""
        backend = self.backend
        if self.finishing:
            return EPOLLIN
        if backend is not None and backend.unsent_size > HIGH_WATER:
            return EPOLLRDHUP
        return EPOLLIN | EPOLLRDHUP

    def buffered(self) -> None:
        """Read once and pass it on."""
        data = self.read()
        if data is None:
            return
        if len(data) == 0:
            self.hang_up("the client closed the connection")
            return
        backend = self.backend
        if self.finishing or backend is None:
            return
        self.pool.counters.bytes_from_clients += len(data)
        data = self.commands.pass_on(data)
        if len(data) != 0:
            backend.write(data)
        if backend.broken:
            backend.hear_out()
        elif len(self.commands.fault) != 0:
            self.finish(b"", "protocol violation", self.selector.now + FAREWELL_TIME)
        elif self.commands.goodbye:
            self.part(backend)
            backend.leave()
            self.close("the client disconnected")
        elif backend.unsent_size > HIGH_WATER:
            self.watch()

    def part(self, backend: BackendLink) -> None:
        """See `ClientLink`.  Nobody knows where the server's last message ends, so there is none of the proxy's own."""
        super().part(backend)
        self.cut_off = True

    def _leave_backend(self) -> None:
        backend = self.backend
        if backend is not None:
            self.part(backend)
            self.host.discard(backend, "its client left")
