from __future__ import annotations

import pytest

from bench.model import PGBOUNCER, PGTENANT, Cell, Missing, Outcome, Reading, Scenario
from bench.runner import order_of_round
from bench.stats import CellResult, Goal, Metric, Spread, Verdict, cpu_of, goals_of, rate_of

SIMPLE = Cell(Scenario.SIMPLE, 16, "transaction", "transaction")


def results(ours: list[Outcome], theirs: list[Outcome], cell: Cell = SIMPLE) -> CellResult:
    return CellResult(cell, {PGTENANT: ours, PGBOUNCER: theirs})


def rates(*values: float) -> list[Outcome]:
    return [Reading(rate=value, cpu=1 / value) for value in values]


def verdict(result: CellResult, metric: Metric) -> Verdict:
    return next(found for goal, found in result.verdicts() if goal.metric is metric)


def test_ratios_are_formed_within_each_round() -> None:
    spread = results(rates(90, 220, 45), rates(100, 200, 50)).ratios(rate_of)
    assert spread is not None
    assert spread.values == pytest.approx((0.9, 1.1, 0.9))
    assert (spread.low, spread.middle, spread.high) == pytest.approx((0.9, 0.9, 1.1))


def test_a_round_without_either_reading_gives_no_ratio() -> None:
    spread = results([Reading(rate=1), Missing("lost"), Reading(rate=3)], rates(1, 2, 4)).ratios(rate_of)
    assert spread is not None
    assert spread.values == pytest.approx((1.0, 0.75))


def test_an_interrupted_round_gives_no_ratio() -> None:
    spread = results(rates(1), rates(1, 2)).ratios(rate_of)
    assert spread is not None
    assert len(spread.values) == 1


def test_processor_time_too_short_to_be_seen_gives_no_ratio() -> None:
    assert results([Reading(cpu=0.01)], [Reading(cpu=0.0)]).ratios(cpu_of) is None


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1.2, Verdict.MET),
        (0.95, Verdict.MET),
        (0.9, Verdict.BELOW_GOAL),
        (0.85, Verdict.BELOW_GOAL),
        (0.84, Verdict.NOT_DONE),
    ],
)
def test_throughput_is_judged_by_its_median(ratio: float, expected: Verdict) -> None:
    assert verdict(results(rates(ratio, 0.1, 9), rates(1, 1, 1)), Metric.THROUGHPUT) is expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.5, Verdict.MET),
        (1.1, Verdict.MET),
        (1.2, Verdict.BELOW_GOAL),
        (1.25, Verdict.BELOW_GOAL),
        (1.3, Verdict.NOT_DONE),
    ],
)
def test_processor_time_is_judged_by_its_median(ratio: float, expected: Verdict) -> None:
    assert verdict(results([Reading(cpu=ratio)], [Reading(cpu=1.0)]), Metric.CPU) is expected


def test_without_pgbouncer_nothing_is_passed() -> None:
    result = results(rates(100), [Missing("PgBouncer is not installed")])
    assert {found for _, found in result.verdicts()} == {Verdict.NOT_MEASURED}


def test_memory_is_judged_without_pgbouncer() -> None:
    cell = Cell(Scenario.IDLE, 2000, "client", "client")
    result = results([Reading(per_client=3_900)], [Missing("PgBouncer is not installed")], cell)
    assert verdict(result, Metric.MEMORY) is Verdict.MET


def test_a_goal_without_limit_is_never_worse_than_below() -> None:
    goal = Goal(Metric.CPU, 0.6, None, more_is_better=False)
    assert goal.judge(Spread((9.0,))) is Verdict.BELOW_GOAL


def test_connection_set_up_has_no_goal() -> None:
    assert goals_of(Cell(Scenario.CONNECT, 1, "connection", "connection")) == ()


@pytest.mark.parametrize(("cpu", "expected"), [(1.3, Verdict.MET), (1.31, Verdict.BELOW_GOAL)])
def test_prepared_cell_is_judged_by_the_simple_one_where_pgbouncer_cannot_prepare(
    cpu: float, expected: Verdict
) -> None:
    cell = Cell(Scenario.PREPARED, 16, "transaction", "transaction")
    lacking: list[Outcome] = [Missing("too old")]
    simple = results([Reading(rate=1, cpu=1.0)], [Reading(rate=1, cpu=1.0)])
    result = CellResult(cell, {PGTENANT: [Reading(rate=1, cpu=cpu)], PGBOUNCER: lacking}, simple)
    assert [found for _, found in result.verdicts()] == [expected]
    alone = CellResult(cell, result.outcomes)
    assert [found for _, found in alone.verdicts()] == [Verdict.NOT_MEASURED], "never passed without its measure"
    compared = CellResult(cell, {PGTENANT: [Reading(rate=1, cpu=1.2)], PGBOUNCER: [Reading(rate=1, cpu=1.0)]}, simple)
    assert [found for _, found in compared.verdicts()] == [Verdict.MET, Verdict.BELOW_GOAL]


def test_every_way_stands_at_every_place_of_a_round() -> None:
    orders = [order_of_round(["direct", "pgbouncer", "pgtenant"], number) for number in range(6)]
    for place in range(3):
        assert {order[place] for order in orders} == {"direct", "pgbouncer", "pgtenant"}
    assert all(sorted(order) == ["direct", "pgbouncer", "pgtenant"] for order in orders)
