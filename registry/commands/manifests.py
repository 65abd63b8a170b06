"""`pgtenant registry`: the registry as a whole."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from registry.commands.options import (
    ConfigOption,
    JsonOption,
    NoTestOption,
    RegistryOption,
    StrictOption,
    read_secret,
    registry_keys,
    registry_url,
)
from registry.commands.output import USAGE, ask, explained, fail, note, print_json, results, warn
from registry.location import parse_location
from registry.manifest import (
    Applied,
    Difference,
    apply_manifest,
    export_manifest,
    load_manifest,
    rehearse_on_nothing,
)
from registry.manifest.apply import Progress, Stage
from registry.manifest.differences import Action
from registry.opening import Registry, open_registry
from registry.secrets import Vault
from registry.trial import Depth, Examiner, Strictness

TOKEN_VARIABLE: Final = "PGTENANT_ADMIN_TOKEN"
RELOAD_TIMEOUT: Final = 15.0
MAX_ANSWER: Final = 65_536
PRIVATE: Final = 0o600
MAX_SHOWN: Final = 200
MAX_WARNINGS: Final = 20
"""What a terminal is told one by one."""

_STYLES: Final = {Action.ADD: ("+", "green"), Action.CHANGE: ("~", "yellow"), Action.REMOVE: ("-", "red")}


def register(app: typer.Typer) -> None:
    """Mount the group."""
    group = typer.Typer(no_args_is_help=True, help="The registry as a whole: apply and export files, upgrade, reload.")
    group.command("apply")(apply)
    group.command("export")(export)
    group.command("upgrade")(upgrade)
    group.command("reload")(reload)
    app.add_typer(group, name="registry")


def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML file of servers, tenants and logins.")],
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what the file does not name.")] = False,
    no_test: NoTestOption = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the registry what a file says, all of it or, where anything is wrong, nothing.

    Servers, databases and roles that the file brings are tried, and warned of where they cannot be used.  A dry run
    tries none.

    pgtenant registry apply configs/tenants.toml --dry-run
    """
    with explained():
        manifest = load_manifest(file)
        depth = Depth.REGISTRY if no_test or dry_run else Depth.SERVERS
        examiner = partial(Examiner, depth=depth, strictness=Strictness.REFUSE if strict else Strictness.WARN)

    async def work(opened: Registry) -> Applied:
        await opened.check_keys(rehearsal=dry_run)
        with _progress() as progress:
            service = opened.service
            return await apply_manifest(
                service,
                manifest,
                prune=prune,
                dry_run=dry_run,
                progress=progress,
                inspector=examiner(service.vault),
            )

    if dry_run and _is_missing(registry, config):
        with explained(), _progress() as progress:
            vault = Vault(registry_keys(config))
            rehearsal = rehearse_on_nothing(manifest, vault, progress=progress, inspector=examiner(vault))
            applied = asyncio.run(rehearsal)
    else:
        applied = ask(registry, config, work, writing=not dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "differences": applied.differences, "warnings": applied.warnings,
                    "checks": applied.checks})  # fmt: skip
        return
    told = [*applied.warnings, *(f"{check.text}; {check.hint}" for check in applied.checks)]
    for text in told[:MAX_WARNINGS]:
        warn(text)
    if len(told) > MAX_WARNINGS:
        warn(f"{len(told) - MAX_WARNINGS:,} more warnings; --json shows all")
    _print_differences(applied, dry_run=dry_run)


def _is_missing(registry: str | None, config: Path | None) -> bool:
    """Whether the registry is an SQLite file that a run would make."""
    with explained():
        location = parse_location(registry_url(registry, config))
    return location.path is not None and not location.path.exists()


class _Bar(Progress):
    """Shows a person how far the work is."""

    def __init__(self, shown: RichProgress) -> None:
        self._shown = shown
        self._task: TaskID | None = None

    def begin(self, stage: Stage, total: int | None = None) -> None:
        if self._task is not None:
            self._shown.remove_task(self._task)
        self._task = self._shown.add_task(stage.value, total=total)

    def advance(self, pieces: int) -> None:
        if self._task is not None:
            self._shown.advance(self._task, pieces)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, which is gone at the end; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Progress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True) as shown:
        yield _Bar(shown)


