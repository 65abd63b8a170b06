"""The results as tables, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.model import DIRECT, PGBOUNCER, PGTENANT, WAYS, Missing, Scenario
from bench.record import Record
from bench.stats import (
    CellResult,
    Metric,
    Quantity,
    Spread,
    Verdict,
    base_of,
    cpu_of,
    per_client_of,
    rate_of,
)

ABSENT = "-"
TITLES = {DIRECT: "direct", PGBOUNCER: "PgBouncer", PGTENANT: "pgtenant"}
COLOURS = {
    Verdict.MET: "green",
    Verdict.BELOW_GOAL: "yellow",
    Verdict.NOT_DONE: "red",
    Verdict.NOT_MEASURED: "magenta",
}
SHORT = {"transaction": "tx", "connection": "conn", "row": "rows"}
NARROWEST = 110


def show(record: Record, console: Console) -> None:
    """Print everything of a run."""
    _show_surroundings(record, console)
    active = [result for result in record.results if result.cell.scenario is not Scenario.IDLE]
    idle = [result for result in record.results if result.cell.scenario is Scenario.IDLE]
    if active:
        console.print(throughput_table(active))
        console.print(processor_table(active))
    if idle:
        console.print(memory_table(idle))
    for line in missing_lines(record):
        console.print(line, soft_wrap=True, markup=False)
    cautions = record.cautions()
    if cautions:
        console.print("[bold yellow]This run settles nothing:[/] " + escape("; ".join(cautions)) + ".", soft_wrap=True)


def throughput_table(results: Sequence[CellResult]) -> Table:
    """Units per second on each way, and the ratio of pgtenant to PgBouncer."""
    table = _table("Throughput, median of the rounds", (DIRECT, PGBOUNCER, PGTENANT), "to\ndirect")
    for result in results:
        rates = [_number(result.spread(way, rate_of), 1.0) for way in WAYS]
        table.add_row(
            result.cell.name,
            f"{_short(result.cell.unit)}/s",
            *rates,
            _number(result.ratios_to_direct(), 1.0, 2),
            *_judged(result, rate_of, Metric.THROUGHPUT),
        )
    return table


def processor_table(results: Sequence[CellResult]) -> Table:
    """Processor time of the proxies per unit, and the ratio of pgtenant to PgBouncer."""
    title = "Processor time of the proxy (user + system, all of its processes)"
    table = _table(title, (PGBOUNCER, PGTENANT), "to\nsimple")
    for result in results:
        whole = result.cell.scenario in {Scenario.COPY_OUT, Scenario.COPY_IN}
        scale, unit = (1.0, "s") if whole else (1e6, "us")
        times = [_number(result.spread(way, cpu_of), scale, 2 if whole else 1) for way in (PGBOUNCER, PGTENANT)]
        table.add_row(
            result.cell.name,
            f"{unit}/{_short(result.cell.cpu_unit)}",
            *times,
            _number(result.ratios_to_simple(), 1.0, 2),
            *_judged(result, cpu_of, Metric.CPU, Metric.CPU_TO_SIMPLE),
        )
    return table


def memory_table(results: Sequence[CellResult]) -> Table:
    """Memory of the proxies with clients that have run a query and are idle."""
    table = Table(title="Memory with idle clients, median", title_justify="left")
    table.add_column("cell")
    for way in (PGBOUNCER, PGTENANT):
        table.add_column(f"{TITLES[way]}\nbase MB", justify="right")
        table.add_column(f"{TITLES[way]}\nB/client", justify="right")
    table.add_column("goal", justify="right")
    table.add_column("verdict")
    for result in results:
        values = [
            text
            for way in (PGBOUNCER, PGTENANT)
            for text in (
                _number(result.spread(way, base_of), 1e-6, 1),
                _number(result.spread(way, per_client_of), 1.0),
            )
        ]
        table.add_row(result.cell.name, *values, *_verdict(result, Metric.MEMORY))
    return table


def missing_lines(record: Record) -> list[str]:
    """One line for each way or cell that was not measured, with the reason."""
    lines = []
    for way, error in record.absent.items():
        hint = f" Hint: {error.hint}." if error.hint else ""
        lines.append(f"{TITLES[way]}: not measured. {error.message}.{hint}")
    cells: dict[str, list[str]] = {}
    for result in record.results:
        for way, outcomes in result.outcomes.items():
            reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Missing)]
            if reasons and way not in record.absent:
                rounds = "" if len(reasons) == len(outcomes) else f" in {len(reasons)} of {len(outcomes)} rounds"
                problem = f"{TITLES[way]}: not measured{rounds}. {reasons[0]}."
                cells.setdefault(problem, []).append(result.cell.name)
    return lines + [f"{', '.join(names)}, {problem}" for problem, names in cells.items()]


def console_for(*, stderr: bool = False) -> Console:
    """A console at least as wide as the tables, also where the output is no terminal."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, NARROWEST)
    return console


def _show_surroundings(record: Record, console: Console) -> None:
    options = record.options
    console.print(f"[bold]{escape('; '.join(record.machine.values()))}[/]", soft_wrap=True)
    console.print("; ".join(record.programs.values()), soft_wrap=True, markup=False)
    for way, facts in record.ways.items():
        if "version" in facts:
            console.print(f"{TITLES[way]}: {facts['version']}", soft_wrap=True, markup=False)
    console.print(
        f"{options.rounds} rounds of {options.seconds} s, interleaved; pools of {options.pool_size}, transaction "
        f"mode, SCRAM, no TLS, loopback; pgbench scale {options.scale}, threads {options.threads}\n",
        soft_wrap=True,
    )


def _table(title: str, ways: Sequence[str], ratio: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("cell", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for way in ways:
        table.add_column(TITLES[way], justify="right")
    table.add_column(ratio, justify="right")
    table.add_column("to PgBouncer\nmin / median / max", justify="right")
    table.add_column("goal", justify="right")
    table.add_column("verdict")
    return table


def _judged(result: CellResult, quantity: Quantity, *metrics: Metric) -> list[str]:
    ratios = result.ratios(quantity)
    text = ABSENT if ratios is None else f"{ratios.low:.2f} / {ratios.middle:.2f} / {ratios.high:.2f}"
    return [text, *_verdict(result, *metrics)]


def _verdict(result: CellResult, *metrics: Metric) -> tuple[str, str]:
    for goal, verdict in result.verdicts():
        if goal.metric in metrics:
            return str(goal), f"[{COLOURS[verdict]}]{verdict}[/]"
    return ABSENT, "no goal"


def _short(unit: str) -> str:
    return SHORT.get(unit, unit)


def _number(spread: Spread | None, scale: float, digits: int = 0) -> str:
    return ABSENT if spread is None else f"{spread.middle * scale:,.{digits}f}"
