"""The metrics of a node, in Prometheus' text format.

The hot path keeps plain counters (`proxy.pool.counters`); here they are read when somebody asks, in slices, so that
the relay is never held up by the number of tenants.  `tenant_sums` bounds the number of series;
`server_sums` keeps what servers have counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from proxy.net.admission import Admissions
from proxy.net.front_door import FrontDoor
from proxy.net.hub import Hub
from proxy.observability.admission_families import admission_families
from proxy.observability.server_sums import ServerSums
from proxy.observability.tenant_sums import TenantSum, TenantSums
from proxy.pool.ledger import NodeLedger
from proxy.pool.tenancy import Tenancy
from proxy.routing.resolver import RoutingStatus
from proxy.version import BuildInfo

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SAMPLES_PER_SLICE: Final = 150
"""Samples rendered before the loop gets its turn; about a millisecond."""

BUCKET_STEP: Final = 2
"""Every second of the doubling buckets is shown, from 64 microseconds on."""
FIRST_BUCKET: Final = 6

Sample = tuple[str, dict[str, str], float]
"""What follows the family's name, the labels besides the tenant, and the value."""


@dataclass(frozen=True, slots=True)
class _TenantFamily:
    """A metric with the label `tenant`."""

    name: str
    type: str
    text: str
    samples: Callable[[TenantSum], Iterable[Sample]]


class NodeMetrics:
    """Renders what is known of one node; `routing` and `snapshot_failures` are asked at each rendering."""

    def __init__(
        self,
        ledger: NodeLedger,
        tenancy: Tenancy,
        door: FrontDoor,
        hub: Hub,
        admissions: Admissions,
        *,
        routing: Callable[[], RoutingStatus],
        build: BuildInfo,
        snapshot_failures: Callable[[], int],
        lines_left_out: Callable[[], Mapping[str, int]],
        max_tenants: int,
    ) -> None:
        self._door = door
        self._hub = hub
        self._admissions = admissions
        self._routing = routing
        self._build = build
        self._snapshot_failures = snapshot_failures
        self._lines_left_out = lines_left_out
        self.tenants = TenantSums(ledger, tenancy, lambda: hub.selector.now, max_tenants=max_tenants)
        self._servers = ServerSums(ledger, lambda: hub.selector.now)
        self._gathering = asyncio.Lock()
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    async def render(self) -> AsyncIterator[bytes]:
        """Yield the text in pieces, and give the loop its turn between them."""
        async with self._gathering:
            sums = await _in_turns(self.tenants.gather())
        for parts in self._families(sums):
            heading = True
            for part in parts:
                yield _text(part, heading=heading)
                heading = False
                await asyncio.sleep(0)
        yield generate_latest(self._process)

    def families(self) -> Iterator[Metric]:
        """Everything there is, a family at a time and each in one piece; holds up the loop."""
        for parts in self._families(_at_once(self.tenants.gather())):
            family, *rest = parts
            for part in rest:
                family.samples.extend(part.samples)
            yield family

    def _families(self, sums: dict[str, TenantSum]) -> Iterator[Iterable[Metric]]:
        """The families in parts of a few samples; each has one part at least."""
        for family in TENANT_FAMILIES:
            yield _parts(family, sums)
        for whole in (*self._of_servers(), *self._of_node()):
            yield [whole]

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
        for name, server in self._servers.gather().items():
            slots.add_metric([name], server.held)
            caps.add_metric([name], server.max_connections)
            waiting.add_metric([name], server.waiting)
            failures.add_metric([name], server.connect_failures)
            backoff.add_metric([name], float(server.in_backoff))
        yield from (slots, caps, waiting, failures, backoff)

    def _of_node(self) -> Iterator[Metric]:
        status = self._routing()
        refused = CounterMetricFamily(
            "pgtenant_logins_refused", "Logins refused, by the name of the error.", labels=["reason"]
        )
        for reason, count in self._door.refused.items():
            refused.add_metric([reason], count)
        yield refused
        timeouts = CounterMetricFamily(
            "pgtenant_timeouts", "Time limits that were over, by the name of the setting.", labels=["limit"]
        )
        for limit, count in self._hub.timeouts.items():
            timeouts.add_metric([limit], count)
        yield timeouts
        pins = GaugeMetricFamily(
            "pgtenant_pins", "Reasons for which clients keep their backends; one may have several.", labels=["reason"]
        )
        for reason, count in self._hub.pins.items():
            pins.add_metric([reason], count)
        yield pins
        yield _counter("pgtenant_logins", "Logins completed.", self._door.logins)
        yield _counter("pgtenant_logins_slowed", "Logins that waited because of earlier failures.", self._door.slowed)
        yield from admission_families(self._admissions)
        console = self._door.console
        yield _counter("pgtenant_console_logins", "Logins to the console.", 0 if console is None else console.logins)
        yield _gauge(
            "pgtenant_console_sessions", "Sessions of the console.", 0 if console is None else console.sessions
        )
        yield _counter("pgtenant_verifier_questions", "Verifiers that servers were asked for.", status.asked_servers)
        yield _counter(
            "pgtenant_verifier_questions_failed",
            "Verifiers that servers were asked for, and could not be.",
            status.asked_in_vain,
        )
        yield _counter(
            "pgtenant_internal_errors",
            "Exceptions contained inside the proxy; each is a defect of it.",
            self._hub.internal_errors + self._door.internal_errors + self._hub.selector.contained,
        )
        yield _gauge("pgtenant_registry_up", "1 while the registry answers.", float(status.registry_up))
        yield _gauge("pgtenant_registry_version", "Version of the registry that is in force.", status.version)
        yield _gauge("pgtenant_registry_lag_seconds", "Seconds since all changes were known.", status.lag)
        yield _counter("pgtenant_registry_queries", "Questions put to the registry.", status.queries)
        yield _counter(
            "pgtenant_snapshot_failures",
            "Times that the snapshot could not be written, or would not have been when the node began.",
            self._snapshot_failures(),
        )
        left_out = CounterMetricFamily(
            "pgtenant_log_lines_left_out",
            "Lines that were not written because of log.lines_per_second, by their event.",
            labels=["event"],
        )
        for event, count in self._lines_left_out().items():
            left_out.add_metric([event], count)
        yield left_out
        build = GaugeMetricFamily(
            "pgtenant_build_info", "Always 1; the labels tell the running build.", labels=["version", "relay", "python"]
        )
        build.add_metric([self._build.version, self._build.relay, self._build.python], 1)
        yield build


