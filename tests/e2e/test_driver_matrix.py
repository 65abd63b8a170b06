"""A part of `make drivers`: what two drivers observe through the proxy is what they observe directly."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from drivers.catalogue import DRIVERS
from drivers.comparing import compare
from drivers.installing import Workshop
from drivers.model import Scenario, Verdict, Way
from drivers.playing import Player, Stage, Transcripts
from drivers.world import SEED, churning
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits

PATIENCE = 40.0
PLAYED = {
    "asyncpg": (Scenario.NAMED, Scenario.TRANSACTIONS, Scenario.SETTINGS),
    "psql": (Scenario.NAMED, Scenario.PIPELINE, Scenario.ERRORS, Scenario.CURSORS, Scenario.NOTIFY),
}


@pytest.mark.parametrize("name", PLAYED)
def test_a_driver_observes_what_it_observes_directly(
    name: str, world: World, pg18: ServerFacts, tmp_path: Path
) -> None:
    tenant = world.tenant(pg18, seed=SEED, limits=Limits(pool_size=5))
    direct = world.database(pg18, seed=SEED)
    driver = next(spec for spec in DRIVERS if spec.name == name)
    scenarios = PLAYED[name]
    tools = Workshop({18: pg18.bin_dir}, sys.executable, lambda _: None).own_python(driver)

    def on(url: str) -> Transcripts:
        doors = {"DRIVERS_URL": url, "DRIVERS_TLS_URL": url, "DRIVERS_CA": "", "DRIVERS_WRONG_CA": ""}
        with Stage() as stage:
            return Player(stage, tools.command, {**os.environ, **tools.env, **doors}, tmp_path, PATIENCE).play(
                scenarios, 2
            )

    expected = on(direct.url)
    with churning(world.url(tenant), []):
        observed = on(world.url(tenant))
    for scenario in scenarios:
        cell = compare(driver, scenario, Way.TRANSACTION, expected[scenario], observed[scenario])
        unexplained = [difference for difference in cell.differences if difference.note is None]
        assert cell.verdict in (Verdict.SAME, Verdict.EXPLAINED), unexplained
