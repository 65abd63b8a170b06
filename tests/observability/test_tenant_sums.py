"""Places for series: bounded, those of the busiest tenants, and no counter ever goes back or jumps."""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict

from harness.metricsworld import MetricsWorld

from proxy.observability.tenant_sums import (
    ADVANTAGE,
    HALF_LIFE,
    HOLD_TIME,
    MAX_OTHER_ERRORS,
    OTHER,
    PLACES_PER_SLICE,
    TENANTS_PER_SLICE,
    TenantSum,
    TenantSums,
)
from proxy.pool.counters import HISTOGRAM_BUCKETS


class Sums:
    """The sums over a ledger's tenants, on a clock of the test's own."""

    def __init__(self, places: int) -> None:
        self.world = MetricsWorld()
        self.now = 0.0
        self.sums = TenantSums(self.world.ledger, self.world.tenancy, lambda: self.now, max_tenants=places)
        self.pauses = 0

    def work(self, tenant: int, transactions: int = 1) -> None:
        self.world.add_tenant(tenant, transactions=transactions)

    def look(self) -> dict[str, TenantSum]:
        steps = self.sums.gather()
        while True:
            try:
                next(steps)
                self.pauses += 1
            except StopIteration as end:
                found: dict[str, TenantSum] = end.value
                return found

    def transactions(self) -> dict[str, int]:
        return {label: one.transactions for label, one in self.look().items()}


def counters_of(sums: dict[str, TenantSum]) -> dict[tuple[str, str], int]:
    """Every counter that would be shown, by its series."""
    shown: dict[tuple[str, str], int] = {}
    for label, one in sums.items():
        for name in ("transactions", "queries", "bytes_in", "bytes_out", "wait_total", "time_total"):
            shown[label, name] = getattr(one, name)
        for bucket in range(HISTOGRAM_BUCKETS):
            shown[label, f"waits{bucket}"] = one.waits[bucket]
            shown[label, f"times{bucket}"] = one.times[bucket]
        for sqlstate, count in one.errors.items():
            shown[label, sqlstate] = count
    return shown


def test_a_busy_newcomer_takes_the_place_of_a_quiet_tenant() -> None:
    world = Sums(places=2)
    world.work(1, 10)
    world.work(2, 10)
    world.work(3, 10)
    assert world.transactions() == {"t1": 10, "t2": 10, OTHER: 10}
    world.now = HOLD_TIME / 2
    world.work(2)
    world.look()
    world.now = HOLD_TIME
    world.work(3, 6)
    assert world.transactions() == {"t1": 10, "t2": 11, OTHER: 16}
    world.work(3, 7)
    assert world.transactions() == {"t2": 11, "t3": 7, OTHER: 16}


def test_the_places_go_to_the_busiest_whoever_came_first() -> None:
    world = Sums(places=3)
    for _ in range(3):
        for tenant in range(1, 8):
            world.work(tenant, 3**tenant)
        world.look()
        world.now += HOLD_TIME
    assert set(world.look()) == {"t5", "t6", "t7", OTHER}


def test_a_place_is_not_taken_by_somebody_who_is_hardly_busier() -> None:
    world = Sums(places=1)
    for _ in range(20):
        world.work(1, 10)
        world.work(2, int(10 * ADVANTAGE) - 1)
        assert set(world.look()) == {"t1", OTHER}
        world.now += HOLD_TIME


def test_a_place_stays_for_a_while_with_whoever_got_it() -> None:
    world = Sums(places=1)
    world.work(1)
    world.look()
    world.work(2, 1000)
    world.now = HOLD_TIME - 1.0
    world.look()
    assert set(world.look()) == {"t1", OTHER}
    world.now = HOLD_TIME
    world.look()
    assert set(world.look()) == {"t2", OTHER}
    world.work(1, 100_000)
    world.now += HOLD_TIME - 1.0
    world.look()
    assert set(world.look()) == {"t2", OTHER}


def test_what_was_done_long_ago_keeps_no_place() -> None:
    world = Sums(places=1)
    world.work(1, 1000)
    world.work(2)
    world.look()
    world.now = 12 * HALF_LIFE
    world.work(2, 10)
    world.look()
    assert set(world.look()) == {"t2", OTHER}


