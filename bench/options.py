"""What to measure and how long, as the command line said it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.model import COPIES, QUERY_MODES, WAYS, BenchError, Scenario

MIN_ROUNDS = 5
GROUPS = {
    "modes": QUERY_MODES,
    "copy": COPIES,
}


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that can be chosen; `seconds` is the time of one pgbench run."""

    scenarios: tuple[Scenario, ...] = tuple(Scenario)
    ways: tuple[str, ...] = WAYS
    clients: tuple[int, ...] = (1, 16, 64)
    rounds: int = MIN_ROUNDS
    seconds: int = 5
    scale: int = 1
    pool_size: int = 20
    copy_rows: int = 5_000_000
    copy_filler: int = 0
    idle_clients: int = 2_000
    connect_clients: int = 16
    threads: int = 1
    pgbouncer: Path | None = None
    proxy_python: Path | None = None


def parse_scenarios(text: str) -> tuple[Scenario, ...]:
    """Read a list such as `simple,copy`; `copy` and `modes` stand for several.

    Raises BenchError.
    """
    chosen: list[Scenario] = []
    for name in _names(text):
        if name in GROUPS:
            chosen.extend(GROUPS[name])
        elif name in tuple(Scenario):
            chosen.append(Scenario(name))
        else:
            known = ", ".join((*Scenario, *GROUPS))
            raise BenchError(f"there is no scenario {name!r}", f"use some of: {known}")
    return tuple(scenario for scenario in Scenario if scenario in chosen)


def parse_ways(text: str) -> tuple[str, ...]:
    """Read a list such as `direct,pgbouncer`.

    Raises BenchError.
    """
    chosen = _names(text)
    for name in chosen:
        if name not in WAYS:
            raise BenchError(f"there is no way {name!r} to the server", f"use some of: {', '.join(WAYS)}")
    return tuple(way for way in WAYS if way in chosen)


def parse_counts(text: str) -> tuple[int, ...]:
    """Read a list of positive numbers such as `1,16,64`.

    Raises BenchError.
    """
    counts = []
    for name in _names(text):
        if not name.isdecimal() or int(name) < 1:
            raise BenchError(f"{name!r} is no number of clients", "use a list such as 1,16,64")
        counts.append(int(name))
    return tuple(sorted(set(counts)))


def _names(text: str) -> Sequence[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise BenchError("an empty list was given", "name at least one, or leave the option out")
    return names
