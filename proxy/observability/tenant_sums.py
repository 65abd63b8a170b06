"""Which tenants have series of their own, and what each series counts.

The number of series is bounded: the `max_tenants` busiest tenants have a place, all others share `tenant="_other"`.
Whatever a tenant does is counted by the one series that it has at that moment and is never moved to another: so no
counter decreases or jumps when a place changes hands, and rates summed up over all series are exact.

How busy a tenant is says its load: the milliseconds for which it had backends, and one for each transaction, of which
half is forgotten every `HALF_LIFE`.  Places that are free go to whoever comes first.  One that is taken changes hands
when a tenant without has `ADVANTAGE` times the load of the least busy one with, and that has had it for `HOLD_TIME`: so
series do not come and go all the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

from proxy.pool.counters import HISTOGRAM_BUCKETS, Counters
from proxy.pool.ledger import STATE_NAMES, NodeLedger, TenantLedger
from proxy.pool.tenancy import Tenancy

OTHER: Final = "_other"
"""No slug begins with an underscore."""
TENANTS_PER_SLICE: Final = 50
"""Tenants summed up before the loop gets its turn; about half a millisecond."""
PLACES_PER_SLICE: Final = 5
"""Places that change hands before the loop gets its turn; about a millisecond."""
MAX_OTHER_ERRORS: Final = 64
"""Different SQLSTATEs shown of all other tenants together; a tenant can make up any."""
HALF_LIFE: Final = 300.0
"""Seconds after which what a tenant has done counts half."""
HOLD_TIME: Final = 300.0
"""Seconds for which a place stays with whoever got it."""
ADVANTAGE: Final = 2.0
"""How many times as busy as its holder a tenant has to be that takes over a place."""

ACTIVE_STATE: Final = STATE_NAMES.index("active")


@dataclass(slots=True)
class Totals:
    """Counters of one or several tenants; times are microseconds, as the relay counts them."""

    transactions: int = 0
    queries: int = 0
    prepared_again: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    wait_total: int = 0
    time_total: int = 0
    waits: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BUCKETS)
    times: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BUCKETS)
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, other: Totals, sign: int = 1) -> None:
        """Add the other totals, or take them off with the sign -1."""
        self.transactions += sign * other.transactions
        self.queries += sign * other.queries
        self.prepared_again += sign * other.prepared_again
        self.bytes_in += sign * other.bytes_in
        self.bytes_out += sign * other.bytes_out
        self.wait_total += sign * other.wait_total
        self.time_total += sign * other.time_total
        self.waits = [mine + sign * its for mine, its in zip(self.waits, other.waits, strict=True)]
        self.times = [mine + sign * its for mine, its in zip(self.times, other.times, strict=True)]
        for sqlstate, count in other.errors.items():
            self.errors[sqlstate] = self.errors.get(sqlstate, 0) + sign * count


@dataclass(slots=True)
class TenantSum(Totals):
    """What one value of the label `tenant` shows: its counters, and how things stand now."""

    clients: dict[str, int] = field(default_factory=lambda: {"active": 0, "waiting": 0, "idle": 0})
    backends: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATE_NAMES, 0))
    pinned: int = 0

    def add_tenant(self, tenant: TenantLedger) -> None:
        """Add how things stand with one tenant."""
        active = 0
        for pool in tenant.pools:
            for state, name in enumerate(STATE_NAMES):
                self.backends[name] += pool.count(state)
            self.pinned += pool.pinned
            active += pool.count(ACTIVE_STATE)
        active = min(active, tenant.clients)
        self.clients["active"] += active
        self.clients["waiting"] += tenant.waiting
        self.clients["idle"] += max(0, tenant.clients - active - tenant.waiting)


def totals_of(counters: Counters) -> Totals:
    """Copy a tenant's counters."""
    return Totals(
        counters.transactions,
        counters.queries,
        counters.prepared_again,
        counters.bytes_from_clients,
        counters.bytes_to_clients,
        counters.waits.total_microseconds,
        counters.transaction_times.total_microseconds,
        counters.waits.counts,
        counters.transaction_times.counts,
        counters.errors,
    )


@dataclass(slots=True)
class _Place:
    """A series of its own: its name, what of the tenant's counters belongs to `_other`, and since when it is there."""

    name: str
    elsewhere: Totals | None
    since: float


@dataclass(frozen=True, slots=True)
class _Former:
    """A series that a tenant had and may have again: its name, and what it counted."""

    name: str
    counted: Totals


@dataclass(slots=True)
class _Load:
    """How busy a tenant has been lately, and all its work when it was last looked at; both are milliseconds."""

    recent: float
    work: float


