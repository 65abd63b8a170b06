"""Running commands and showing what they found: tables for people, JSON for programs, hints with every error."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from registry.commands.options import registry_keys, registry_url
from registry.contract import Address, Limits, RegistryUnavailable
from registry.domain.checks import Check
from registry.domain.names import format_address
from registry.errors import Invalid, RegistryError
from registry.location import SQLITE
from registry.manifest.differences import shown
from registry.opening import Absent, Registry, open_registry
from registry.trial import problems

T = TypeVar("T")

WIDE: Final = 1_000
REFUSED: Final = 1
USAGE: Final = 2
"""Exit statuses: what was asked for was refused or failed; it was not asked for rightly."""
HIDDEN: Final = frozenset({"verifier"})


def ask(
    registry: str | None,
    config: Path | None,
    work: Callable[[Registry], Awaitable[T]],
    *,
    writing: bool = False,
) -> T:
    """Open the registry, do the work and return its result; what goes wrong ends the program with a hint.

    A command that writes makes a missing SQLite registry, and first makes sure that the keys are the registry's.
    """

    async def run() -> T:
        absent = Absent.MAKE if writing else Absent.REFUSE
        async with open_registry(registry_url(registry, config), registry_keys(config), absent=absent) as opened:
            if opened.location.kind != SQLITE:
                await opened.check_schema()
            if writing:
                await opened.check_keys()
            return await work(opened)

    with explained():
        return asyncio.run(run())


@contextmanager
def explained() -> Iterator[None]:
    """Print what goes wrong, with a hint and without a traceback, and end the program.

    The status is 2 where a value that was given breaks a rule, as it is for unknown options, and 1 for all else.
    """
    try:
        yield
    except Invalid as error:
        fail(error.message, error.hint, status=USAGE)
    except RegistryError as error:
        fail(error.message, error.hint)
    except RegistryUnavailable as error:
        fail(f"the registry cannot be reached: {error}", "check that it runs, and --registry or PGTENANT_REGISTRY")


def fail(message: str, hint: str, *, status: int = REFUSED) -> NoReturn:
    """End the program with an error."""
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    console.print(f"[bold]hint:[/] {escape(hint)}", soft_wrap=True)
    raise typer.Exit(status)


def note(text: str) -> None:
    """Tell a person something that is no result."""
    Console(stderr=True, highlight=False).print(escape(text), soft_wrap=True)


def warn(text: str) -> None:
    """Warn a person."""
    Console(stderr=True, highlight=False).print(f"[bold yellow]warning:[/] {escape(text)}", soft_wrap=True)


def tell(checks: Iterable[Check]) -> None:
    """Tell a person what checks have found, but for what is well."""
    for check in problems(checks):
        warn(f"{check.text}; {check.hint}" if check.hint else check.text)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is lost; where nobody can be asked, `--yes` is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        fail("this needs a confirmation, and nobody is there to give it", "add --yes", status=USAGE)
    typer.confirm(question, abort=True)


def results() -> Console:
    """Where results go: lines are as wide as the terminal, and in a pipe as wide as they need to be."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows, or a sentence where there are none."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(shown(value)) for value in row))
    console = results()
    if table.row_count:
        console.print(table)
    else:
        console.print(empty)


def print_record(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in pairs:
        table.add_row(f"[bold]{escape(name)}[/]", escape(shown(value)))
    results().print(table)


def plain(value: Any) -> Any:
    """A value as JSON has it: records as objects without what is hidden, addresses and enumerations as text."""
    if isinstance(value, Address):
        return format_address(value)
    if isinstance(value, Limits):
        return {name: limit for name, limit in _members(value) if limit is not None}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(member) for name, member in _members(value) if name not in HIDDEN}
    if isinstance(value, dict):
        return {str(name): plain(member) for name, member in value.items()}
    if isinstance(value, frozenset):
        return sorted(plain(member) for member in value)
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    return value


def _members(value: Any) -> list[tuple[str, Any]]:
    return [(one.name, getattr(value, one.name)) for one in fields(value)]
