"""The results as JSON, for programs and for comparison with later runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.model import PGBOUNCER, PGTENANT, BenchError, Outcome, Reading
from bench.options import MIN_ROUNDS, Options
from bench.stats import CellResult, Metric, Spread, Verdict, cpu_of, rate_of

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One run of the measurements: what, where, with which programs, and what came of it.

    `ways` has for each way to the server what it said of itself; times are ISO 8601 with zone.
    """

    started: str
    finished: str
    interrupted: bool
    options: Options
    machine: Mapping[str, str]
    programs: Mapping[str, str]
    ways: Mapping[str, Mapping[str, str]]
    absent: Mapping[str, BenchError]
    results: Sequence[CellResult]
    load: float | None = None

    def cautions(self) -> list[str]:
        """Why the verdicts of this run settle nothing; empty when they do."""
        found = []
        if self.interrupted:
            found.append("the run was interrupted")
        if self.options.rounds < MIN_ROUNDS:
            found.append(f"{self.options.rounds} rounds are too few to judge by, at least {MIN_ROUNDS} are needed")
        ours = self.ways.get(PGTENANT)
        if ours is None:
            found.append("pgtenant was not measured")
        elif ours.get("relay") != "compiled":
            found.append(f"the relay was {ours.get('relay', 'unknown')}: the goals are set for the compiled one")
        elif ours.get("source_matches") == "false":
            found.append("the compiled modules are not of the source beside them: reinstall")
        if PGBOUNCER not in self.ways:
            found.append("PgBouncer was not measured: there is nothing to compare with")
        if self.load is not None:
            found.append(f"other programs kept the machine busy at the start (load {self.load:.1f})")
        return found

    def reaches_all_goals(self) -> bool:
        """Whether every cell that has a goal was measured and met it."""
        verdicts = [verdict for result in self.results for _, verdict in result.verdicts()]
        return all(verdict is Verdict.MET for verdict in verdicts)

    def to_json(self) -> dict[str, Any]:
        cautions = self.cautions()
        return {
            "format": FORMAT,
            "started": self.started,
            "finished": self.finished,
            "interrupted": self.interrupted,
            "conclusive": not cautions,
            "cautions": cautions,
            "options": _plain_options(self.options),
            "machine": dict(self.machine),
            "programs": dict(self.programs),
            "ways": {
                **{way: {"measured": True, **facts} for way, facts in self.ways.items()},
                **{way: _absence(error) for way, error in self.absent.items()},
            },
            "cells": [_cell(result) for result in self.results],
        }

    def write(self, path: Path) -> None:
        """Write the JSON to a file; its directory is made when it is not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")


def _absence(error: BenchError) -> dict[str, Any]:
    return {"measured": False, "reason": error.message, "hint": error.hint}


def _plain_options(options: Options) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in options.__dataclass_fields__}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _cell(result: CellResult) -> dict[str, Any]:
    return {
        "name": result.cell.name,
        "scenario": str(result.cell.scenario),
        "clients": result.cell.clients,
        "rate_unit": f"{result.cell.unit}s per second",
        "cpu_unit": f"seconds per {result.cell.cpu_unit}",
        "rounds": {way: [_outcome(outcome) for outcome in outcomes] for way, outcomes in result.outcomes.items()},
        "ratios_to_pgbouncer": {"rate": _spread(result.ratios(rate_of)), "cpu": _spread(result.ratios(cpu_of))},
        "rate_to_direct": _spread(result.ratios_to_direct()),
        "cpu_to_simple": _spread(result.ratios_to_simple()),
        "goals": [
            {
                "metric": str(goal.metric),
                "goal": goal.goal,
                "limit": goal.limit,
                "median": _middle(result, goal.metric),
                "verdict": str(verdict),
            }
            for goal, verdict in result.verdicts()
        ],
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    if not isinstance(outcome, Reading):
        return {"missing": outcome.reason}
    values = {
        "rate": outcome.rate,
        "cpu": outcome.cpu,
        "base_bytes": outcome.base,
        "bytes_per_client": outcome.per_client,
    }
    return {name: value for name, value in values.items() if value is not None}


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None:
        return None
    return {"min": spread.low, "median": spread.middle, "max": spread.high, "rounds": list(spread.values)}


def _middle(result: CellResult, metric: Metric) -> float | None:
    spread = result.judged(metric)
    return None if spread is None else spread.middle
