from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.model import DIRECT, PGBOUNCER, PGTENANT, BenchError, Cell, Missing, Outcome, Reading, Scenario
from bench.options import Options, parse_counts, parse_scenarios, parse_ways
from bench.pgbouncer import find_pgbouncer, parse_version
from bench.record import Record
from bench.report import show
from bench.stats import CellResult

SIMPLE = Cell(Scenario.SIMPLE, 16, "transaction", "transaction")
PREPARED = Cell(Scenario.PREPARED, 16, "transaction", "transaction")
IDLE = Cell(Scenario.IDLE, 2000, "client", "client")
COMPILED = {"version": "pgtenant 1.0 (relay compiled)", "relay": "compiled", "source_matches": "true"}


def record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "started": "2030-01-01T00:00:00+00:00",
        "finished": "2030-01-01T00:10:00+00:00",
        "interrupted": False,
        "options": Options(),
        "machine": {"system": "Linux", "cores": "4"},
        "programs": {"postgres": "postgres (PostgreSQL) 18.0"},
        "ways": {DIRECT: {}, PGBOUNCER: {"version": "PgBouncer 1.25.2"}, PGTENANT: COMPILED},
        "absent": {},
        "results": [_simple(), _prepared(), _idle()],
    }
    return Record(**{**fields, **changes})


def _simple() -> CellResult:
    ours: list[Outcome] = [Reading(rate=19_000, cpu=21e-6)] * 5
    theirs: list[Outcome] = [Reading(rate=20_000, cpu=20e-6)] * 5
    return CellResult(SIMPLE, {DIRECT: [Reading(rate=40_000)] * 5, PGBOUNCER: theirs, PGTENANT: ours})


def _prepared() -> CellResult:
    lacking: list[Outcome] = [Missing("it is too old")] * 5
    return CellResult(PREPARED, {DIRECT: [], PGBOUNCER: lacking, PGTENANT: [Reading(rate=1.0, cpu=1.0)] * 5})


def _idle() -> CellResult:
    return CellResult(IDLE, {PGTENANT: [Reading(base=40e6, per_client=3_000.0)]})


def shown(subject: Record) -> str:
    output = io.StringIO()
    show(subject, Console(file=output, width=160))
    return output.getvalue()


def test_tables_give_medians_ratios_and_verdicts() -> None:
    text = shown(record())
    assert "40,000" in text
    assert "0.95 / 0.95 / 0.95" in text
    assert "1.05 / 1.05 / 1.05" in text
    assert "3,000" in text
    assert "met" in text
    assert "settles nothing" not in text


def test_what_was_not_measured_is_named_with_its_reason() -> None:
    assert "prepared c=16, PgBouncer: not measured. it is too old." in shown(record())


def test_a_missing_pgbouncer_is_never_a_pass() -> None:
    absent = BenchError("PgBouncer is not installed", "apt install pgbouncer")
    result = CellResult(SIMPLE, {PGBOUNCER: [Missing(absent.message)], PGTENANT: [Reading(rate=1.0, cpu=1.0)] * 5})
    subject = record(ways={PGTENANT: COMPILED}, absent={PGBOUNCER: absent}, results=[result])
    text = shown(subject)
    assert "PgBouncer: not measured. PgBouncer is not installed. Hint: apt install pgbouncer." in text
    assert not subject.reaches_all_goals()
    assert subject.to_json()["conclusive"] is False


@pytest.mark.parametrize(
    ("changes", "caution"),
    [
        ({"interrupted": True}, "interrupted"),
        ({"options": Options(rounds=3)}, "3 rounds are too few"),
        ({"ways": {PGBOUNCER: {}, PGTENANT: {"relay": "interpreted"}}}, "the relay was interpreted"),
        ({"ways": {PGBOUNCER: {}}}, "pgtenant was not measured"),
        ({"load": 3.0}, "load 3.0"),
    ],
)
def test_a_run_says_why_it_settles_nothing(changes: dict[str, Any], caution: str) -> None:
    subject = record(**changes)
    assert any(caution in line for line in subject.cautions())
    assert caution in shown(subject)


def test_the_file_holds_every_round_and_every_goal(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    record().write(path)
    written = json.loads(path.read_text())
    simple = written["cells"][0]
    assert written["conclusive"] is True
    assert len(simple["rounds"][PGTENANT]) == 5
    assert simple["ratios_to_pgbouncer"]["rate"]["median"] == pytest.approx(0.95)
    assert [goal["verdict"] for goal in simple["goals"]] == ["met", "met"]
    assert written["cells"][1]["rounds"][PGBOUNCER][0] == {"missing": "it is too old"}


def test_lists_on_the_command_line_are_read() -> None:
    assert parse_scenarios("copy, simple") == (Scenario.SIMPLE, Scenario.COPY_OUT, Scenario.COPY_IN)
    assert parse_ways("pgtenant,direct") == (DIRECT, PGTENANT)
    assert parse_counts("64,1,1") == (1, 64)


@pytest.mark.parametrize(
    ("parse", "text"), [(parse_scenarios, "fast"), (parse_ways, "odyssey"), (parse_counts, "0"), (parse_counts, "")]
)
def test_a_wrong_list_is_refused_with_a_hint(parse: Any, text: str) -> None:
    with pytest.raises(BenchError) as refusal:
        parse(text)
    assert refusal.value.hint


def test_the_version_of_pgbouncer_is_read() -> None:
    assert parse_version("PgBouncer 1.25.2\nlibevent 2.1.12-stable") == (1, 25)
    with pytest.raises(BenchError, match="no PgBouncer"):
        parse_version("bash 5.2")


def test_a_pgbouncer_that_is_not_there_comes_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BenchError) as refusal:
        find_pgbouncer(tmp_path / "pgbouncer")
    assert refusal.value.hint