def test_a_tenant_with_few_long_transactions_is_busy_too() -> None:
    world = Sums(places=1)
    world.work(1, 1000)
    world.work(2)
    world.look()
    world.now = HOLD_TIME
    world.work(2, 1)
    for _ in range(3):
        world.world.tenancy.counters[2].transaction_times.add(1.0)
    world.look()
    assert set(world.look()) == {"t2", OTHER}


def test_more_places_are_filled_and_fewer_emptied_at_once() -> None:
    world = Sums(places=1)
    for tenant in (1, 2, 3):
        world.work(tenant, tenant)
    world.look()
    world.sums.max_tenants = 3
    world.look()
    assert set(world.look()) == {"t1", "t2", "t3"}
    world.sums.max_tenants = 1
    world.look()
    assert world.transactions() == {"t3": 0, OTHER: 5}


def test_a_tenant_that_comes_back_goes_on_where_its_series_was() -> None:
    world = Sums(places=1)
    world.work(1, 10)
    world.work(2, 1)
    world.look()
    world.now += HOLD_TIME
    world.work(2, 15)
    world.look()
    world.work(1, 3)
    assert world.transactions() == {"t2": 0, OTHER: 19}
    world.now += HOLD_TIME
    world.work(1, 40)
    world.look()
    world.work(1, 6)
    assert world.transactions() == {"t1": 16, OTHER: 59}


def test_no_counter_ever_decreases_and_the_increases_add_up_to_what_happened() -> None:
    world = Sums(places=5)
    chance = random.Random(7)
    before: dict[tuple[str, str], int] = {}
    shown: dict[str, int] = defaultdict(int)
    done = 0
    for _ in range(300):
        for tenant in chance.sample(range(1, 21), 3):
            transactions = chance.randrange(20)
            world.work(tenant, transactions)
            done += transactions
        world.now += chance.choice([1.0, 100.0])
        world.sums.max_tenants = chance.choice([4, 5, 5, 5, 6])
        world.world.tenancy.forget_cold(1e6, 60.0)
        now = counters_of(world.look())
        assert all(count >= before.get(series, 0) for series, count in now.items())
        for (label, name), count in now.items():
            if name == "transactions":
                shown[label] = count
        before |= now
    assert len(shown) > 6, "no place has changed hands"
    assert sum(shown.values()) == done


def test_made_up_errors_of_many_tenants_stay_few_series() -> None:
    world = Sums(places=0)
    for tenant in range(1, 51):
        world.work(tenant)
        for number in range(60):
            world.world.tenancy.counters[tenant].count_error(f"{tenant:02}{number:03}")
    first = world.look()[OTHER].errors
    assert len(first) == MAX_OTHER_ERRORS + 1
    assert sum(first.values()) == 50 * 61
    world.work(51)
    world.world.tenancy.counters[51].count_error("ZZZZZ")
    second = world.look()[OTHER].errors
    assert all(second[sqlstate] >= count for sqlstate, count in first.items())


def test_a_tenant_with_another_ones_old_name_gets_a_name_of_its_own() -> None:
    world = Sums(places=2)
    world.work(1)
    world.look()
    world.work(2)
    world.world.tenancy.slugs[2] = "t1"
    assert set(world.look()) == {"t1", "t1#2"}


def test_summing_up_pauses_after_every_few_tenants() -> None:
    world = Sums(places=10)
    for tenant in range(1, 1001):
        world.work(tenant)
    world.look()
    assert world.pauses == 1000 // TENANTS_PER_SLICE


async def test_two_scrapes_at_once_say_the_same() -> None:
    world = MetricsWorld(max_tenants=3)
    for tenant in range(1, 500):
        world.add_tenant(tenant)
    texts = await asyncio.gather(world.text(), world.text())
    wanted = re.compile(r"^pgtenant_transactions_total.*$", re.MULTILINE)
    assert wanted.findall(texts[0]) == wanted.findall(texts[1]) != []


async def test_a_family_without_samples_still_has_its_heading() -> None:
    text = await MetricsWorld().text()
    assert "# TYPE pgtenant_errors_total counter" in text


def test_handing_on_places_pauses_after_every_few() -> None:
    world = Sums(places=100)
    for tenant in range(1, 201):
        world.work(tenant)
    world.look()
    world.now += HOLD_TIME
    for tenant in range(101, 201):
        world.work(tenant)
    world.pauses = 0
    world.look()
    assert world.pauses == 200 // TENANTS_PER_SLICE + 100 // PLACES_PER_SLICE
    assert set(world.look()) == {OTHER} | {f"t{tenant}" for tenant in range(101, 201)}
