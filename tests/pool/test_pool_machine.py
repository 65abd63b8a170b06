"""The pool driver under random operations: every count stays true, no cap is exceeded, nobody is forgotten."""

from __future__ import annotations

from harness.poolworld import Client, PoolWorld
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.pool.allocator import waits_in_vain, why_not_open
from proxy.pool.ledger import (
    ACTIVE,
    CANCELLING,
    CLOSING,
    FLAG_HELD_BACK,
    IDLE,
    RESETTING,
    WAIT_NONE,
    BackendEntry,
    PoolLedger,
)
from proxy.pool.pool import FAULT_LOGIN, FAULT_MISSING, FAULT_SERVER

numbers = st.integers(0, 1000)
ACTIONS = [
    *["client_asks", "client_releases", "backend_opens"] * 3,
    *["client_vanishes", "backend_does_not_open", "server_confirms_a_close", "time_passes"] * 2,
    *["server_closes_a_backend", "reset_succeeds", "cancel_begins", "cancel_is_done"],
    *["tenant_cap_changes", "server_cap_changes", "route_changes", "minimum_changes"],
    *["tenant_is_suspended", "tenant_is_resumed"],
]


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = PoolWorld()
        self.lowered = False
        self.cancelled: list[BackendEntry] = []

    @initialize(
        max_backends=st.integers(2, 12),
        max_connecting=st.integers(1, 3),
        sizes=st.lists(st.integers(1, 4), min_size=2, max_size=2),
        caps=st.lists(st.integers(1, 6), min_size=2, max_size=2),
    )
    def begin(self, max_backends: int, max_connecting: int, sizes: list[int], caps: list[int]) -> None:
        self.world = world = PoolWorld(max_backends, max_connecting)
        servers = [world.add_server(f"s{number}", cap) for number, cap in enumerate(caps)]
        acme, bolt = (
            world.add_tenant(slug, size, max_waiting=6) for slug, size in zip(("acme", "bolt"), sizes, strict=True)
        )
        world.add_pool(acme, servers[0])
        world.add_pool(acme, servers[0], "reader")
        world.add_pool(bolt, servers[0])
        world.add_pool(bolt, servers[1], "elsewhere")
        for pool in self.pools:
            pool.idle_timeout = 30.0
            pool.lifetime = 100.0

    @property
    def pools(self) -> list[PoolLedger]:
        return list(self.world.node.pools.values())

    def pool(self, number: int) -> PoolLedger:
        return self.pools[number % len(self.pools)]

    def pick_entry(self, number: int, *states: int) -> BackendEntry | None:
        entries = self.world.entries(lambda entry: entry.state in states)
        return entries[number % len(entries)] if entries else None

    def pick_linked(self, number: int) -> Client | None:
        linked = self.world.linked()
        return linked[number % len(linked)] if linked else None

    # One rule for all: hypothesis switches rules off at random, and the rare meetings are what counts here.

    @rule(action=st.sampled_from(ACTIONS), number=numbers, choice=st.integers(0, 11))
    def act(self, action: str, number: int, choice: int) -> None:
        getattr(self, action)(number, choice)

    # Clients.

    def client_asks(self, number: int, choice: int) -> None:
        on_grant = ("", "", "release", "close", "", "again")[choice % 6]
        pool = self.pool(number)
        self.world.ask(pool, timeout=1.0 if pool.role == "reader" else 60.0, on_grant=on_grant)

    def client_releases(self, number: int, choice: int) -> None:
        client = self.pick_linked(number)
        if client is not None:
            self.world.release(client, dirty=choice > 8)

    def client_vanishes(self, number: int, choice: int) -> None:
        clients = self.world.waiting() + self.world.linked()
        if clients:
            self.world.leave(clients[number % len(clients)])

    # Servers.

    def backend_opens(self, number: int, choice: int) -> None:
        if self.world.opening:
            entry = self.world.opening[number % len(self.world.opening)]
            entry.expires_at = self.world.now + 100.0
            self.world.opened(entry)

    def backend_does_not_open(self, number: int, choice: int) -> None:
        if self.world.opening:
            entry = self.world.opening[number % len(self.world.opening)]
            fault = (FAULT_SERVER, FAULT_LOGIN, FAULT_MISSING)[choice % 3]
            self.world.open_fails(entry, fault=fault, pause=choice / 10)

    def server_confirms_a_close(self, number: int, choice: int) -> None:
        if self.world.closing:
            self.world.confirm_closed(self.world.closing[number % len(self.world.closing)])

    def server_closes_a_backend(self, number: int, choice: int) -> None:
        entry = self.pick_entry(number, IDLE, ACTIVE, RESETTING, CANCELLING)
        if entry is not None:
            self.world.lose(entry)

    def reset_succeeds(self, number: int, choice: int) -> None:
        if self.world.resetting:
            self.world.reset_done(self.world.resetting[number % len(self.world.resetting)])

    # Cancel requests.

    def cancel_begins(self, number: int, choice: int) -> None:
        client = self.pick_linked(number)
        if client is not None and client.entry is not None:
            self.cancelled.append(client.entry)
            self.world.driver.cancel_begins(client.entry)

    def cancel_is_done(self, number: int, choice: int) -> None:
        if self.cancelled:
            self.world.driver.cancel_done(self.cancelled.pop(number % len(self.cancelled)), self.world.now)

    # The control plane.

    def tenant_cap_changes(self, number: int, choice: int) -> None:
        tenant, cap = self.pool(number).tenant, 1 + choice // 2
        self.lowered = self.lowered or cap < tenant.pool_size
        tenant.pool_size = cap

    def server_cap_changes(self, number: int, choice: int) -> None:
        server, cap = self.pool(number).server, 1 + choice // 2
        self.lowered = self.lowered or cap < server.max_connections
        server.max_connections = cap

    def route_changes(self, number: int, choice: int) -> None:
        self.world.repoint(self.pool(number), self.world.node.servers[1 + choice % 2])

    def tenant_is_suspended(self, number: int, choice: int) -> None:
        self.world.driver.hold_back(self.pool(number), self.world.now)

    def tenant_is_resumed(self, number: int, choice: int) -> None:
        self.world.driver.let_go(self.pool(number), self.world.now)

    def minimum_changes(self, number: int, choice: int) -> None:
        self.pool(number).min_size = choice % 3

    # Time.

    def time_passes(self, number: int, choice: int) -> None:
        self.world.pass_time((0.05, 0.1, 0.1, 0.2, 1.0, 10.0, 61.0, 101.0)[choice % 8])
        for pool in self.pools:
            unserved = pool.waiting - pool.opening()
            if unserved > 0 and not pool.flags & FLAG_HELD_BACK:
                assert why_not_open(self.world.node, pool, self.world.now) != WAIT_NONE, "waits for no reason"
                assert not waits_in_vain(pool, self.world.now), "waits for what it will not get"
            if pool.flags & FLAG_HELD_BACK:
                assert not pool.idle, "a suspended tenant's backend is kept"
        for client in self.world.waiting():
            assert client.waiter is not None and client.waiter.deadline > self.world.now

    @invariant()
    def ledger_is_true(self) -> None:
        self.world.check()
        if not self.lowered:
            assert not self.world.over_caps()

    def teardown(self) -> None:
        """From any state on: when the servers and the clients behave, everybody is served, and all comes to rest."""
        world = self.world
        for pool in self.pools:
            world.driver.let_go(pool, world.now)
            pool.min_size = 0
        expected = len(world.waiting())
        for _ in range(40 + 10 * expected):
            self.one_calm_turn()
            self.ledger_is_true()
        assert not world.waiting()
        assert not world.linked()
        assert not world.over_caps()
        assert all(entry.state in (IDLE, CLOSING) for entry in world.entries())

    def one_calm_turn(self) -> None:
        world = self.world
        while self.cancelled:
            world.driver.cancel_done(self.cancelled.pop(), world.now)
        for entry in list(world.opening):
            world.opened(entry)
        for entry in list(world.resetting):
            world.reset_done(entry)
        for entry in list(world.closing):
            world.confirm_closed(entry)
        for client in world.linked():
            # Nobody but the clients of this moment: those that ask again and again would never end.
            client.on_grant = ""
            world.release(client)
        for client in world.waiting():
            client.on_grant = ""
        world.pass_time(0.2)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40)
