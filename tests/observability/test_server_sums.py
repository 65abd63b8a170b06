"""Servers in the metrics: a counter never goes back, and no series appears twice."""

from __future__ import annotations

from harness.metricsworld import MetricsWorld

from proxy.observability.server_sums import ServerSum, ServerSums
from proxy.pool.ledger import ServerLedger


class Servers:
    """The sums over a ledger's servers, on a clock of the test's own."""

    def __init__(self) -> None:
        self.world = MetricsWorld()
        self.now = 0.0
        self.sums = ServerSums(self.world.ledger, lambda: self.now)

    def add(self, ident: int, name: str, *, cap: int = 10, failures: int = 0) -> ServerLedger:
        server = ServerLedger(ident, name, cap)
        server.connect_failures = failures
        self.world.ledger.servers[ident] = server
        return server

    def failures(self, name: str) -> int:
        return self.sums.gather()[name].connect_failures


def test_failures_are_kept_when_the_ledger_forgets_a_server_and_meets_it_again() -> None:
    servers = Servers()
    servers.world.add_tenant(1)
    server = servers.world.ledger.servers[1]
    server.connect_failures = 5
    assert servers.failures("pg-a") == 5
    server.connect_failures = 7
    servers.world.tenancy.forget_cold(1e6, 60.0)
    assert servers.world.ledger.servers == {}
    assert servers.failures("pg-a") == 7
    servers.world.add_tenant(1)
    assert servers.failures("pg-a") == 7
    servers.world.ledger.servers[1].connect_failures = 1
    assert servers.failures("pg-a") == 8


def test_a_forgotten_server_holds_nothing() -> None:
    servers = Servers()
    servers.add(1, "pg-a").held = 3
    servers.sums.gather()
    del servers.world.ledger.servers[1]
    assert servers.sums.gather() == {"pg-a": ServerSum()}


def test_two_servers_of_one_name_are_one_series() -> None:
    servers = Servers()
    old, new = servers.add(1, "pg-a", failures=2), servers.add(2, "pg-a", cap=5, failures=1)
    old.held, new.held, old.backoff_until = 3, 4, 1.0
    assert servers.sums.gather() == {"pg-a": ServerSum(7, 15, 0, 3, in_backoff=True)}
    servers.now = 1.0
    del servers.world.ledger.servers[1]
    assert servers.sums.gather() == {"pg-a": ServerSum(4, 5, 0, 3)}


async def test_each_series_of_servers_appears_once_in_the_text() -> None:
    servers = Servers()
    servers.add(1, "pg-a")
    servers.add(2, "pg-a")
    lines = [line for line in (await servers.world.text()).splitlines() if line.startswith("pgtenant_server_")]
    assert len(lines) == len({line.partition(" ")[0] for line in lines}) == 5
