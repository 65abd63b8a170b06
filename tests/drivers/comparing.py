"""Compares what was observed through the proxy with what was observed directly."""

from __future__ import annotations

from collections.abc import Sequence

from drivers.catalogue import DriverSpec
from drivers.explanations import EXPLANATIONS, Explanation
from drivers.model import Cell, Difference, Scenario, Transcript, Verdict, Way

HOLDS = "the connection keeps its backend"


def compare(
    driver: DriverSpec,
    scenario: Scenario,
    way: Way,
    direct: Sequence[Transcript],
    proxied: Sequence[Transcript],
    explanations: Sequence[Explanation] = EXPLANATIONS,
) -> Cell:
    """One cell of the table."""
    reason = next((transcript.na for transcript in direct if transcript.na), None)
    if reason is not None and all(len(transcript.steps) == 0 for transcript in direct):
        return Cell(driver.name, scenario, way, Verdict.NOT_APPLICABLE, reason)
    differences: list[Difference] = []
    for worker in sorted({transcript.worker for transcript in (*direct, *proxied)}):
        differences.extend(_differences(_steps(direct, worker), _steps(proxied, worker)))
    seen = [transcript.backends for transcript in proxied if transcript.backends is not None]
    differences.extend(_moves(way, seen))
    explained = [_explained(difference, driver, scenario, way, explanations) for difference in differences]
    verdict = Verdict.SAME
    if explained:
        verdict = Verdict.EXPLAINED if all(difference.note for difference in explained) else Verdict.DIFFERENT
    if _broken(direct):
        verdict = Verdict.DIFFERENT
        explained.append(Difference("the direct run", _broken(direct), None))
    return Cell(driver.name, scenario, way, verdict, "", explained, max(seen, default=None))


def _steps(transcripts: Sequence[Transcript], worker: int) -> dict[str, str]:
    return {step: text for transcript in transcripts if transcript.worker == worker for step, text in transcript.steps}


def _differences(direct: dict[str, str], proxied: dict[str, str]) -> list[Difference]:
    steps = list(dict.fromkeys((*direct, *proxied)))
    return [
        Difference(step, direct.get(step), proxied.get(step)) for step in steps if direct.get(step) != proxied.get(step)
    ]


def _moves(way: Way, seen: Sequence[int]) -> list[Difference]:
    """In transaction mode a connection must be seen on several backends, or nothing was tested; else on one."""
    if not seen:
        return []
    if way is Way.TRANSACTION:
        return [] if max(seen) > 1 else [Difference("backends", "several", HOLDS)]
    return [] if max(seen) == 1 else [Difference("backends", HOLDS, f"{max(seen)} backends")]


def _explained(
    difference: Difference, driver: DriverSpec, scenario: Scenario, way: Way, explanations: Sequence[Explanation]
) -> Difference:
    for explanation in explanations:
        if explanation.covers(driver.name, scenario, way, difference):
            return Difference(difference.step, difference.direct, difference.proxied, explanation.key)
    return difference


def _broken(direct: Sequence[Transcript]) -> str | None:
    """What ended the direct run: then there is nothing to compare with."""
    return next((text for transcript in direct for step, text in transcript.steps if step == "ended by"), None)
