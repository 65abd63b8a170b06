"""The metrics of a node, in Prometheus' text format.

The hot path keeps plain counters (`proxy.pool.counters`); here they are read when somebody asks.  The number of
series is bounded whatever the number of tenants: the first `MAX_TENANTS` tenants that this node has served have
series of their own for as long as it runs, all others are summed up in `tenant="_other"`, so no counter ever decreases.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from proxy.net.front_door import FrontDoor
from proxy.net.hub import Hub
from proxy.pool.counters import HISTOGRAM_BUCKETS, Histogram
from proxy.pool.ledger import STATE_NAMES, NodeLedger, TenantLedger
from proxy.pool.tenancy import Tenancy
from proxy.routing.resolver import RoutingStatus
from proxy.version import BuildInfo

MAX_TENANTS: Final = 200
"""Tenants with series of their own."""
OTHER: Final = "_other"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SAMPLES_PER_SLICE: Final = 150
"""Samples rendered before the loop gets its turn; about a millisecond."""

BUCKET_STEP: Final = 2
"""Every second of the doubling buckets is shown."""


@dataclass(slots=True)
class _Sum:
    """What is shown of one tenant, or of all the others together."""

    clients: dict[str, int] = field(default_factory=lambda: {"active": 0, "waiting": 0, "idle": 0})
    backends: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATE_NAMES, 0))
    pinned: int = 0
    transactions: int = 0
    queries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    waits: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BUCKETS)
    wait_total: int = 0
    times: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BUCKETS)
    time_total: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class NodeMetrics:
    """Renders what is known of one node; `routing` is asked at each rendering."""

    def __init__(
        self,
        ledger: NodeLedger,
        tenancy: Tenancy,
        door: FrontDoor,
        hub: Hub,
        *,
        routing: Callable[[], RoutingStatus],
        build: BuildInfo,
        max_tenants: int = MAX_TENANTS,
    ) -> None:
        self._ledger = ledger
        self._tenancy = tenancy
        self._door = door
        self._hub = hub
        self._routing = routing
        self._build = build
        self._max_tenants = max_tenants
        self._named: dict[int, str] = {}
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    async def render(self) -> AsyncIterator[bytes]:
        """Yield the text in pieces, and give the loop its turn between them."""
        for family in self.families():
            for piece in _slices(family):
                yield piece
                await asyncio.sleep(0)
        yield generate_latest(self._process)

    def families(self) -> Iterator[Metric]:
        """Everything there is, a family at a time."""
        yield from self._of_tenants(self._sums())
        yield from self._of_servers()
        yield from self._of_node()

    def _sums(self) -> dict[str, _Sum]:
        sums: dict[str, _Sum] = {}
        for tenant_id, counters in self._tenancy.counters.items():
            one = sums.setdefault(self._name(tenant_id), _Sum())
            one.transactions += counters.transactions
            one.queries += counters.queries
            one.bytes_in += counters.bytes_from_clients
            one.bytes_out += counters.bytes_to_clients
            one.wait_total += _add(one.waits, counters.waits)
            one.time_total += _add(one.times, counters.transaction_times)
            for sqlstate, count in counters.errors.items():
                one.errors[sqlstate] = one.errors.get(sqlstate, 0) + count
            tenant = self._ledger.tenants.get(tenant_id)
            if tenant is not None:
                self._add_tenant(one, tenant)
        return sums

    def _name(self, tenant_id: int) -> str:
        """The label of a tenant: its slug when it was first shown, which it keeps."""
        name = self._named.get(tenant_id)
        if name is None:
            if len(self._named) >= self._max_tenants:
                return OTHER
            name = self._tenancy.slugs.get(tenant_id, str(tenant_id))
            if name in self._named.values():
                name = f"{name}#{tenant_id}"
            self._named[tenant_id] = name
        return name

    def _add_tenant(self, one: _Sum, tenant: TenantLedger) -> None:
        active = 0
        for pool in tenant.pools:
            for state, name in enumerate(STATE_NAMES):
                one.backends[name] += pool.count(state)
            one.pinned += pool.pinned
            active += pool.count(ACTIVE_STATE)
        active = min(active, tenant.clients)
        one.clients["active"] += active
        one.clients["waiting"] += tenant.waiting
        one.clients["idle"] += max(0, tenant.clients - active - tenant.waiting)

    def _of_tenants(self, sums: dict[str, _Sum]) -> Iterator[Metric]:
        clients = GaugeMetricFamily(
            "pgtenant_clients",
            "Clients by state: active have a backend, waiting queue for one, idle need none now.",
            labels=["tenant", "state"],
        )
        backends = GaugeMetricFamily(
            "pgtenant_backends",
            "Backends by state; all of them hold a slot on their server.",
            labels=["tenant", "state"],
        )
        pinned = GaugeMetricFamily(
            "pgtenant_pinned_clients", "Clients that keep their backend because of session state.", labels=["tenant"]
        )
        transactions = CounterMetricFamily(
            "pgtenant_transactions", "Transactions (or single statements) that have ended.", labels=["tenant"]
        )
        queries = CounterMetricFamily("pgtenant_queries", "Requests answered with ReadyForQuery.", labels=["tenant"])
        received = CounterMetricFamily(
            "pgtenant_client_received_bytes", "Bytes received from clients.", labels=["tenant"]
        )
        sent = CounterMetricFamily(
            "pgtenant_client_sent_bytes", "Bytes of backends sent to clients.", labels=["tenant"]
        )
        errors = CounterMetricFamily(
            "pgtenant_errors",
            "Errors told to clients, those of PostgreSQL included, by SQLSTATE.",
            labels=["tenant", "sqlstate"],
        )
        waits = HistogramMetricFamily(
            "pgtenant_queue_wait_seconds", "Waits of those who had to queue for a backend.", labels=["tenant"]
        )
        times = HistogramMetricFamily(
            "pgtenant_transaction_seconds", "Time from taking a backend to giving it back.", labels=["tenant"]
        )
        for tenant, one in sums.items():
            for state, count in one.clients.items():
                clients.add_metric([tenant, state], count)
            for state, count in one.backends.items():
                backends.add_metric([tenant, state], count)
            pinned.add_metric([tenant], one.pinned)
            transactions.add_metric([tenant], one.transactions)
            queries.add_metric([tenant], one.queries)
            received.add_metric([tenant], one.bytes_in)
            sent.add_metric([tenant], one.bytes_out)
            for sqlstate, count in one.errors.items():
                errors.add_metric([tenant, sqlstate], count)
            waits.add_metric([tenant], _buckets(one.waits), one.wait_total / 1e6)
            times.add_metric([tenant], _buckets(one.times), one.time_total / 1e6)
        yield from (clients, backends, pinned, transactions, queries, received, sent, errors, waits, times)

    def _of_servers(self) -> Iterator[Metric]:
        slots = GaugeMetricFamily("pgtenant_server_slots", "Slots held on a server by this node.", labels=["server"])
        caps = GaugeMetricFamily(
            "pgtenant_server_slots_max", "Slots that this node may hold on a server.", labels=["server"]
        )
        waiting = GaugeMetricFamily(
            "pgtenant_server_waiting_clients", "Clients that wait for a backend on a server.", labels=["server"]
        )
        failures = CounterMetricFamily(
            "pgtenant_server_connect_failures", "Backends that could not be opened.", labels=["server"]
        )
        backoff = GaugeMetricFamily(
            "pgtenant_server_backoff", "1 while a server that failed is not tried again.", labels=["server"]
        )
        for server in self._ledger.servers.values():
            slots.add_metric([server.name], server.held)
            caps.add_metric([server.name], server.max_connections)
            waiting.add_metric([server.name], sum(pool.waiting for pool in server.waiting_pools))
            failures.add_metric([server.name], server.connect_failures)
            backoff.add_metric([server.name], float(server.backoff_until > self._hub.selector.now))
        yield from (slots, caps, waiting, failures, backoff)

    def _of_node(self) -> Iterator[Metric]:
        status = self._routing()
        refused = CounterMetricFamily(
            "pgtenant_logins_refused", "Logins refused, by the name of the error.", labels=["reason"]
        )
        for reason, count in self._door.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield _counter("pgtenant_logins", "Logins completed.", self._door.logins)
        yield _counter(
            "pgtenant_internal_errors",
            "Exceptions contained inside the proxy; each is a defect of it.",
            self._hub.internal_errors + self._door.internal_errors + self._hub.selector.contained,
        )
        yield _gauge("pgtenant_registry_up", "1 while the registry answers.", float(status.registry_up))
        yield _gauge("pgtenant_registry_version", "Version of the registry that is in force.", status.version)
        yield _gauge("pgtenant_registry_lag_seconds", "Seconds since all changes were known.", status.lag)
        yield _counter("pgtenant_registry_queries", "Questions put to the registry.", status.queries)
        build = GaugeMetricFamily(
            "pgtenant_build_info", "Always 1; the labels tell the running build.", labels=["version", "relay", "python"]
        )
        build.add_metric([self._build.version, self._build.relay, self._build.python], 1)
        yield build


ACTIVE_STATE: Final = STATE_NAMES.index("active")


def _counter(name: str, text: str, value: float) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _add(total: list[int], histogram: Histogram) -> int:
    for bucket, count in enumerate(histogram.counts):
        total[bucket] += count
    return histogram.total_microseconds


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Cumulate doubling microsecond buckets into (upper bound in seconds, count); the last is infinity."""
    shown: list[tuple[str, float]] = []
    running = 0
    for bucket, count in enumerate(counts[:-1]):
        running += count
        if bucket % BUCKET_STEP == 0 and bucket >= 6:
            shown.append((repr(2**bucket / 1e6), running))
    shown.append(("+Inf", sum(counts)))
    return shown


class _One:
    """What `generate_latest` takes for a registry: one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


def _slices(family: Metric) -> Iterator[bytes]:
    """Render a family in pieces, with its heading only once."""
    samples = family.samples
    for start in range(0, max(1, len(samples)), SAMPLES_PER_SLICE):
        part = Metric(family.name, family.documentation, family.type)
        part.samples = samples[start : start + SAMPLES_PER_SLICE]
        text = generate_latest(_One(part))
        if start:
            text = b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))
        yield text
