"""The sweeps that keep time limits: what they do to links, how much they look at, and that no fault ends them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from harness.fakeserver import command_complete, ready
from harness.linkworld import LinkWorld, Peer
from harness.rawclient import query

from proxy.net.client_link import ClientLink
from proxy.net.dialer import Dialer
from proxy.net.hub import SETTLE_TIME
from proxy.net.probe import Probe
from proxy.net.time_keeper import CLIENTS_PER_SWEEP, TimeKeeper
from proxy.pool.ledger import CLOSING, FLAG_MODE, RESETTING, BackendEntry, PoolLedger, Waiter
from proxy.pool.pool import NEVER
from proxy.pool.time_limits import CANCEL_GRACE, TimeLimits
from proxy.session.parameters import ParameterSet

TICK = 0.1


def has_ended(client: ClientLink) -> bool:
    return client.finishing


class Asked:
    """Stands for the dialer: keeps what it is asked to cancel, and asks whether that is wanted when told to."""

    def __init__(self) -> None:
        self.wanted: list[Callable[[], bool]] = []

    async def cancel(self, entry: BackendEntry, still_wanted: Callable[[], bool]) -> None:
        self.wanted.append(still_wanted)


class Sweeps:
    """A world of links whose time limits are kept by hand."""

    def __init__(self, world: LinkWorld, clients: list[ClientLink] | None = None) -> None:
        self.world = world
        self.asked = Asked()
        self.now = 1000.0
        self.keeper = TimeKeeper(
            world.hub,
            cast("Dialer", self.asked),
            lambda: [client for client, _ in world.clients] if clients is None else clients,
            spawn=self._run,
        )

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        with suppress(StopIteration):
            work.send(None)

    def sweep(self, seconds: float = TICK) -> None:
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.keeper.sweep(self.now)

    def busy_client(self, limits: TimeLimits) -> tuple[PoolLedger, ClientLink, Peer]:
        """A client whose query its server has got and does not answer."""
        pool = self.world.add_pool("acme", self.world.add_server("pg"))
        pool.times = limits
        client, peer = self.world.connect(pool)
        peer.sock.sendall(query("select 1"))
        self.world.until(lambda: self.world.opening, "an opening")
        self.world.open_backend(self.world.opening[0])
        self.world.until(lambda: client.backend is not None and client.backend.state.owes(), "a query under way")
        return pool, client, peer


def test_a_request_is_cancelled_only_if_its_server_is_still_at_it() -> None:
    with LinkWorld() as world:
        sweeps = Sweeps(world)
        _, client, peer = sweeps.busy_client(TimeLimits(query=1.0))
        sweeps.sweep(1.0)
        assert not sweeps.asked.wanted
        sweeps.sweep(0.3)
        (still_wanted,) = sweeps.asked.wanted
        world.settle()
        assert client.backend is None
        assert not still_wanted()
        world.settle()
        assert bytes(peer.received).startswith(b"C")
        assert b"query_timeout" not in peer.received
        assert world.hub.timeouts["query_timeout"] == 0


def test_the_request_behind_one_that_ended_just_now_is_not_cancelled_in_its_place() -> None:
    with LinkWorld() as world:
        sweeps = Sweeps(world)
        pending: list[Coroutine[Any, Any, None]] = []
        sweeps.keeper = TimeKeeper(
            world.hub,
            cast("Dialer", sweeps.asked),
            lambda: [client for client, _ in world.clients],
            spawn=pending.append,
        )
        _, client, peer = sweeps.busy_client(TimeLimits(query=1.0))
        backend = client.backend
        assert backend is not None
        peer.sock.sendall(query("begin") + query("select 2"))
        world.until(lambda: len(backend.state.queue) == 3, "two more requests")
        sweeps.sweep(1.3)
        world.servers[backend.entry].sock.sendall(command_complete("SELECT 1") + ready())
        world.until(lambda: backend.state.readies == 1, "the end of the first")
        with pytest.raises(StopIteration):
            pending[0].send(None)
        (still_wanted,) = sweeps.asked.wanted
        assert not still_wanted()


def test_the_client_is_warned_when_its_request_is_cancelled_and_ended_when_nothing_comes_of_it() -> None:
    with LinkWorld() as world:
        sweeps = Sweeps(world)
        pool, client, peer = sweeps.busy_client(TimeLimits(query=1.0))
        entry = client.backend.entry if client.backend is not None else None
        world.answering = False
        sweeps.sweep(1.3)
        assert sweeps.asked.wanted[0]()
        sweeps.sweep(CANCEL_GRACE - 4 * TICK)
        assert len(sweeps.asked.wanted) == 1, "it is not cancelled again and again"
        assert not has_ended(client)
        sweeps.sweep(6 * TICK)
        assert has_ended(client)
        assert entry is not None
        assert entry.close_reason
        world.settle()
        notice, error = bytes(peer.received).split(b"E", 1)[0], bytes(peer.received)
        assert notice.startswith(b"N")
        assert error.count(b"query_timeout of tenant") == 2
        assert b"FATAL" in error
        assert world.hub.timeouts["query_timeout"] == 1
        assert pool.counters.errors == {"57014": 1}


def test_a_fault_in_one_session_ends_neither_the_sweep_nor_the_next() -> None:
    class Broken:
        contained: list[BaseException] = []  # noqa: RUF012 - for this one test

        @property
        def pool(self) -> PoolLedger:
            raise RuntimeError("broken")

        def contain(self, error: BaseException) -> None:
            self.contained.append(error)

    with LinkWorld() as world:
        pool = world.add_pool("acme", world.add_server("pg"))
        pool.times = TimeLimits(client_idle=1.0)
        client, _ = world.connect(pool)
        broken = Broken()
        sweeps = Sweeps(world, [client, cast("ClientLink", broken), client])
        sweeps.sweep(1.2)
        assert client.finishing
        assert broken.contained


def test_one_sweep_looks_at_a_bounded_number_of_clients_and_all_have_their_turn() -> None:
    looked: list[int] = []

    def idle(number: int) -> ClientLink:
        limits = TimeLimits()

        class Pool:
            @property
            def times(self) -> TimeLimits:
                looked.append(number)
                return limits

        return cast("ClientLink", SimpleNamespace(pool=Pool()))

    with LinkWorld() as world:
        world.add_pool("acme", world.add_server("pg")).times = TimeLimits(client_idle=1.0)
        sweeps = Sweeps(world, [idle(number) for number in range(3 * CLIENTS_PER_SWEEP - 1)])
        for _ in range(3):
            before = len(looked)
            sweeps.sweep()
            assert len(looked) - before <= CLIENTS_PER_SWEEP
        assert len(set(looked)) == len(looked) == 3 * CLIENTS_PER_SWEEP - 1


@pytest.mark.parametrize("what", ["reset", "settings of a login"])
def test_a_server_that_does_not_answer_the_proxy_itself_costs_its_slot_for_a_while_only(what: str) -> None:
    with LinkWorld() as world:
        sweeps = Sweeps(world)
        pool, client, _ = sweeps.busy_client(TimeLimits())
        (entry,) = world.servers
        if what == "reset":
            pool.reset_always = True
            pool.flags |= FLAG_MODE
            world.servers[entry].pump()
            world.until(lambda: entry.state == RESETTING, "DISCARD ALL")
        else:
            world.settle()
            probe = Probe(ParameterSet(((b"timezone", b"UTC"),)), None)
            world.hub.driver.request(Waiter(pool, world.selector.now, NEVER, probe), world.selector.now)
        assert client.backend is None
        began = world.selector.now
        world.hub.sweep(began + SETTLE_TIME - 1)
        assert entry.state < CLOSING
        world.hub.sweep(began + SETTLE_TIME + 1)
        assert entry.state == CLOSING
        assert not world.hub.settling
