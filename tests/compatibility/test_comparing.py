"""What the comparison of drivers calls the same, explained, different, and what it does with programs that hang."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from drivers.catalogue import DRIVERS
from drivers.comparing import compare
from drivers.explanations import EXPLANATIONS, Explanation
from drivers.installing import TREE
from drivers.matrix import Matrix
from drivers.model import Cell, Scenario, Transcript, Verdict, Way
from drivers.playing import Player, Stage
from drivers.report import markdown

DRIVER = DRIVERS[0]
MEANT = Explanation("meant", "as it should be", (Scenario.NAMED,), "b*", r"2", r"two.*", (Way.TRANSACTION,))
PAGE = TREE / "docs" / "compatibility.md"


def one(*steps: tuple[str, str], worker: int = 0, backends: int | None = None) -> list[Transcript]:
    return [Transcript(worker, list(steps), backends=backends)]


def judged(direct: list[Transcript], proxied: list[Transcript], way: Way = Way.TRANSACTION) -> Cell:
    return compare(DRIVER, Scenario.NAMED, way, direct, proxied, (MEANT,))


def test_equal_transcripts_are_the_same() -> None:
    assert judged(one(("a", "1"), ("b", "2")), one(("a", "1"), ("b", "2"))).verdict is Verdict.SAME


@pytest.mark.parametrize(
    ("proxied", "way", "verdict"),
    [
        (one(("a", "1"), ("b", "two")), Way.TRANSACTION, Verdict.EXPLAINED),
        (one(("a", "1"), ("b", "three")), Way.TRANSACTION, Verdict.DIFFERENT),
        (one(("a", "1"), ("b", "not two")), Way.TRANSACTION, Verdict.DIFFERENT),
        (one(("a", "1"), ("b", "two")), Way.SESSION, Verdict.DIFFERENT),
        (one(("a", "2"), ("b", "two")), Way.TRANSACTION, Verdict.DIFFERENT),
        (one(("a", "1")), Way.TRANSACTION, Verdict.DIFFERENT),
        (one(("a", "1"), ("b", "2"), ("ended by", "no answer")), Way.TRANSACTION, Verdict.DIFFERENT),
        ([], Way.TRANSACTION, Verdict.DIFFERENT),
        (one(("a", "1"), ("b", "2"), worker=1), Way.TRANSACTION, Verdict.DIFFERENT),
    ],
)
def test_each_difference_needs_an_explanation(proxied: list[Transcript], way: Way, verdict: Verdict) -> None:
    assert judged(one(("a", "1"), ("b", "2")), proxied, way).verdict is verdict


def test_an_explanation_is_of_what_is_observed_directly_too() -> None:
    assert judged(one(("b", "3")), one(("b", "two"))).verdict is Verdict.DIFFERENT
    assert judged([], one(("b", "two"))).verdict is Verdict.DIFFERENT


@pytest.mark.parametrize("explanation", EXPLANATIONS, ids=lambda explanation: explanation.key)
def test_no_explanation_takes_any_text(explanation: Explanation) -> None:
    wrong = ("", "anything", "no error", "XX000", "failed 57014", "[]", "[(7,)]", "['worker 2']", "n/a: it has none")
    for pattern in (explanation.direct, explanation.proxied):
        assert [text for text in wrong if re.fullmatch(pattern, text, re.DOTALL)] == []


def test_a_direct_run_that_failed_proves_nothing() -> None:
    broken = one(("a", "1"), ("ended by", "ValueError"))
    assert judged(broken, broken).verdict is Verdict.DIFFERENT


def test_what_a_driver_lacks_is_not_applicable() -> None:
    cell = judged([Transcript(0, na="it has none")], [Transcript(0, na="it has none")])
    assert (cell.verdict, cell.reason) == (Verdict.NOT_APPLICABLE, "it has none")
    assert judged([Transcript(0, na="it has none")], one(("a", "1"))).verdict is not Verdict.SAME


def test_in_transaction_mode_a_connection_must_be_seen_on_several_backends() -> None:
    same = one(("a", "1"), backends=1)
    assert judged(same, one(("a", "1"), backends=3)).verdict is Verdict.SAME
    assert judged(same, one(("a", "1"), backends=1)).verdict is Verdict.DIFFERENT
    assert judged(same, one(("a", "1"), backends=1), Way.SESSION).verdict is Verdict.SAME
    assert judged(same, one(("a", "1"), backends=2), Way.SESSION).verdict is Verdict.DIFFERENT


STUCK = """
import json, os, sys, time
for name in os.environ["DRIVERS_SCENARIOS"].split(","):
    print(json.dumps({"begin": name, "at": time.time()}), flush=True)
    if name == "named":
        time.sleep(60)
    if name == "copy":
        sys.exit("gone")
    print(json.dumps({"scenario": name, "worker": 0, "steps": [["step", "fine"]]}), flush=True)
    print(json.dumps({"end": name}), flush=True)
"""


def test_a_program_that_hangs_or_ends_costs_only_that_scenario(tmp_path: Path) -> None:
    wanted = [Scenario.TYPES, Scenario.NAMED, Scenario.COPY, Scenario.TLS]
    with Stage() as stage:
        player = Player(stage, [sys.executable, "-c", STUCK], {}, tmp_path, patience=1.0)
        found = player.play(wanted, 1)
    assert [scenario for _, scenario in player.begins] == wanted
    assert player.begins == sorted(player.begins)
    assert [found[scenario][-1].steps for scenario in (Scenario.TYPES, Scenario.TLS)] == [[("step", "fine")]] * 2
    assert found[Scenario.NAMED][-1].steps == [("ended by", "no answer within 1 s")]
    assert "gone" in found[Scenario.COPY][-1].steps[0][1]


def test_a_program_that_does_not_start_fails_all_scenarios(tmp_path: Path) -> None:
    with Stage() as stage:
        found = Player(stage, [sys.executable, "-c", "raise SystemExit('no such driver')"], {}, tmp_path).play(
            [Scenario.TYPES, Scenario.TLS], 1
        )
    assert all("no such driver" in found[scenario][0].steps[0][1] for scenario in (Scenario.TYPES, Scenario.TLS))


def test_the_page_tells_of_every_cell() -> None:
    cells = [
        Cell(driver.name, scenario, way, Verdict.SAME)
        for driver in DRIVERS[1:]
        for scenario in Scenario
        for way in (Way.TRANSACTION, Way.SESSION)
    ]
    page = markdown(Matrix(cells), "a server")
    assert page.count("| not played |") > 0
    assert page.count("| same ") == len(cells)


def test_the_page_in_the_tree_has_every_driver_scenario_and_explanation() -> None:
    page = PAGE.read_text()
    for name in (*(driver.title for driver in DRIVERS), *Scenario):
        assert page.count(f"| {name}") >= 1, name
    assert set(re.findall(r"^### (\w+)$", page, re.MULTILINE)) <= {explanation.key for explanation in EXPLANATIONS}
    assert "Not explained" not in page
