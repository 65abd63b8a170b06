"""A node's books without a node: enough for the metrics to have something to show."""

from __future__ import annotations

from typing import cast

from proxy.net.admission import Admission, Admissions
from proxy.net.front_door import FrontDoor
from proxy.net.hub import Hub
from proxy.net.places import PlaceLimits
from proxy.net.relay_loop import RelaySelector
from proxy.observability.metrics import NodeMetrics
from proxy.pool.ledger import NodeLedger
from proxy.pool.tenancy import Defaults, Tenancy
from proxy.routing.resolver import RoutingStatus
from proxy.version import BuildInfo
from registry.contract import Address, Credentials, Route, ServerInfo, TenantState

STATUS = RoutingStatus(
    registry_up=True,
    reason=None,
    live=True,
    version=7,
    lag=0.0,
    reconnects=0,
    queries=3,
    overtaken=0,
    remembered=0,
    watched=0,
    cached={},
)


class Door:
    """The part of a front door that the metrics read."""

    def __init__(self) -> None:
        self.refused = {"invalid_password": 2}
        self.logins = 5
        self.slowed = 1
        self.console = None
        self.internal_errors = 0


class MetricsWorld:
    """A ledger with tenants, and the metrics over it."""

    def __init__(self, *, max_tenants: int = 200) -> None:
        self.ledger = NodeLedger(100, 8)
        self.hub = Hub(RelaySelector(), self.ledger, 0.1)
        self.tenancy = Tenancy(
            self.ledger,
            self.hub.driver,
            Defaults(),
            is_served=lambda _: True,
            watch=lambda _: None,
            unwatch=lambda _: None,
        )
        self.door = Door()
        self.metrics = NodeMetrics(
            self.ledger,
            self.tenancy,
            cast("FrontDoor", self.door),
            self.hub,
            Admissions(Admission("logins", PlaceLimits(10, 5, 10)), Admission("TLS handshakes", PlaceLimits(4, 2, 10))),
            routing=lambda: STATUS,
            build=BuildInfo("1.2.3", "interpreted", source_matches=True, python="CPython 3"),
            snapshot_failures=lambda: 0,
            lines_left_out=lambda: {"client connected": 3},
            max_tenants=max_tenants,
        )

    def add_tenant(self, number: int, *, transactions: int = 1) -> None:
        """Let a tenant appear and have done something."""
        server = ServerInfo(1, "pg-a", (Address("127.0.0.1"),))
        role = Credentials("app")
        route = Route(number, f"t{number}", TenantState.READY, server, f"d{number}", role, 1)
        pool = self.tenancy.pool_for(route, None, 0.0)
        pool.counters.transactions += transactions
        pool.counters.waits.add(0.001)
        pool.counters.transaction_times.add(0.002)
        pool.counters.count_error("57014")

    async def text(self) -> str:
        """All that `/metrics` would say."""
        return b"".join([piece async for piece in self.metrics.render()]).decode()


def busy_metrics() -> NodeMetrics:
    """Metrics in which every family has a sample."""
    world = MetricsWorld()
    world.add_tenant(1)
    return world.metrics
