"""A world without sockets for the pool driver: servers, clients and time are what the test makes of them."""

from __future__ import annotations

from collections.abc import Callable

from proxy.pool.ledger import (
    ACTIVE,
    CLOSING,
    FLAG_DIRTY,
    GONE,
    BackendEntry,
    NodeLedger,
    PoolLedger,
    ServerLedger,
    TenantLedger,
    Waiter,
    check_invariants,
    repoint,
    waiters_of,
)
from proxy.pool.pool import FAULT_SERVER, Effects, PoolDriver

FOREIGN_WAIT = 0.1
LINGER = 5.0


class Client:
    """Somebody who wants a backend: `waiting`, then `linked` (has `entry`), `refused` or `gone`."""

    def __init__(self, number: int, pool: PoolLedger, on_grant: str) -> None:
        self.number = number
        self.pool = pool
        self.on_grant = on_grant
        self.state = "waiting"
        self.entry: BackendEntry | None = None
        self.waiter: Waiter | None = None
        self.reason = 0

    def __repr__(self) -> str:
        return f"<client {self.number} of {self.pool.tenant.slug}/{self.pool.role}: {self.state}>"


class PoolWorld(Effects):
    """Carries out the driver's wishes when the test says so, and sees that nothing is granted or opened wrongly.

    A client whose `on_grant` is "release" gives its backend back within the grant, as one that is gone by then; with
    "close" it has the backend closed within the grant; with "again" it releases and asks again at once.
    """

    def __init__(self, max_backends: int = 100, max_connecting: int = 10) -> None:
        super().__init__()
        self.node = NodeLedger(max_backends, max_connecting)
        self.driver = PoolDriver(self.node, self, FOREIGN_WAIT)
        self.now = 1000.0
        self.opening: list[BackendEntry] = []
        self.closing: list[BackendEntry] = []
        self.resetting: list[BackendEntry] = []
        self.clients: list[Client] = []
        self.log: list[str] = []
        self.next_number = 0

    # What the driver asks.

    def open(self, entry: BackendEntry) -> None:
        pool, server = entry.pool, entry.server
        assert pool.tenant.held <= pool.tenant.pool_size, "opened above the tenant's cap"
        assert server.held <= server.max_connections, "opened above the server's cap"
        assert self.node.held <= self.node.max_backends, "opened above the node's cap"
        assert server.connecting <= self.node.max_connecting, "too many opened at once"
        assert entry.server is pool.server
        self.opening.append(entry)
        self.log.append(f"open {pool.tenant.slug}")

    def close(self, entry: BackendEntry, reason: str) -> None:
        assert reason
        self.closing.append(entry)
        if entry in self.resetting:
            self.resetting.remove(entry)
        for client in self.clients:
            if client.entry is entry:
                client.entry = None
                client.state = "gone"
        self.log.append(f"close {entry.pool.tenant.slug}: {reason}")

    def reset(self, entry: BackendEntry) -> None:
        assert entry.flags & FLAG_DIRTY
        self.resetting.append(entry)

    def grant(self, waiter: Waiter, entry: BackendEntry) -> None:
        client = waiter.owner
        assert isinstance(client, Client)
        assert client.state == "waiting", "granted to somebody who does not wait"
        assert entry.pool is client.pool, "granted another pool's backend"
        assert entry.state == ACTIVE
        assert not entry.cancels, "granted while a cancel request is under way"
        assert not entry.flags, "granted though it is to be closed or reset"
        older = [other for other in waiters_of(client.pool) if other.since < waiter.since]
        assert not older, "granted out of turn"
        client.state = "linked"
        client.entry = entry
        client.waiter = None
        self.log.append(f"grant {client.number}")
        if client.on_grant == "close":
            self.leave(client)
        elif client.on_grant in ("release", "again"):
            self.release(client)
            if client.on_grant == "again":
                self.ask(client.pool)

    def refuse(self, waiter: Waiter, reason: int) -> None:
        client = waiter.owner
        assert isinstance(client, Client)
        assert client.state == "waiting"
        client.state = "refused"
        client.reason = reason
        client.waiter = None

    # What clients do.

    def ask(self, pool: PoolLedger, *, timeout: float = 60.0, on_grant: str = "") -> Client:
        client = Client(self.next_number, pool, on_grant)
        self.next_number += 1
        self.clients.append(client)
        client.waiter = Waiter(pool, self.now, self.now + timeout, client)
        self.driver.request(client.waiter, self.now)
        return client

    def release(self, client: Client, *, dirty: bool = False) -> None:
        entry = client.entry
        assert entry is not None
        client.entry = None
        client.state = "gone"
        if dirty:
            entry.flags |= FLAG_DIRTY
        self.driver.release(entry, self.now)

    def leave(self, client: Client) -> None:
        """Vanish: out of the queue, or in the middle of a transaction."""
        if client.waiter is not None:
            assert self.driver.abandon(client.waiter)
            client.waiter = None
            client.state = "gone"
        elif client.entry is not None:
            self.driver.close(client.entry, "its client left", self.now)

    # What servers do.

    def opened(self, entry: BackendEntry) -> None:
        self.opening.remove(entry)
        self.driver.opened(entry, self.now)

    def open_fails(self, entry: BackendEntry, *, fault: int = FAULT_SERVER, pause: float = 0.5) -> None:
        self.opening.remove(entry)
        self.driver.open_failed(entry, self.now, self.now + pause, "it was refused", fault)

    def confirm_closed(self, entry: BackendEntry) -> None:
        self.closing.remove(entry)
        self.driver.closed(entry, self.now)

    def lose(self, entry: BackendEntry) -> None:
        """The server closes a backend on its own."""
        for client in self.clients:
            if client.entry is entry:
                client.entry = None
                client.state = "gone"
        if entry in self.resetting:
            self.resetting.remove(entry)
        self.driver.closed(entry, self.now)

    def reset_done(self, entry: BackendEntry) -> None:
        self.resetting.remove(entry)
        self.driver.reset_done(entry, self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.driver.tick(self.now, LINGER)

    # What the control plane does.

    def add_server(self, name: str, max_connections: int = 100) -> ServerLedger:
        server = ServerLedger(len(self.node.servers) + 1, name, max_connections)
        self.node.servers[server.server_id] = server
        return server

    def add_tenant(self, slug: str, pool_size: int = 10, max_waiting: int = 1000) -> TenantLedger:
        tenant = TenantLedger(len(self.node.tenants) + 1, slug)
        tenant.pool_size = pool_size
        tenant.max_waiting = max_waiting
        self.node.tenants[tenant.tenant_id] = tenant
        return tenant

    def add_pool(self, tenant: TenantLedger, server: ServerLedger, role: str = "app") -> PoolLedger:
        pool = PoolLedger(tenant, server, role)
        pool.queue_wait_timeout = 60.0
        tenant.pools.append(pool)
        self.node.pools[tenant.tenant_id, role] = pool
        return pool

    def simple_pool(self, slug: str, server: ServerLedger, pool_size: int = 10) -> PoolLedger:
        return self.add_pool(self.add_tenant(slug, pool_size), server)

    def repoint(self, pool: PoolLedger, server: ServerLedger) -> None:
        repoint(self.node, pool, server)
        pool.generation += 1
        self.driver.make_obsolete(pool, self.now)

    # What the test looks at.

    def entries(self, condition: Callable[[BackendEntry], bool] = lambda entry: True) -> list[BackendEntry]:
        every = [entry for server in self.node.servers.values() for entry in server.entries]
        return sorted((entry for entry in every if condition(entry)), key=lambda entry: entry.ident)

    def waiting(self) -> list[Client]:
        return [client for client in self.clients if client.state == "waiting"]

    def linked(self) -> list[Client]:
        return [client for client in self.clients if client.state == "linked"]

    def over_caps(self) -> list[str]:
        """Where more is held than allowed, which is right only after a cap was lowered."""
        return [wrong for wrong in check_invariants(self.node) if " holds " in wrong]

    def check(self) -> None:
        """Hold the ledger against what really is."""
        wrong = [wrong for wrong in check_invariants(self.node) if " holds " not in wrong]
        assert not wrong
        assert {client.entry for client in self.linked()} == set(self.entries(lambda entry: entry.state == ACTIVE))
        queued = [waiter.owner for pool in self.node.pools.values() for waiter in waiters_of(pool)]
        assert sorted(client.number for client in queued if isinstance(client, Client)) == [
            client.number for client in self.waiting()
        ]
        assert all(entry.state >= CLOSING for entry in self.closing)
        assert not any(entry.state == GONE for entry in self.entries())
        for pool in self.node.pools.values():
            assert not (pool.waiting and pool.idle), "an idle backend beside a waiting client"


def fill(world: PoolWorld, pool: PoolLedger, count: int) -> None:
    """Open idle backends in a pool."""
    clients = [world.ask(pool) for _ in range(count)]
    for entry in list(world.opening):
        world.opened(entry)
    for client in clients:
        world.release(client)
    assert len(pool.idle) == count
