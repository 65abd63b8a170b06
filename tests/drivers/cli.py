"""The command line: `python -m drivers`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from drivers.catalogue import DRIVERS, DriverSpec
from drivers.installing import CACHE, TREE, Workshop, check_cache
from drivers.matrix import Matrix, play
from drivers.model import PROXIED, DriversError, Scenario, Way
from drivers.playing import PATIENCE
from drivers.report import markdown, show
from drivers.world import World
from proxy.demo.install import EmbeddedError

DIFFERENT, FAILED, INTERRUPTED = 1, 2, 130
PAGE = TREE / "docs" / "compatibility.md"
NAMES = ", ".join(driver.name for driver in DRIVERS)

T = TypeVar("T")

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def drivers(
    only: Annotated[str, typer.Option(metavar="NAMES", help=f"Drivers to play, of: {NAMES}")] = "",
    scenarios: Annotated[str, typer.Option(metavar="NAMES", help=f"Scenarios to play, of: {', '.join(Scenario)}")] = "",
    mode: Annotated[str, typer.Option(metavar="NAMES", help="Pool modes, of: transaction, session")] = "",
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds of silence after which a scenario has failed")
    ] = PATIENCE,
    cache: Annotated[Path, typer.Option(resolve_path=True, help="Where drivers are installed")] = CACHE,
    proxy_python: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="The Python whose proxy is played through; by default this one"),
    ] = Path(sys.executable),
    write: Annotated[bool, typer.Option("--write", help="Write docs/compatibility.md anew; needs a full run")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything observed that differs as JSON")] = False,
) -> None:
    """Play the same scenarios with many drivers, directly and through pgtenant, and compare what they observe.

    Two PostgreSQL servers and a proxy are started on free ports.  Drivers that are missing are installed into
    .venv-drivers from the package registries; one that cannot be had is reported as skipped.  The exit status is 1
    when something differs from a direct connection that tests/drivers/explanations.py does not explain, when a
    connection keeps its backend (a pin) for which tests/drivers/pins.py names no line, or when nothing was played.

    python -m drivers --only asyncpg,psql --scenarios named,cancel --mode transaction
    """
    errors = Console(stderr=True)
    try:
        chosen = _chosen("driver", only, {driver.name: driver for driver in DRIVERS})
        played = _chosen("scenario", scenarios, {str(scenario): scenario for scenario in Scenario})
        ways = _chosen("mode", mode, {str(way): way for way in PROXIED})
        whole = (len(chosen), len(played), len(ways)) == (len(DRIVERS), len(Scenario), len(PROXIED))
        if write and not whole:
            raise DriversError("only a full run can be written", "leave out --only, --scenarios and --mode")
        check_cache(cache)
        matrix, played_on = measure(chosen, played, ways, patience, cache, errors, str(proxy_python))
    except (DriversError, EmbeddedError) as error:
        errors.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
        if error.hint:
            errors.print(f"[bold]hint:[/] {escape(error.hint)}", soft_wrap=True)
        raise typer.Exit(FAILED) from None
    if as_json:
        typer.echo(json.dumps(matrix.to_json(), indent=2))
    else:
        show(matrix, Console())
    if matrix.interrupted:
        raise typer.Exit(INTERRUPTED)
    if write:
        PAGE.write_text(markdown(matrix, played_on))
        errors.print(f"Written to {PAGE}", markup=False)
    raise typer.Exit(0 if matrix.good else DIFFERENT)


def measure(
    drivers: list[DriverSpec],
    scenarios: list[Scenario],
    ways: list[Way],
    patience: float,
    cache: Path,
    console: Console,
    proxy_python: str = sys.executable,
) -> tuple[Matrix, str]:
    """Start everything, play, stop everything; return the matrix and what it was played on.

    Call it in the main thread: SIGTERM counts as Ctrl-C while it runs, which keeps what was complete.
    """

    def progress(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with World(progress, proxy_python) as world:
            bin_dirs = {version: server.bin_dir for version, server in world.servers.items()}
            workshop = Workshop(bin_dirs, sys.executable, progress, cache)
            played_on = world.description()
            return play(world, workshop, drivers, scenarios, ways, progress, patience), played_on
    except KeyboardInterrupt:
        return Matrix(interrupted=True), ""
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m drivers")


def _chosen(what: str, text: str, known: dict[str, T]) -> list[T]:
    """What a list such as `a,b` names, in the order of `known`; everything for an empty one.

    Raises DriversError.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise DriversError(f"there is no {what} {name!r}", f"use some of: {', '.join(known)}")
    return [value for name, value in known.items() if not names or name in names]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