class TenantSums:
    """Sums up the tenants of a node by the series that show them; `clock` is monotonic, in seconds.

    `max_tenants` may be changed at any time.
    """

    def __init__(self, ledger: NodeLedger, tenancy: Tenancy, clock: Callable[[], float], *, max_tenants: int) -> None:
        self._ledger = ledger
        self._tenancy = tenancy
        self._clock = clock
        self.max_tenants = max_tenants
        self._places: dict[int, _Place] = {}
        self._former: dict[int, _Former] = {}
        self._names: set[str] = {OTHER}
        self._loads: dict[int, _Load] = {}
        self._looked_at = clock()
        # What keeps `_other` level when tenants leave it and come back.
        self._level = Totals()
        self._other_errors: set[str] = set()

    def gather(self) -> Generator[None, None, dict[str, TenantSum]]:
        """Sum up, and pause after every few tenants; returns the sums by label.

        One at a time: a caller finishes it before the next begins.
        """
        sums: dict[str, TenantSum] = {}
        # A heap of those that may get a place, the least busy first.
        busy: list[tuple[float, int]] = []
        now = self._clock()
        kept = 0.5 ** ((now - self._looked_at) / HALF_LIFE)
        self._looked_at = now
        for number, tenant_id in enumerate(list(self._tenancy.counters), 1):
            counters = self._tenancy.counters[tenant_id]
            place = self._places.get(tenant_id) or self._free_place(tenant_id, now)
            load = self._load_of(tenant_id, counters, kept)
            one = sums.setdefault(OTHER if place is None else place.name, TenantSum())
            one.add(totals_of(counters))
            if place is None:
                heapq.heappush(busy, (load, tenant_id))
                if len(busy) > self.max_tenants:
                    heapq.heappop(busy)
            elif place.elsewhere is not None:
                one.add(place.elsewhere, -1)
            tenant = self._ledger.tenants.get(tenant_id)
            if tenant is not None:
                one.add_tenant(tenant)
            if number % TENANTS_PER_SLICE == 0:
                yield
        other = sums.get(OTHER)
        if other is not None:
            other.add(self._level)
            other.errors = self._bounded(other.errors)
        yield from self._change_places(sorted(busy, reverse=True), now)
        return sums

    def _bounded(self, errors: dict[str, int]) -> dict[str, int]:
        """Count the SQLSTATEs that came after the first few as `other`; which those are never changes."""
        bounded: dict[str, int] = {}
        for sqlstate, count in errors.items():
            if count and len(self._other_errors) < MAX_OTHER_ERRORS:
                self._other_errors.add(sqlstate)
            label = sqlstate if sqlstate in self._other_errors else "other"
            bounded[label] = bounded.get(label, 0) + count
        return bounded

    def _load_of(self, tenant_id: int, counters: Counters, kept: float) -> float:
        work = float(counters.transactions) + float(counters.transaction_times.total_microseconds) / 1000.0
        load = self._loads.get(tenant_id)
        if load is None:
            self._loads[tenant_id] = _Load(work, work)
            return work
        load.recent = load.recent * kept + work - load.work
        load.work = work
        return load.recent

    def _free_place(self, tenant_id: int, now: float) -> _Place | None:
        """Give a tenant that no series has counted yet a place of its own, if one is free."""
        if len(self._places) >= self.max_tenants or tenant_id in self._loads:
            return None
        place = _Place(self._new_name(tenant_id), None, now)
        self._places[tenant_id] = place
        return place

    def _new_name(self, tenant_id: int) -> str:
        name = self._tenancy.slugs.get(tenant_id, str(tenant_id))
        if name in self._names:
            name = f"{name}#{tenant_id}"
        self._names.add(name)
        return name

    def _change_places(self, busiest: list[tuple[float, int]], now: float) -> Generator[None, None, None]:
        """Give the places of the least busy to the busiest of those that have none; it shows at the next time."""
        held = sorted((self._loads[tenant_id].recent, tenant_id) for tenant_id in self._places)
        surplus = max(0, len(held) - self.max_tenants)
        for _, goes in held[:surplus]:
            self._leave(goes)
        free = self.max_tenants - len(self._places)
        givers = [(load, goes) for load, goes in held[surplus:] if now - self._places[goes].since >= HOLD_TIME]
        for number, (load, comes) in enumerate(busiest):
            if number >= free:
                if number - free >= len(givers):
                    break
                least, goes = givers[number - free]
                if load < 1 or load < least * ADVANTAGE:
                    break
                self._leave(goes)
            self._enter(comes, now)
            if number % PLACES_PER_SLICE == PLACES_PER_SLICE - 1:
                yield

    def _leave(self, tenant_id: int) -> None:
        place = self._places.pop(tenant_id)
        counters = self._tenancy.counters[tenant_id]
        self._level.add(totals_of(counters), -1)
        counted = Totals()
        counted.add(totals_of(counters))
        if place.elsewhere is not None:
            counted.add(place.elsewhere, -1)
        self._former[tenant_id] = _Former(place.name, counted)

    def _enter(self, tenant_id: int, now: float) -> None:
        counters = self._tenancy.counters[tenant_id]
        self._level.add(totals_of(counters))
        elsewhere = Totals()
        elsewhere.add(totals_of(counters))
        former = self._former.pop(tenant_id, None)
        if former is not None:
            elsewhere.add(former.counted, -1)
        name = self._new_name(tenant_id) if former is None else former.name
        self._places[tenant_id] = _Place(name, elsewhere, now)
