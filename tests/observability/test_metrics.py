"""Metrics: bounded, monotonic, documented, and rendered without holding up the loop."""

from __future__ import annotations

import asyncio
import re
import time

from harness.metricsworld import MetricsWorld, busy_metrics
from harness.references import ROOT, metrics_page
from prometheus_client.parser import text_string_to_metric_families


def value(text: str, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"{sample} is not there"
    return float(found[1])


def test_the_page_of_metrics_is_in_step_with_the_code() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page(busy_metrics().families())


async def test_the_text_is_what_prometheus_parses_with_each_family_once() -> None:
    world = MetricsWorld()
    for number in range(1, 100):
        world.add_tenant(number)
    text = await world.text()
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {"pgtenant_clients", "pgtenant_transaction_seconds", "pgtenant_build_info"} <= set(names)


async def test_ten_thousand_tenants_have_a_bounded_number_of_series() -> None:
    world = MetricsWorld(max_tenants=50)
    for number in range(1, 10_001):
        world.add_tenant(number)
    text = await world.text()
    labels = set(re.findall(r'tenant="([^"]*)"', text))
    assert len(labels) == 51
    assert value(text, 'pgtenant_transactions_total{tenant="_other"}') == 10_000 - 50


async def test_counters_never_decrease_when_tenants_come_and_go_cold() -> None:
    world = MetricsWorld(max_tenants=2)
    before: dict[str, float] = {}
    for number in range(1, 7):
        world.add_tenant(number, transactions=number)
        world.tenancy.forget_cold(1e6, 60.0)
        text = await world.text()
        now = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("pgtenant_transactions_total")
        }
        assert all(now[series] >= count for series, count in before.items())
        before = now
    assert sum(before.values()) == 1 + 2 + 3 + 4 + 5 + 6


async def test_a_renamed_tenants_successor_does_not_take_over_its_series() -> None:
    world = MetricsWorld()
    world.add_tenant(1, transactions=5)
    await world.text()
    world.add_tenant(2, transactions=3)
    world.tenancy.slugs[2] = "t1"
    text = await world.text()
    assert value(text, 'pgtenant_transactions_total{tenant="t1"}') == 5
    assert value(text, 'pgtenant_transactions_total{tenant="t1#2"}') == 3


async def test_rendering_gives_the_loop_its_turn() -> None:
    world = MetricsWorld()
    for number in range(1, 10_001):
        world.add_tenant(number)
    gaps: list[float] = []
    done = asyncio.Event()

    async def watch() -> None:
        last = time.thread_time()
        while not done.is_set():
            await asyncio.sleep(0)
            now = time.thread_time()
            gaps.append(now - last)
            last = now

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    text = await world.text()
    done.set()
    await watcher
    assert len(text) > 200_000
    # Processor time, which others on the machine do not lengthen; a collection of garbage may fall into any turn.
    assert len(gaps) > 200
    assert sorted(gaps)[len(gaps) * 99 // 100] < 0.005


async def test_histogram_buckets_are_cumulative_and_end_with_all() -> None:
    world = MetricsWorld()
    world.add_tenant(1)
    world.ledger.tenants[1].counters.waits.add(0.5)
    text = await world.text()
    counts = [float(n) for n in re.findall(r'pgtenant_queue_wait_seconds_bucket\{le="[^"]*",tenant="t1"\} (\S+)', text)]
    assert counts == sorted(counts)
    assert counts[-1] == 2 == value(text, 'pgtenant_queue_wait_seconds_count{tenant="t1"}')
