"""Big things, measured: `python -m bench.big` shows what the proxy's memory does while they go through it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.big_cases import CASES, Big, Sizes
from bench.machine import machine_facts
from bench.model import PGTENANT, BenchError
from bench.options import Options
from bench.processes import PeakMemory
from bench.report import console_for
from bench.world import World
from proxy.demo.install import EmbeddedError

DEFAULT_OUTPUT: Final = Path("bench/results/big.json")
BOUND: Final = 2_000_000
"""Bytes that the proxy may take beyond what it had, whatever goes through one session."""
BOUND_PER_SESSION: Final = 256_000
"""The same for each of many sessions that are stuck in the middle of something."""
SERVERS_SHARE: Final = 5
"""PostgreSQL holds a value several times over while it makes or takes it."""
ROOM: Final = 2**30
FAILED, EXCEEDED = 2, 1
MEGABYTE: Final = 1e6

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one case took; sizes in bytes, `peak` beyond `before`."""

    name: str
    amount: str
    sessions: int
    moved: int
    seconds: float
    before: int
    peak: int

    @property
    def bound(self) -> int:
        return BOUND if self.sessions == 1 else BOUND_PER_SESSION * self.sessions


@app.command()
def big(
    only: Annotated[
        str, typer.Option(metavar="NAMES", help=f"What to measure, of: {', '.join(case.name for case in CASES)}")
    ] = ",".join(case.name for case in CASES),
    scale: Annotated[
        float, typer.Option(min=0.001, max=10, help="1: a value of 1 GB, 10 million rows, 4 GB of COPY")
    ] = 1.0,
    sessions: Annotated[int, typer.Option(min=2, help="How many slow ones at once")] = 50,
    proxy_python: Annotated[Path | None, typer.Option(help="Run pgtenant as installed for this Python")] = None,
    output: Annotated[Path, typer.Option(help="Where to write the results as JSON")] = DEFAULT_OUTPUT,
) -> None:
    """Send values, rows and COPY of gigabytes through pgtenant, fast and slowly, and watch its memory.

    Exits with status 1 where it took more than the bound.
    """
    errors = console_for(stderr=True)
    sizes = Sizes.scaled(scale, sessions)
    try:
        chosen = _chosen(only)
        _check_room(sizes)
        options = Options(
            ways=(PGTENANT,), pool_size=sessions, clients=(1,), connect_clients=1, proxy_python=proxy_python
        )
        with errors.status("starting") as status, World(options, lambda text: status.update(escape(text))) as world:
            way = world.targets[PGTENANT]
            facts = dict(way.facts())
            findings = _measure(chosen, sizes, world, lambda text: status.update(escape(text)))
    except (BenchError, EmbeddedError) as error:
        errors.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
        if error.hint:
            errors.print(f"[bold]hint:[/] {escape(error.hint)}", soft_wrap=True)
        raise typer.Exit(FAILED) from None
    _write(output, findings, sizes, facts)
    show(findings, facts, console_for())
    errors.print(f"Written to {output}", markup=False)
    raise typer.Exit(EXCEEDED if any(finding.peak > finding.bound for finding in findings) else 0)


def show(findings: Sequence[Finding], facts: dict[str, str], console: Console) -> None:
    """Print the findings as a table."""
    console.print(f"{'; '.join(machine_facts().values())}\npgtenant: {facts['version']}", markup=False, soft_wrap=True)
    table = Table(title="Memory of the proxy while big things go through", title_justify="left")
    for heading in ("case", "amount"):
        table.add_column(heading)
    for heading in ("sessions", "MB/s", "before MB", "peak +MB", "per session kB", "bound +MB"):
        table.add_column(heading, justify="right")
    for one in findings:
        table.add_row(
            one.name,
            one.amount,
            str(one.sessions),
            f"{one.moved / one.seconds / MEGABYTE:,.0f}" if one.moved else "-",
            f"{one.before / MEGABYTE:.1f}",
            f"{one.peak / MEGABYTE:.1f}",
            f"{one.peak / one.sessions / 1000:,.0f}",
            f"{one.bound / MEGABYTE:.1f}" + ("" if one.peak <= one.bound else " exceeded"),
        )
    console.print(table)


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m bench.big")


def _chosen(names: str) -> list[Big]:
    asked = [name.strip() for name in names.split(",") if name.strip()]
    known = {case.name: case for case in CASES}
    for name in asked:
        if name not in known:
            raise BenchError(f"there is no case {name!r}", f"use some of: {', '.join(known)}")
    return [known[name] for name in asked]


def _check_room(sizes: Sizes) -> None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            if free < SERVERS_SHARE * sizes.value + ROOM:
                raise BenchError(
                    f"PostgreSQL would need {SERVERS_SHARE * sizes.value / 1e9:.1f} GB for the value, "
                    f"and {free / 1e9:.1f} GB are free",
                    "choose a smaller --scale",
                )


def _measure(chosen: Sequence[Big], sizes: Sizes, world: World, progress: Callable[[str], None]) -> list[Finding]:
    way = world.targets[PGTENANT]
    pid = way.proxy_pid
    assert pid is not None
    findings = []
    for case in chosen:
        progress(f"{case.name}: {case.amount(sizes)}")
        case.prepare(world.origin)
        case.warm_up(way.endpoint)
        memory = PeakMemory(pid)
        started = time.monotonic()
        moved = case.run(way.endpoint, sizes)
        seconds = time.monotonic() - started
        findings.append(
            Finding(
                case.name,
                case.amount(sizes),
                sizes.sessions if case.many else 1,
                moved,
                seconds,
                memory.before,
                max(0, memory.peak() - memory.before),
            )
        )
    return findings


def _write(output: Path, findings: Sequence[Finding], sizes: Sizes, facts: dict[str, str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": dict(machine_facts()),
        "pgtenant": facts,
        "sizes": asdict(sizes),
        "cases": [{**asdict(finding), "bound": finding.bound} for finding in findings],
    }
    output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
