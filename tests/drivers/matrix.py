"""Plays all drivers on all ways, one driver after the other, its ways at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivers.catalogue import DriverSpec
from drivers.comparing import compare
from drivers.installing import Missing, Ready, Workshop
from drivers.model import Cell, Pin, Scenario, Verdict, Way
from drivers.pins import Cause, unexplained, without_effect
from drivers.playing import PATIENCE, Player, Stage, Transcripts
from drivers.world import World

WORKERS = 2
SILENT = ("PG", "DRIVERS_", "PYTHON", "NODE_", "JAVA_", "JDK_")


@dataclass(slots=True)
class Matrix:
    """All cells, the versions of the drivers, why some are missing, and what was wrong with the proxy itself."""

    cells: list[Cell] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    interrupted: bool = False

    @property
    def unexplained(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.verdict is Verdict.DIFFERENT]

    @property
    def good(self) -> bool:
        """Whether every cell and every pin is the same or explained.

        What could not be played does not count against it, unless nothing at all was played.
        """
        bad = self.unexplained or self.complaints or self.unexplained_pins or self.idle_causes
        return self.played and not bad and not self.interrupted

    @property
    def played(self) -> bool:
        """Whether anything was compared."""
        return any(cell.verdict not in (Verdict.SKIPPED, Verdict.NOT_APPLICABLE) for cell in self.cells)

    @property
    def unexplained_pins(self) -> list[Pin]:
        return unexplained(self.pins)

    @property
    def idle_causes(self) -> list[Cause]:
        return [] if self.interrupted else without_effect(self.pins, self.cells)

    def cell(self, driver: str, scenario: Scenario, way: Way) -> Cell | None:
        return next(
            (c for c in self.cells if c.driver == driver and c.scenario is scenario and c.way is way),
            None,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "good": self.good,
            "interrupted": self.interrupted,
            "versions": self.versions,
            "missing": self.missing,
            "complaints": self.complaints,
            "pins": [
                {"driver": pin.driver, "scenario": pin.scenario, "way": pin.way, "reason": pin.reason}
                for pin in self.pins
            ],
            "unexplained_pins": [str(pin) for pin in self.unexplained_pins],
            "cells": [
                {
                    "driver": cell.driver,
                    "scenario": cell.scenario,
                    "way": cell.way,
                    "verdict": cell.verdict,
                    "reason": cell.reason,
                    "backends": cell.backends,
                    "differences": [
                        {"step": d.step, "direct": d.direct, "proxied": d.proxied, "explanation": d.note}
                        for d in cell.differences
                    ],
                }
                for cell in self.cells
            ],
        }


def play(
    world: World,
    workshop: Workshop,
    drivers: Sequence[DriverSpec],
    scenarios: Sequence[Scenario],
    ways: Sequence[Way],
    progress: Callable[[str], None],
    patience: float = PATIENCE,
) -> Matrix:
    """Fill the matrix; an interruption keeps what is complete."""
    matrix = Matrix()
    for number, driver in enumerate(drivers, 1):
        try:
            ready = workshop.ready(driver)
        except Missing as why:
            matrix.missing[driver.name] = str(why)
            cells = [
                Cell(driver.name, scenario, way, Verdict.SKIPPED, str(why)) for scenario in scenarios for way in ways
            ]
        else:
            matrix.versions[driver.name] = ready.version
            try:
                cells, pins = _driver(world, ready, driver, scenarios, ways, patience)
                matrix.pins.extend(pins)
            except KeyboardInterrupt:
                matrix.interrupted = True
                break
        matrix.cells.extend(cells)
        progress(f"{number:2}/{len(drivers)}  {driver.title}: {summary(cells)}")
        complaints = world.complaints()
        matrix.complaints.extend(complaints)
        if not world.proxy.running:
            break
    return matrix


def summary(cells: Sequence[Cell]) -> str:
    """The verdicts of some cells, counted."""
    counts = [(verdict, sum(cell.verdict is verdict for cell in cells)) for verdict in Verdict]
    return ", ".join(f"{count} {verdict}" for verdict, count in counts if count)


def _driver(
    world: World,
    ready: Ready,
    driver: DriverSpec,
    scenarios: Sequence[Scenario],
    ways: Sequence[Way],
    patience: float,
) -> tuple[list[Cell], list[Pin]]:
    def on(way: Way) -> tuple[Transcripts, set[tuple[Scenario | None, str]]]:
        name = f"{driver.name}_{way}".replace("-", "_").replace(".", "_")
        with world.doors(way, name) as doors:
            env = {**_environment(), **ready.env, **doors.env()}
            player = Player(stage, ready.command, env, Path.cwd(), patience)
            transcripts = player.play(scenarios, WORKERS)
        return transcripts, world.pins(doors, player.begins)

    with ThreadPoolExecutor(len(Way)) as threads, Stage() as stage:
        found = dict(zip((Way.DIRECT, *ways), threads.map(on, (Way.DIRECT, *ways)), strict=True))
    direct, _ = found[Way.DIRECT]
    cells = [
        compare(driver, scenario, way, direct[scenario], found[way][0][scenario])
        for way in ways
        for scenario in scenarios
    ]
    pins = [Pin(driver.name, way, *pin) for way in ways for pin in sorted(found[way][1], key=str)]
    return cells, pins


def _environment() -> dict[str, str]:
    """The caller's environment without what would change how drivers behave."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SILENT)} | {"TZ": "UTC"}
