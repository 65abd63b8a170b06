from __future__ import annotations

from collections.abc import Mapping

from bench.model import BenchError, Cell, Endpoint, Missing, Reading, Scenario, Stuck
from bench.runner import Runner
from bench.targets import Target


class Way:
    proxy_pid: int | None = None

    def __init__(self, name: str, unfit: str | None = None) -> None:
        self.name = name
        self.endpoint = Endpoint("127.0.0.1", 1, "user", "database", "password")
        self._unfit = unfit

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def unfit_for(self, _cell: Cell) -> str | None:
        return self._unfit

    def facts(self) -> Mapping[str, str]:
        return {}


class Work:
    def __init__(
        self, *, rounds: int | None = None, proxies_only: bool = False, fails: BenchError | None = None
    ) -> None:
        self.cell = Cell(Scenario.SIMPLE, 1, "transaction", "transaction")
        self.rounds = rounds
        self.proxies_only = proxies_only
        self.runs: list[str] = []
        self._fails = fails

    def run(self, target: Target) -> Reading:
        self.runs.append(target.name)
        if self._fails is not None and target.name == "pgtenant":
            raise self._fails
        return Reading(rate=1.0)


def run(work: Work, rounds: int = 3, unfit: str | None = None) -> Runner:
    ways: dict[str, Target] = {
        "direct": Way("direct"),
        "pgbouncer": Way("pgbouncer", unfit),
        "pgtenant": Way("pgtenant"),
    }
    runner = Runner([work], ways, {}, lambda _: None)
    runner.run(rounds)
    return runner


def test_each_round_runs_every_way_once() -> None:
    work = Work()
    runner = run(work)
    rounds = [work.runs[start : start + 3] for start in range(0, 9, 3)]
    assert all(sorted(one) == ["direct", "pgbouncer", "pgtenant"] for one in rounds)
    assert [len(outcomes) for outcomes in runner.results[0].outcomes.values()] == [3, 3, 3]


def test_a_failure_is_recorded_and_tried_again_in_the_next_round() -> None:
    work = Work(fails=BenchError("lost"))
    runner = run(work)
    assert runner.results[0].outcomes["pgtenant"] == [Missing("lost")] * 3
    assert work.runs.count("pgtenant") == 3
    assert work.runs.count("direct") == 3


def test_a_stuck_cell_is_not_tried_again() -> None:
    work = Work(fails=Stuck("too slow"))
    runner = run(work)
    assert runner.results[0].outcomes["pgtenant"] == [Missing("too slow")] * 3
    assert work.runs.count("pgtenant") == 1


def test_what_a_way_cannot_do_is_not_tried() -> None:
    work = Work()
    runner = run(work, unfit="it is too old")
    assert runner.results[0].outcomes["pgbouncer"] == [Missing("it is too old")] * 3
    assert "pgbouncer" not in work.runs


def test_work_for_proxies_leaves_out_the_direct_way_and_ends_after_its_rounds() -> None:
    work = Work(rounds=2, proxies_only=True)
    run(work)
    assert sorted(work.runs) == ["pgbouncer", "pgbouncer", "pgtenant", "pgtenant"]
