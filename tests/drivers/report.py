"""The tables, for people: on the terminal and in docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drivers.catalogue import DRIVERS
from drivers.explanations import EXPLANATIONS
from drivers.matrix import Matrix
from drivers.model import CONTENTS, PROXIED, Cell, Scenario, Verdict, Way

COLOURS = {
    Verdict.SAME: "green",
    Verdict.EXPLAINED: "yellow",
    Verdict.DIFFERENT: "bold red",
    Verdict.NOT_APPLICABLE: "dim",
    Verdict.SKIPPED: "magenta",
}
NARROWEST = 150
LONGEST = 160
MARKS = {
    Verdict.SAME: "same",
    Verdict.NOT_APPLICABLE: "n/a",
    Verdict.SKIPPED: "skipped",
    Verdict.DIFFERENT: "**differs**",
}


def show(matrix: Matrix, console: Console) -> None:
    """Print the tables, then everything that is not simply the same."""
    if console.width < NARROWEST and not console.is_terminal:
        console.width = NARROWEST
    for way in PROXIED:
        cells = [cell for cell in matrix.cells if cell.way is way]
        if cells:
            console.print(_table(matrix, way, cells))
    for cell in matrix.unexplained:
        console.print(f"[bold red]{cell.driver}, {cell.scenario}, {cell.way} mode differs:[/]", soft_wrap=True)
        for difference in cell.differences:
            if difference.note is None:
                console.print(f"  {escape(difference.step)}", soft_wrap=True)
                console.print(f"    direct:  {escape(_short(difference.direct))}", soft_wrap=True)
                console.print(f"    proxied: {escape(_short(difference.proxied))}", soft_wrap=True)
    for explanation in EXPLANATIONS:
        if any(explanation.key in cell.notes for cell in matrix.cells):
            console.print(f"[yellow]{explanation.key}[/]: {escape(explanation.text)}", soft_wrap=True)
    for name, why in matrix.missing.items():
        console.print(f"[magenta]{name} was skipped:[/] {escape(why)}", soft_wrap=True)
    for pin in matrix.unexplained_pins:
        console.print(f"[bold red]a pin that no line explains:[/] {escape(str(pin))}", soft_wrap=True)
    for cause in matrix.idle_causes:
        text = f"{cause.reason}, {cause.scenario}: {cause.line}"
        console.print(f"[bold red]a line that has pinned nobody:[/] {escape(text)}", soft_wrap=True)
    if not matrix.played:
        console.print("[bold red]nothing was played[/]", soft_wrap=True)
    for complaint in matrix.complaints:
        console.print(f"[bold red]proxy:[/] {escape(complaint)}", soft_wrap=True)


def _table(matrix: Matrix, way: Way, cells: Sequence[Cell]) -> Table:
    scenarios = [scenario for scenario in Scenario if any(cell.scenario is scenario for cell in cells)]
    table = Table(title=f"{way} mode", title_justify="left", header_style="bold")
    table.add_column("driver", no_wrap=True)
    for scenario in scenarios:
        table.add_column(scenario)
    for driver in DRIVERS:
        if any(cell.driver == driver.name for cell in cells):
            found = [matrix.cell(driver.name, scenario, way) for scenario in scenarios]
            table.add_row(driver.title, *(_coloured(cell) for cell in found))
    return table


def _coloured(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = ", ".join(cell.notes) if cell.verdict is Verdict.EXPLAINED else str(cell.verdict)
    return f"[{COLOURS[cell.verdict]}]{escape(text)}[/]"


def _short(text: str | None) -> str:
    if text is None:
        return "(nothing)"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def markdown(matrix: Matrix, played_on: str) -> str:
    """The whole of docs/compatibility.md; `played_on` tells the builds of the proxy and the servers."""
    return "\n".join(
        [*_introduction(played_on), *_tables(matrix), *_explanations(matrix), *_absences(matrix), *_again()]
    )


def _introduction(played_on: str) -> list[str]:
    return [
        "# Compatibility",
        "",
        "What drivers do, compared with what they do on a direct connection. Every scenario is played three times by",
        "the same program: on PostgreSQL itself, through pgtenant in transaction mode, and in session mode. All that",
        "it observes, values, error codes, notices, counts, is written down step by step; a cell says *same* when the",
        "transcripts are equal. In transaction mode several connections share few backends with other busy clients",
        "that have other settings, and a connection must have been seen on more than one backend.",
        "",
        f"Played through {played_on};",
        "the versions of the drivers are in the tables. This page is written by `make drivers ARGS=--write`.",
        "",
        "| scenario | what is in it |",
        "| --- | --- |",
        *(f"| {scenario} | {contents} |" for scenario, contents in CONTENTS.items()),
    ]


def _tables(matrix: Matrix) -> Iterator[str]:
    for way in PROXIED:
        yield from ("", f"## {way.capitalize()} mode", "")
        yield f"| | {' | '.join(Scenario)} |"
        yield f"| --- |{' --- |' * len(Scenario)}"
        for driver in DRIVERS:
            cells = [matrix.cell(driver.name, scenario, way) for scenario in Scenario]
            name = f"{driver.title} {matrix.versions.get(driver.name, '')}".strip()
            yield f"| {name} | {' | '.join(_marked(cell) for cell in cells)} |"


def _marked(cell: Cell | None) -> str:
    if cell is None:
        return "not played"
    if cell.verdict is Verdict.EXPLAINED:
        return ", ".join(f"[{note}](#{note})" for note in cell.notes)
    return MARKS[cell.verdict]


def _explanations(matrix: Matrix) -> Iterator[str]:
    yield from ("", "## What differs, and why")
    for explanation in EXPLANATIONS:
        if any(explanation.key in cell.notes for cell in matrix.cells):
            yield from ("", f"### {explanation.key}", "", explanation.text)
    for cell in matrix.unexplained:
        steps = ", ".join(d.step for d in cell.differences if d.note is None)
        yield from ("", f"Not explained: {cell.driver}, {cell.scenario}, {cell.way} mode: {steps}.")


def _absences(matrix: Matrix) -> Iterator[str]:
    yield from ("", "## What was not played", "")
    seen: dict[str, list[str]] = {}
    for cell in matrix.cells:
        if cell.verdict is Verdict.NOT_APPLICABLE:
            where = f"{cell.driver} {cell.scenario}"
            if where not in seen.setdefault(cell.reason, []):
                seen[cell.reason].append(where)
    yield from (f"- {', '.join(where)}: {reason}." for reason, where in sorted(seen.items()))
    yield from (f"- {name}, nothing at all: {why}." for name, why in matrix.missing.items())


def _again() -> list[str]:
    return [
        "",
        "## Again",
        "",
        "`make drivers` plays everything and fails where a difference is not explained, or where a connection keeps",
        "its backend (a pin) and no line of a scenario is meant to pin it; `make drivers ARGS=--help` tells how to",
        "play less. The proxy is the one that `make` installs for the tests, with a compiled relay where there is a",
        "C compiler; `--proxy-python` names the Python of another installation. What a machine lacks is installed",
        "from the package registries into `.venv-drivers`, or reported as skipped.",
        "",
    ]
