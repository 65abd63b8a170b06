"""Which pins of a run of the drivers are explained, and when a run counts as good."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from drivers.catalogue import DRIVERS, SCRIPTS
from drivers.matrix import Matrix
from drivers.model import Cell, Pin, Scenario, Verdict, Way
from drivers.pins import CAUSES, Cause, pins_in, unexplained, without_effect

MEANT = Cause("temporary", Scenario.SETTINGS, "create temp table mine", ("psycopg*",))
BEGINS = [(100.0, Scenario.COPY), (200.0, Scenario.SETTINGS)]


def logged(event: str, at: float, address: str = "1.2.3.4:5", tenant: str = "mine", **fields: str) -> str:
    stamp = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"event": event, "timestamp": stamp, "tenant": tenant, "address": address, **fields}) + "\n"


def test_a_pin_belongs_to_the_scenario_in_which_its_client_has_connected() -> None:
    log = (
        "no JSON at all\n17\n"
        + logged("client connected", 150)
        + logged("client pinned", 201, reason="listen, temporary")
        + logged("client pinned", 150, tenant="another", reason="role")
        + logged("client disconnected", 202)
        # The line that says when this one connected was left out.
        + logged("client pinned", 203, reason="role")
        + logged("client connected", 99, "1.2.3.4:6")
        + logged("client pinned", 160, "1.2.3.4:6", reason="load")
    )
    assert pins_in(log, ["mine"], BEGINS) == {
        (Scenario.COPY, "listen"),
        (Scenario.COPY, "temporary"),
        (Scenario.SETTINGS, "role"),
        (None, "load"),
    }


@pytest.mark.parametrize(
    ("pin", "explained"),
    [
        (Pin("psycopg", Way.TRANSACTION, Scenario.SETTINGS, "temporary"), True),
        (Pin("psycopg2", Way.TRANSACTION, Scenario.SETTINGS, "temporary"), True),
        (Pin("asyncpg", Way.TRANSACTION, Scenario.SETTINGS, "temporary"), False),
        (Pin("psycopg", Way.SESSION, Scenario.SETTINGS, "temporary"), False),
        (Pin("psycopg", Way.TRANSACTION, Scenario.COPY, "temporary"), False),
        (Pin("psycopg", Way.TRANSACTION, None, "temporary"), False),
        (Pin("psycopg", Way.TRANSACTION, Scenario.SETTINGS, "copy"), False),
    ],
)
def test_each_pin_needs_a_line_that_explains_it(pin: Pin, explained: bool) -> None:
    assert unexplained([pin], [MEANT]) == ([] if explained else [pin])


def cell(scenario: Scenario, verdict: Verdict = Verdict.SAME, driver: str = "psycopg") -> Cell:
    return Cell(driver, scenario, Way.TRANSACTION, verdict)


def test_a_line_that_was_played_and_has_pinned_nobody_is_told() -> None:
    pin = Pin("psycopg", Way.TRANSACTION, Scenario.SETTINGS, "temporary")
    played = [cell(Scenario.SETTINGS)]
    assert without_effect([pin], played, [MEANT]) == []
    assert without_effect([], played, [MEANT]) == [MEANT]
    assert without_effect([], [cell(Scenario.COPY), cell(Scenario.SETTINGS, driver="asyncpg")], [MEANT]) == []
    assert without_effect([], [cell(Scenario.SETTINGS, Verdict.SKIPPED)], [MEANT]) == []


def test_every_line_that_explains_a_pin_is_in_a_script_and_for_some_driver() -> None:
    scripts = [path.read_text() for path in SCRIPTS.iterdir() if path.is_file()]
    assert CAUSES
    for cause in CAUSES:
        assert any(cause.line in script for script in scripts), cause
        assert any(cause.covers(driver.name, cause.scenario) for driver in DRIVERS), cause


@pytest.mark.parametrize(
    ("matrix", "good"),
    [
        (Matrix(), False),
        (Matrix([cell(Scenario.TYPES, Verdict.SKIPPED)], missing={"psycopg": "it cannot be had"}), False),
        (Matrix([cell(Scenario.TYPES, Verdict.NOT_APPLICABLE)]), False),
        (Matrix([cell(Scenario.TYPES)]), True),
        (Matrix([cell(Scenario.TYPES), cell(Scenario.TYPES, Verdict.SKIPPED, "psqlpy")]), True),
        (Matrix([cell(Scenario.TYPES), cell(Scenario.NAMED, Verdict.DIFFERENT)]), False),
        (Matrix([cell(Scenario.TYPES)], pins=[Pin("psycopg", Way.TRANSACTION, Scenario.TYPES, "copy")]), False),
        (Matrix([cell(Scenario.TYPES)], complaints=["an internal error"]), False),
        (Matrix([cell(Scenario.TYPES)], interrupted=True), False),
    ],
)
def test_a_run_is_good_when_something_was_played_and_all_of_it_is_explained(matrix: Matrix, good: bool) -> None:
    assert matrix.good is good
