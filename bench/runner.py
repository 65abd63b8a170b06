"""Runs every cell through every way, round by round, so that what changes on the machine meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.model import DIRECT, BenchError, Cell, Missing, Outcome, Scenario, Stuck
from bench.stats import CellResult
from bench.targets import Target
from bench.workloads import Workload

Progress = Callable[[str], None]


def order_of_round(ways: Sequence[str], number: int) -> list[str]:
    """Rotate the ways by one each round, and reverse every other round: none always follows the same other."""
    shift = number % len(ways)
    rotated = [*ways[shift:], *ways[:shift]]
    return rotated[::-1] if number % 2 else rotated


class Runner:
    """Collects the outcomes; `results` is valid at any time, also after an interruption."""

    def __init__(
        self,
        workloads: Sequence[Workload],
        targets: Mapping[str, Target],
        absent: Mapping[str, BenchError],
        progress: Progress,
    ) -> None:
        self._workloads = workloads
        self._targets = targets
        self._progress = progress
        self._stuck: dict[tuple[Cell, str], Missing] = {}
        self.results: list[CellResult] = []
        simple: dict[int, CellResult] = {}
        for cell in [workload.cell for workload in workloads]:
            outcomes: dict[str, list[Outcome]] = {way: [] for way in targets}
            outcomes |= {way: [Missing(error.message)] for way, error in absent.items()}
            result = CellResult(cell, outcomes, simple.get(cell.clients))
            if cell.scenario is Scenario.SIMPLE:
                simple[cell.clients] = result
            self.results.append(result)

    def run(self, rounds: int) -> None:
        """Run so many rounds; a cell that fails is recorded as missing and the rest goes on.

        A cell that got stuck in one way is not tried there again.
        """
        for number in range(rounds):
            order = order_of_round(list(self._targets), number)
            for workload, result in zip(self._workloads, self.results, strict=True):
                if workload.rounds is not None and number >= workload.rounds:
                    continue
                for way in order:
                    if workload.proxies_only and way == DIRECT:
                        continue
                    self._progress(f"round {number + 1} of {rounds}: {workload.cell.name}, {way}")
                    result.outcomes[way].append(self._outcome(workload, self._targets[way]))

    def _outcome(self, workload: Workload, target: Target) -> Outcome:
        place = (workload.cell, target.name)
        if place in self._stuck:
            return self._stuck[place]
        reason = target.unfit_for(workload.cell)
        if reason is not None:
            return Missing(reason)
        try:
            return workload.run(target)
        except Stuck as error:
            return self._stuck.setdefault(place, Missing(error.message))
        except BenchError as error:
            return Missing(error.message)