def _states(counts: dict[str, int]) -> Iterator[Sample]:
    for state, count in counts.items():
        yield "", {"state": state}, count


def _histogram(counts: list[int], total_microseconds: int) -> Iterator[Sample]:
    """Cumulate doubling microsecond buckets; upper bounds are seconds, the last is infinity."""
    running = 0
    for bucket, count in enumerate(counts[:-1]):
        running += count
        if bucket % BUCKET_STEP == 0 and bucket >= FIRST_BUCKET:
            yield "_bucket", {"le": repr(2**bucket / 1e6)}, running
    every = sum(counts)
    yield "_bucket", {"le": "+Inf"}, every
    yield "_count", {}, every
    yield "_sum", {}, total_microseconds / 1e6


TENANT_FAMILIES: Final = (
    _TenantFamily(
        "pgtenant_clients",
        "gauge",
        "Clients by state: active have a backend, waiting queue for one, idle need none now.",
        lambda one: _states(one.clients),
    ),
    _TenantFamily(
        "pgtenant_backends",
        "gauge",
        "Backends by state; all of them hold a slot on their server.",
        lambda one: _states(one.backends),
    ),
    _TenantFamily(
        "pgtenant_pinned_clients",
        "gauge",
        "Clients that keep their backend because of session state.",
        lambda one: [("", {}, one.pinned)],
    ),
    _TenantFamily(
        "pgtenant_transactions",
        "counter",
        "Transactions (or single statements) that have ended.",
        lambda one: [("_total", {}, one.transactions)],
    ),
    _TenantFamily(
        "pgtenant_queries",
        "counter",
        "Requests answered with ReadyForQuery.",
        lambda one: [("_total", {}, one.queries)],
    ),
    _TenantFamily(
        "pgtenant_prepared_again",
        "counter",
        "Statements prepared once more for a client on a backend that did not have them; many mean a low limit.",
        lambda one: [("_total", {}, one.prepared_again)],
    ),
    _TenantFamily(
        "pgtenant_client_received_bytes",
        "counter",
        "Bytes received from clients.",
        lambda one: [("_total", {}, one.bytes_in)],
    ),
    _TenantFamily(
        "pgtenant_client_sent_bytes",
        "counter",
        "Bytes of backends sent to clients.",
        lambda one: [("_total", {}, one.bytes_out)],
    ),
    _TenantFamily(
        "pgtenant_errors",
        "counter",
        "Errors told to clients, those of PostgreSQL included, by SQLSTATE.",
        lambda one: [("_total", {"sqlstate": sqlstate}, count) for sqlstate, count in one.errors.items()],
    ),
    _TenantFamily(
        "pgtenant_queue_wait_seconds",
        "histogram",
        "Waits of those who had to queue for a backend.",
        lambda one: _histogram(one.waits, one.wait_total),
    ),
    _TenantFamily(
        "pgtenant_transaction_seconds",
        "histogram",
        "Time from taking a backend to giving it back.",
        lambda one: _histogram(one.times, one.time_total),
    ),
)


def _parts(family: _TenantFamily, sums: dict[str, TenantSum]) -> Iterator[Metric]:
    part = Metric(family.name, family.text, family.type)
    is_first = True
    for tenant, one in sums.items():
        for suffix, labels, value in family.samples(one):
            part.add_sample(family.name + suffix, {"tenant": tenant, **labels}, value)
        if len(part.samples) >= SAMPLES_PER_SLICE:
            yield part
            is_first = False
            part = Metric(family.name, family.text, family.type)
    if part.samples or is_first:
        yield part


def _counter(name: str, text: str, value: float) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


class _One:
    """What `generate_latest` takes for a registry: one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


def _text(part: Metric, *, heading: bool) -> bytes:
    text = generate_latest(_One(part))
    if heading:
        return text
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))


async def _in_turns(steps: Generator[None, None, dict[str, TenantSum]]) -> dict[str, TenantSum]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            sums: dict[str, TenantSum] = end.value
            return sums
        await asyncio.sleep(0)


def _at_once(steps: Generator[None, None, dict[str, TenantSum]]) -> dict[str, TenantSum]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            sums: dict[str, TenantSum] = end.value
            return sums
