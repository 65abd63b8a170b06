"""Real links over real sockets with everything around them played by the test: servers, clients, mail, and time."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from harness.relaymodel import ModelServer
from proxy.net.backend_link import BackendLink
from proxy.net.client_link import ClientLink
from proxy.net.hub import MAIL_ERROR, MAIL_OPEN, Hub, Mail
from proxy.net.relay_loop import RelaySelector
from proxy.pool.ledger import BackendEntry, NodeLedger, PoolLedger, ServerLedger, TenantLedger
from proxy.session.parameters import ParameterSet

PATIENCE = 10.0


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on loopback, the second non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    other.settimeout(0)
    one.settimeout(None)
    return one, other


class Peer:
    """The far end of a link: a server (with `model`) or a client."""

    def __init__(self, sock: socket.socket, model: ModelServer | None = None) -> None:
        self.sock = sock
        self.model = model
        self.received = bytearray()
        self.ended = False

    def pump(self) -> bool:
        """Read what there is and, as a server, answer it; False when there was nothing."""
        try:
            data = self.sock.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            fresh = not self.ended
            self.ended = True
            if self.model is not None:
                self.sock.close()
            return fresh
        self.received += data
        if self.model is not None:
            self.model.inbox += data
            while self.model.step():
                pass
            self.sock.sendall(self.model.take_output(1 << 30))
            if self.model.dead:
                self.ended = True
                self.sock.close()
        return True


class LinkWorld:
    """One node's hub and its links; `settle` lets everything happen that is due."""

    def __init__(self, max_backends: int = 100, foreign_wait: float = 0.0) -> None:
        self.selector = RelaySelector()
        self.node = NodeLedger(max_backends, 10)
        self.hub = Hub(self.selector, self.node, foreign_wait)
        self.plain = ParameterSet(())
        self.opening: list[BackendEntry] = []
        self.mail: list[Mail] = []
        self.servers: dict[BackendEntry, Peer] = {}
        self.clients: list[tuple[ClientLink, Peer]] = []
        self.sockets: list[socket.socket] = []
        self.answering = True

    # Set-up.

    def add_server(self, name: str, max_connections: int = 100) -> ServerLedger:
        server = ServerLedger(len(self.node.servers) + 1, name, max_connections)
        self.node.servers[server.server_id] = server
        return server

    def add_pool(self, slug: str, server: ServerLedger, pool_size: int = 10) -> PoolLedger:
        tenant = TenantLedger(len(self.node.tenants) + 1, slug)
        tenant.pool_size = pool_size
        tenant.max_waiting = 1000
        self.node.tenants[tenant.tenant_id] = tenant
        return self.add_sibling(tenant, server, "app")

    def add_sibling(self, tenant: TenantLedger, server: ServerLedger, role: str) -> PoolLedger:
        pool = PoolLedger(tenant, server, role)
        tenant.pools.append(pool)
        self.node.pools[tenant.tenant_id, role] = pool
        return pool

    def connect(self, pool: PoolLedger, parameters: ParameterSet | None = None) -> tuple[ClientLink, Peer]:
        """Link a client that has logged in."""
        far, near = tcp_pair()
        self.sockets += [far, near]
        client = ClientLink(self.hub, self.selector, near, len(self.clients) + 1, pool, parameters or self.plain)
        self.selector.add(client, client.reading())
        self.clients.append((client, Peer(far)))
        return self.clients[-1]

    def open_backend(self, entry: BackendEntry, near: object = None) -> BackendLink:
        """Let a backend log in whose opening the hub has asked for."""
        self.opening.remove(entry)
        if near is None:
            far, near = tcp_pair()
            self.sockets += [far, near]
            self.servers[entry] = Peer(far, ModelServer())
        link = BackendLink(self.hub, self.selector, near, entry, self.plain)
        self.hub.backend_ready(link)
        return link

    # Time.

    def turn(self) -> bool:
        """One call of `select` and what comes of it; False when nothing happened."""
        before = self.selector.events
        self.selector.select(0)
        happened = self.selector.events != before
        box, self.selector.mailbox = self.selector.mailbox, []
        for mail in box:
            assert isinstance(mail, Mail), mail
            happened = True
            self.mail.append(mail)
            if mail.kind == MAIL_OPEN:
                assert isinstance(mail.subject, BackendEntry)
                self.opening.append(mail.subject)
        return happened

    def settle(self) -> None:
        """Let links, servers and clients go on until nothing happens any more; new backends log in."""
        quiet = 0
        while quiet < 3:
            happened = self.turn()
            if self.answering:
                for entry in list(self.opening):
                    self.open_backend(entry)
                    happened = True
                for peer in list(self.servers.values()):
                    happened = (not peer.ended and peer.pump()) or happened
            for _, peer in self.clients:
                happened = (not peer.ended and peer.pump()) or happened
            quiet = 0 if happened else quiet + 1

    def until(self, condition: Callable[[], object], what: str = "the condition") -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true"
            if not self.turn():
                time.sleep(0.001)

    def internal_errors(self) -> list[str]:
        return [mail.text for mail in self.mail if mail.kind == MAIL_ERROR]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.close()
        self.selector.close()
