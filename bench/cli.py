"""The command line: `python -m bench`."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from bench.machine import busy_with_others, machine_facts, usable_cores
from bench.model import BenchError, Scenario
from bench.options import GROUPS, MIN_ROUNDS, Options, parse_counts, parse_scenarios, parse_ways
from bench.record import Record
from bench.report import console_for, show
from bench.runner import Runner
from bench.workloads import make_workloads
from bench.world import World
from proxy.demo.install import EmbeddedError

DEFAULT_OUTPUT = Path("bench/results/latest.json")
FAILED, GOALS_MISSED, INTERRUPTED = 2, 1, 130
QUICK_ROUNDS, QUICK_SECONDS, QUICK_ROWS, QUICK_IDLE = 2, 1, 200_000, 200
WARM_UP_SECONDS = 2

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def bench(
    only: Annotated[
        str,
        typer.Option(metavar="NAMES", help=f"What to measure, of: {', '.join((*Scenario, *GROUPS))}"),
    ] = ",".join(Scenario),
    ways: Annotated[
        str, typer.Option(metavar="NAMES", help="The ways to the server, of: direct, pgbouncer, pgtenant")
    ] = "direct,pgbouncer,pgtenant",
    clients: Annotated[str, typer.Option(metavar="NUMBERS", help="Numbers of clients")] = "1,16,64",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; fewer than 5 settle nothing")] = MIN_ROUNDS,
    seconds: Annotated[int, typer.Option(min=1, help="Seconds of each run of pgbench")] = 5,
    scale: Annotated[int, typer.Option(min=1, help="pgbench's scale: 100,000 rows each")] = 1,
    pool_size: Annotated[int, typer.Option(min=1, help="Backends of either proxy")] = 20,
    copy_rows: Annotated[int, typer.Option(min=1, help="Rows of the big COPY")] = 5_000_000,
    copy_filler: Annotated[
        int, typer.Option(min=0, help="Characters added to each row of about 25; 75 makes rows like pgbench's")
    ] = 0,
    idle_clients: Annotated[int, typer.Option(min=1, help="Clients that are connected and idle")] = 2_000,
    connect_clients: Annotated[int, typer.Option(min=1, help="Clients that connect again and again")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of pgbench (default: half of the cores)")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two short rounds, small COPY: does it work at all?")] = False,
    pgbouncer: Annotated[Path | None, typer.Option(help="PgBouncer's program (default: the one on PATH)")] = None,
    proxy_python: Annotated[
        Path | None, typer.Option(help="Run pgtenant as installed for this Python (default: for the one running this)")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where to write the results as JSON")] = DEFAULT_OUTPUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of tables")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with status 1 unless every goal was measured and met")
    ] = False,
) -> None:
    """Measure pgtenant beside PgBouncer and a direct connection, in interleaved rounds.

    Everything runs on this machine, on free ports: PostgreSQL 18 from its Python package, PgBouncer if it is
    installed, and the pgtenant that is installed for this Python.  The ratios are formed within each round.  A full
    run takes about a quarter of an hour; for a first impression:

    python -m bench --only simple --rounds 3 --seconds 3
    """
    errors = console_for(stderr=True)
    try:
        options = Options(
            scenarios=parse_scenarios(only),
            ways=parse_ways(ways),
            clients=parse_counts(clients),
            rounds=QUICK_ROUNDS if quick else rounds,
            seconds=QUICK_SECONDS if quick else seconds,
            scale=scale,
            pool_size=pool_size,
            copy_rows=min(QUICK_ROWS, copy_rows) if quick else copy_rows,
            copy_filler=copy_filler,
            idle_clients=min(QUICK_IDLE, idle_clients) if quick else idle_clients,
            connect_clients=connect_clients,
            threads=threads or max(1, usable_cores() // 2),
            pgbouncer=pgbouncer,
            proxy_python=proxy_python,
        )
        record = measure(options, errors)
        record.write(output)
    except (BenchError, EmbeddedError) as error:
        errors.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
        if error.hint:
            errors.print(f"[bold]hint:[/] {escape(error.hint)}", soft_wrap=True)
        raise typer.Exit(FAILED) from None
    if as_json:
        typer.echo(json.dumps(record.to_json(), indent=2))
    else:
        show(record, console_for())
    errors.print(f"Written to {output}", markup=False)
    raise typer.Exit(_exit_status(record, check=check))


def measure(options: Options, console: Console) -> Record:
    """Start everything, run all rounds, stop everything; an interruption keeps what was measured until then.

    Call it in the main thread: SIGTERM counts as an interruption while it runs.
    """
    started, load = _now(), busy_with_others()
    interrupted = False
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with (
            console.status("starting") as status,
            World(options, lambda text: status.update(escape(text))) as world,
        ):
            progress = world.progress
            workloads = make_workloads(options, world.tools, world.origin, world.directory)
            runner = Runner(workloads, world.targets, world.absent, progress)
            programs = {"postgres": world.tools.version("postgres"), "pgbench": world.tools.version("pgbench")}
            ways = {way: target.facts() for way, target in world.targets.items()}
            try:
                _warm_up(world)
                runner.run(options.rounds)
            except KeyboardInterrupt:
                interrupted = True
                progress("interrupted, stopping everything")
    finally:
        signal.signal(signal.SIGTERM, before)
    return Record(
        started=started,
        finished=_now(),
        interrupted=interrupted,
        options=options,
        machine=machine_facts(),
        programs=programs,
        ways=ways,
        absent=world.absent,
        results=runner.results,
        load=load,
    )


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m bench")


def _warm_up(world: World) -> None:
    """Fill the server's cache and the pools."""
    for way, target in world.targets.items():
        world.progress(f"warming up {way}")
        # A way that does not work is no reason to stop: its cells will tell why.
        with suppress(BenchError):
            world.tools.pgbench(
                target.endpoint, mode="simple", clients=max(world.options.clients), threads=1, seconds=WARM_UP_SECONDS
            )


def _exit_status(record: Record, *, check: bool) -> int:
    if record.interrupted:
        return INTERRUPTED
    if check and not record.reaches_all_goals():
        return GOALS_MISSED
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
