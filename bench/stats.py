"""Ratios of interleaved rounds, and what the goals say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from bench.model import DIRECT, PGBOUNCER, PGTENANT, Cell, Outcome, Reading, Scenario

IDLE_BYTES_PER_CLIENT = 4_000.0

Quantity = Callable[[Reading], float | None]


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of all rounds, in their order, and their extremes."""

    values: tuple[float, ...]

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def middle(self) -> float:
        return median(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


class Metric(StrEnum):
    """What a goal is set for."""

    THROUGHPUT = "throughput to PgBouncer"
    CPU = "processor time to PgBouncer"
    CPU_TO_SIMPLE = "processor time to the simple cell's"
    MEMORY = "bytes per idle client"


class Verdict(StrEnum):
    """What a median says of its goal."""

    MET = "met"
    BELOW_GOAL = "below goal"
    NOT_DONE = "not done"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and, where there is one, the limit beyond which the work is not done."""

    metric: Metric
    goal: float
    limit: float | None
    more_is_better: bool

    def judge(self, spread: Spread | None) -> Verdict:
        """Judge by the median; without a value nothing is passed."""
        if spread is None:
            return Verdict.NOT_MEASURED
        if self._reaches(spread.middle, self.goal):
            return Verdict.MET
        if self.limit is not None and not self._reaches(spread.middle, self.limit):
            return Verdict.NOT_DONE
        return Verdict.BELOW_GOAL

    def _reaches(self, value: float, mark: float) -> bool:
        return value >= mark if self.more_is_better else value <= mark

    def __str__(self) -> str:
        sign = ">=" if self.more_is_better else "<="
        if self.metric is Metric.MEMORY:
            return f"{sign} {self.goal:,.0f} B"
        of = " of simple" if self.metric is Metric.CPU_TO_SIMPLE else ""
        return f"{sign} {self.goal:.2f}{of}"


def goals_of(cell: Cell, *, compared: bool = True) -> tuple[Goal, ...]:
    """The goals of a cell; `compared` says whether there is anything of PgBouncer's to compare it with."""
    match cell.scenario:
        case Scenario.SIMPLE:
            return (
                Goal(Metric.THROUGHPUT, 0.95, 0.85, more_is_better=True),
                Goal(Metric.CPU, 1.1, 1.25, more_is_better=False),
            )
        case Scenario.COPY_OUT | Scenario.COPY_IN:
            return (Goal(Metric.CPU, 0.6, None, more_is_better=False),)
        case Scenario.IDLE:
            return (Goal(Metric.MEMORY, IDLE_BYTES_PER_CLIENT, None, more_is_better=False),)
        case Scenario.PREPARED if not compared:
            return (Goal(Metric.CPU_TO_SIMPLE, 1.3, None, more_is_better=False),)
        case Scenario.EXTENDED | Scenario.PREPARED:
            return (
                Goal(Metric.THROUGHPUT, 0.95, None, more_is_better=True),
                Goal(Metric.CPU, 1.1, None, more_is_better=False),
            )
        case Scenario.CONNECT:
            return ()


@dataclass(frozen=True, slots=True)
class CellResult:
    """A cell and its outcomes: for each way one per round, in the order of the rounds.

    `simple` is the simple cell with as many clients, if that was measured in the same rounds.
    """

    cell: Cell
    outcomes: dict[str, list[Outcome]]
    simple: CellResult | None = None

    def spread(self, way: str, quantity: Quantity) -> Spread | None:
        """The values of one quantity; None when no round has one."""
        found = [quantity(outcome) for outcome in self.outcomes.get(way, []) if isinstance(outcome, Reading)]
        return _spread(value for value in found if value is not None)

    def ratios(self, quantity: Quantity) -> Spread | None:
        """The ratio of pgtenant to PgBouncer of every round in which both have a value above zero."""
        return _ratios(self.outcomes.get(PGTENANT, []), self.outcomes.get(PGBOUNCER, []), quantity)

    def ratios_to_direct(self) -> Spread | None:
        """The throughput through pgtenant to that without a proxy, of every round."""
        return _ratios(self.outcomes.get(PGTENANT, []), self.outcomes.get(DIRECT, []), rate_of)

    def ratios_to_simple(self) -> Spread | None:
        """The processor time of pgtenant to that which the simple cell took, of every round."""
        if self.simple is None or self.cell.scenario not in (Scenario.EXTENDED, Scenario.PREPARED):
            return None
        return _ratios(self.outcomes.get(PGTENANT, []), self.simple.outcomes.get(PGTENANT, []), cpu_of)

    def judged(self, metric: Metric) -> Spread | None:
        """The values by which a goal of this metric is judged."""
        match metric:
            case Metric.THROUGHPUT:
                return self.ratios(rate_of)
            case Metric.CPU:
                return self.ratios(cpu_of)
            case Metric.CPU_TO_SIMPLE:
                return self.ratios_to_simple()
            case Metric.MEMORY:
                return self.spread(PGTENANT, per_client_of)

    def verdicts(self) -> Sequence[tuple[Goal, Verdict]]:
        """Every goal of the cell and what its median says."""
        goals = goals_of(self.cell, compared=self.ratios(cpu_of) is not None)
        return [(goal, goal.judge(self.judged(goal.metric))) for goal in goals]


def rate_of(reading: Reading) -> float | None:
    """Units per second."""
    return reading.rate


def cpu_of(reading: Reading) -> float | None:
    """Seconds of processor time."""
    return reading.cpu


def base_of(reading: Reading) -> float | None:
    """Bytes without clients."""
    return reading.base


def per_client_of(reading: Reading) -> float | None:
    """Bytes that each client adds."""
    return reading.per_client


def _spread(values: Iterable[float]) -> Spread | None:
    collected = tuple(values)
    return Spread(collected) if collected else None


def _ratios(ours: Sequence[Outcome], theirs: Sequence[Outcome], quantity: Quantity) -> Spread | None:
    pairs = zip(ours, theirs, strict=False)
    return _spread(ratio for one, other in pairs if (ratio := _ratio(one, other, quantity)) is not None)


def _ratio(ours: Outcome, theirs: Outcome, quantity: Quantity) -> float | None:
    if not isinstance(ours, Reading) or not isinstance(theirs, Reading):
        return None
    over, under = quantity(ours), quantity(theirs)
    return over / under if over is not None and under is not None and under > 0 else None