def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write instead of standard output.")
    ] = None,
    registry: RegistryOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Write the registry as a file for `registry apply`.

    It has the logins' verifiers, and in place of other secrets the names of environment variables.
    """
    text = ask(registry, config, lambda opened: export_manifest(opened.service))
    if output is not None:
        with explained():
            _write(output, text)
    if as_json:
        print_json({"file": None if output is None else str(output), "manifest": text})
    elif output is None:
        typer.echo(text, nl=False)
    else:
        note(f"wrote {output}")


def upgrade(registry: RegistryOption = None, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Make the registry's tables, or bring them to this program's version; nodes may run meanwhile."""
    before, after = _upgrade(registry, config)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        note(f"the tables are of version {after} already")
    else:
        note(f"the tables are of version {after} now" + (f", they were {before}" if before else ""))


def reload(
    http: Annotated[
        str,
        typer.Option("--http", metavar="URL", envvar="PGTENANT_HTTP_URL", help="HTTP address of the node."),
    ] = "http://127.0.0.1:6480",
    token_file: Annotated[
        str | None,
        typer.Option("--token-file", metavar="FILE", help=f"File with the admin token; else in {TOKEN_VARIABLE}."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Have a node read its settings, keys and certificates and the registry again, now.

    It says which settings have changed, and which of them need a restart.
    """
    with explained():
        token = read_secret("admin token", file=token_file, variable=TOKEN_VARIABLE if token_file is None else None)
    answer = _post(f"{http.rstrip('/')}/reload", "" if token is None else token.reveal())
    if as_json:
        print_json(answer)
    else:
        note("the node has read its settings and the registry again")
        for name, value in answer.items():
            if value:
                note(f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _upgrade(registry: str | None, config: Path | None) -> tuple[str | None, str]:
    async def run() -> tuple[str | None, str]:
        async with open_registry(registry_url(registry, config), registry_keys(config)) as opened:
            return await opened.upgrade()

    with explained():
        return asyncio.run(run())


def _post(url: str, token: str) -> dict[str, Any]:
    if urlsplit(url).scheme not in {"http", "https"}:
        fail(f"{url} is no HTTP address", "give --http http://HOST:PORT", status=USAGE)
    request = urllib.request.Request(url, method="POST", data=b"", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=RELOAD_TIMEOUT) as response:  # noqa: S310
            answer = json.loads(response.read(MAX_ANSWER) or b"{}")
    except urllib.error.HTTPError as error:
        text = error.read(MAX_ANSWER).decode("utf-8", "replace").strip()
        fail(f"the node refused ({error.code}): {text or error.reason}", _hint_for(error.code))
    except HTTPException:
        fail(f"what answers at {url} does not speak HTTP", "check --http: it is the node's http.port, 6480 by default")
    except OSError as error:
        fail(f"no node answers at {url}: {getattr(error, 'reason', error)}", "check that it runs, and --http")
    except ValueError:
        fail(f"{url} answered something that is not JSON", "check --http")
    return answer if isinstance(answer, dict) else {}


def _hint_for(status: int) -> str:
    """Say what to look at when a node answers a reload with this HTTP status."""
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return f"the admin token is taken from --token-file or {TOKEN_VARIABLE}; it must be the node's http.admin_token"
    if status in {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE}:
        return "what was in force stays in force; mend what the node says above and reload again"
    return "check --http; the node's log says more"


def _write(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}", "name another with --output")


def _print_differences(applied: Applied, *, dry_run: bool) -> None:
    console = results()
    if console.is_terminal:
        for difference in applied.differences[:MAX_SHOWN]:
            sign, style = _STYLES[difference.action]
            head, *details = _lines(difference)
            console.print(f"[{style}]{sign} {escape(head)}[/]", soft_wrap=True)
            for line in details:
                console.print(escape(line), soft_wrap=True)
        if len(applied.differences) > MAX_SHOWN:
            more = len(applied.differences) - MAX_SHOWN
            console.print(f"... and {more:,} more; --json, or a pipe, shows all")
    else:
        # Tens of thousands of them are printed without a thought to colours, which would take longer than applying.
        for difference in applied.differences:
            head, *details = _lines(difference)
            sys.stdout.write("\n".join((f"{_STYLES[difference.action][0]} {head}", *details, "")))
    counts = {action: sum(one.action is action for one in applied.differences) for action in Action}
    added, changed, removed = counts[Action.ADD], counts[Action.CHANGE], counts[Action.REMOVE]
    if not applied.differences:
        console.print("Nothing to change.")
    elif dry_run:
        console.print(f"{added} to add, {changed} to change, {removed} to remove.  Nothing was changed.")
    else:
        console.print(f"{added} added, {changed} changed, {removed} removed.")


def _lines(difference: Difference) -> Iterator[str]:
    yield f"{difference.kind} {difference.name}"
    for one in difference.fields:
        yield f"    {one.key}: {f'{one.before} -> {one.after}' if one.before else one.after}"
