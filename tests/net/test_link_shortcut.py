"""The relay's own two moves, taking an idle backend and giving it back, against what the planner would have said."""

from __future__ import annotations

from harness.linkworld import LinkWorld, Peer
from harness.rawclient import bind, execute, parse, query, sync
from harness.relaymodel import kinds
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.net.client_link import ClientLink
from proxy.pool.allocator import CLOSE, GRANT, PARK, QUEUE, RESET, plan_acquire, plan_release
from proxy.pool.ledger import (
    ACTIVE,
    CLOSING,
    FLAG_DIRTY,
    FLAG_MODE,
    IDLE,
    RESETTING,
    BackendEntry,
    PoolLedger,
    check_invariants,
    waiters_of,
)

REQUESTS = [query("select"), parse("ok") + bind() + execute("select") + sync(), query("error"), sync()]
ACTIONS = [*["send", "answer"] * 4, "lower", "raise", "suspend", "resume", "age", "repoint", "tick", "reset_always"]


class Shortcut:
    """A small node, whose every acquire and release is compared with the planner's answer beforehand."""

    def __init__(self, world: LinkWorld, pool_size: int, server_cap: int) -> None:
        self.world = world
        servers = [world.add_server("one", server_cap), world.add_server("two", 10)]
        acme = world.add_pool("acme", servers[0], pool_size)
        self.pools = [acme, world.add_sibling(acme.tenant, servers[0], "reader"), world.add_pool("bolt", servers[0])]
        self.servers = servers
        self.clients = [world.connect(pool) for pool in self.pools for _ in range(3)]
        world.answering = False
        self.acquired = 0
        self.parked = 0

    def serve(self) -> None:
        while self.world.turn():
            pass

    def send(self, number: int) -> None:
        client, peer = self.clients[number % len(self.clients)]
        if client.backend is not None or client.waiter is not None or not client.polled or client.finishing:
            return
        pool = client.pool
        plan = plan_acquire(self.world.node, pool, self.world.selector.now)
        idle = list(pool.idle)
        peer.sock.sendall(REQUESTS[number % len(REQUESTS)])
        self.serve()
        taken = self.entry_of(client)
        if plan.kind == GRANT:
            assert plan.entry is idle[-1]
            assert taken is plan.entry
            self.acquired += 1
        else:
            assert taken is None
            assert (client.waiter is not None) == (plan.kind == QUEUE)

    def answer(self, number: int) -> None:
        """Open a backend, or let a server answer, and look where the backend goes."""
        world = self.world
        if world.opening and number % 3 == 0:
            world.open_backend(world.opening[0])
            self.serve()
            return
        busy = [entry for entry in world.servers if entry.state == ACTIVE]
        if not busy:
            return
        entry = busy[number % len(busy)]
        link = world.servers[entry]
        owner = self.owner(entry)
        flags = entry.flags
        if entry.pool.reset_always:
            entry.flags |= FLAG_DIRTY
        plan = plan_release(world.node, entry, world.selector.now, 0.0)
        entry.flags = flags
        first = next(iter(waiters_of(entry.pool)), None)
        assert link.pump()
        self.serve()
        assert owner.backend is None or owner.backend.entry is not entry
        if plan.kind == PARK:
            assert entry.state == IDLE and entry is entry.pool.idle[-1]
            self.parked += 1
        elif plan.kind == GRANT:
            assert first is not None and plan.waiter is first
            assert self.owner(entry) is first.owner
        elif plan.kind == RESET:
            assert entry.state == RESETTING
            link.pump()
            self.serve()
        else:
            assert plan.kind == CLOSE
            assert entry.state >= CLOSING
            link.pump()
            self.serve()

    def entry_of(self, client: ClientLink) -> BackendEntry | None:
        backend = client.backend
        return None if backend is None else backend.entry

    def owner(self, entry: BackendEntry) -> ClientLink:
        (owner,) = (client for client, _ in self.clients if client.backend and client.backend.entry is entry)
        return owner

    def lower(self, number: int) -> None:
        self.pools[number % 3].tenant.pool_size = 1 + number % 2
        self.tick(number)

    def raise_(self, number: int) -> None:
        self.pools[number % 3].tenant.pool_size = 3
        self.tick(number)

    def suspend(self, number: int) -> None:
        if number % 3 == 2:
            self.world.hub.driver.hold_back(self.pools[2], self.world.selector.now)

    def resume(self, number: int) -> None:
        self.world.hub.driver.let_go(self.pools[2], self.world.selector.now)

    def age(self, number: int) -> None:
        for entry in self.world.servers:
            if entry.state == ACTIVE and number % 2:
                entry.expires_at = 1.0
        self.tick(number)

    def repoint(self, number: int) -> None:
        pool = self.pools[number % 3]
        pool.generation += 1
        self.world.hub.driver.make_obsolete(pool, self.world.selector.now)

    def reset_always(self, number: int) -> None:
        pool = self.pools[number % 3]
        pool.reset_always = not pool.reset_always
        pool.flags = pool.flags ^ FLAG_MODE

    def tick(self, number: int) -> None:
        self.world.hub.driver.tick(self.world.selector.now, 5.0)
        self.serve()
        for peer in self.world.servers.values():
            self.confirm(peer)

    def confirm(self, peer: Peer) -> None:
        """Let a server see that it has been told to close."""
        entry = next(entry for entry, other in self.world.servers.items() if other is peer)
        if entry.state >= CLOSING and not peer.ended:
            peer.pump()
            peer.pump()
            self.serve()

    def check(self) -> None:
        assert not [wrong for wrong in check_invariants(self.world.node) if " holds " not in wrong]
        assert not self.world.internal_errors()


@settings(max_examples=60)
@example(1, 1, [("send", 52), ("suspend", 50), ("resume", 0), ("send", 25)])
@given(
    st.integers(1, 3), st.integers(1, 4), st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 99)), max_size=60)
)
def test_relay_never_does_what_the_planner_would_not(
    pool_size: int, server_cap: int, actions: list[tuple[str, int]]
) -> None:
    with LinkWorld() as world:
        shortcut = Shortcut(world, pool_size, server_cap)
        for action, number in actions:
            getattr(shortcut, "raise_" if action == "raise" else action)(number)
            shortcut.check()


def busy_pool(world: LinkWorld) -> tuple[PoolLedger, ClientLink, Peer]:
    pool = world.add_pool("acme", world.add_server("s"))
    client, peer = world.connect(pool)
    return pool, client, peer


def test_relay_hands_a_backend_back_and_forth_by_itself() -> None:
    with LinkWorld() as world:
        pool, client, peer = busy_pool(world)
        for _ in range(50):
            peer.sock.sendall(query("select"))
            world.settle()
        assert kinds(bytes(peer.received)) == "TDDCZ" * 50
        assert len(world.servers) == 1
        assert len(pool.idle) == 1
        assert client.backend is None
        assert pool.counters.transactions == 50


def test_shortcut_and_planner_meet_in_a_random_walk() -> None:
    """The walk above is worth something only if both ways are really gone."""
    with LinkWorld() as world:
        shortcut = Shortcut(world, 3, 10)
        for number in range(60):
            shortcut.send(number)
            shortcut.answer(number * 3)
            shortcut.answer(number * 3 + 1)
        assert shortcut.acquired > 5
        assert shortcut.parked > 5
