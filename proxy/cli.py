"""The command line: `pgtenant`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import registry.cli
from proxy import server, serving, wiring
from proxy.demo import command as demo
from proxy.net.listener import ListenError
from proxy.net.relay_loop import RelaySelector
from proxy.net.tls import TlsConfigError
from proxy.observability.logs import Limiter, configure_logs
from proxy.reloading import Told
from proxy.routing.explain import Explanation
from proxy.routing.names import Selectors
from proxy.routing.resolver import Resolver
from proxy.routing.snapshot import SnapshotError, SnapshotFile, unusable
from proxy.settings import Settings, SettingsError, admin_token, load_settings
from proxy.version import build_info
from proxy.wire import StartupOptionError
from proxy.wire.options import parse_startup_options
from registry import Registry, open_registry
from registry.contract import RegistryUnavailable
from registry.errors import RegistryError, SecretError
from registry.keyfile import find_keys
from registry.location import SQLITE, parse_location
from registry.opening import Absent
from registry.secrets import FILE_SETTING, KEYS_VARIABLE, KeyRing

log = structlog.get_logger(__name__)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", envvar="PGTENANT_CONFIG", help="Settings file, as configs/pgtenant.toml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"{build_info()}\n")
        raise typer.Exit


def make_app() -> typer.Typer:
    """Build the command line."""
    app = typer.Typer(
        name="pgtenant",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="A PostgreSQL proxy that routes every connection to its tenant's own database, and pools behind it.",
        epilog="Try it: [bold]pgtenant demo[/bold].  Every command has --help.",
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None:
        del version

    app.command()(serve)
    config = typer.Typer(no_args_is_help=True, help="The settings of a node.")
    config.command("check")(check)
    app.add_typer(config, name="config")
    route = typer.Typer(no_args_is_help=True, help="How connections find their tenant.")
    route.command("explain")(explain)
    app.add_typer(route, name="route")
    registry.cli.register(app)
    demo.register(app)
    return app


def main() -> None:
    """Run the command line; errors that a person can act on are printed without a traceback."""
    if not all(_is_text(argument) for argument in sys.argv[1:]):
        _give_up("an argument is not UTF-8 text", "Set the terminal's encoding to UTF-8.", status=2)
    try:
        make_app()()
    except (SettingsError, ListenError, TlsConfigError, RegistryError) as error:
        _give_up(str(error), error.hint)
    except RegistryUnavailable as error:
        _give_up(
            f"the registry cannot be reached: {error}", "Check that it runs, and registry.url or PGTENANT_REGISTRY."
        )


def _is_text(argument: str) -> bool:
    """Whether an argument was UTF-8; what was not has surrogates in it, which no database takes."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _give_up(message: str, hint: str, *, status: int = 1) -> NoReturn:
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True)
    console.print(f"[bold]hint:[/bold] {escape(hint)}", soft_wrap=True)
    raise SystemExit(status) from None


def serve(config: ConfigOption = None) -> None:
    """Run a node: the proxy, and its HTTP endpoint for metrics and health.

    It needs the registry's keys, in PGTENANT_ENCRYPTION_KEYS or in the file that registry.encryption_keys_file names.
    SIGTERM and Ctrl-C let transactions finish and stop, SIGHUP reads the settings file, certificates, keys and the
    registry again; the log says which settings have changed and which of them need a restart.
    """
    settings = load_settings(config)
    limiter = Limiter(settings.log.lines_per_second)
    configure_logs(style=settings.log.format, level=settings.log.level, limiter=limiter)
    told = _tell(config)

    async def run(selector: RelaySelector) -> None:
        url, interval = told.settings.registry.url.get_secret_value(), told.settings.registry.poll_interval
        absent = await _what_if_absent(told.settings, told.keys)
        async with open_registry(url, told.keys, poll_interval=interval, absent=absent) as opened:
            node = server.Node(
                told,
                selector,
                opened.reader,
                tell=partial(_tell, config),
                inspect_secrets=partial(_inspect_secrets, opened),
                limiter=limiter,
            )
            await serving.serve(node, on_ready=_announce)

    serving.run(run, told.settings)


def _tell(config: Path | None) -> Told:
    """Read all that a node is told; raises SettingsError and SecretError."""
    settings = load_settings(config)
    return Told(settings, _needed_keys(settings), admin_token(settings))


async def _what_if_absent(settings: Settings, keys: KeyRing) -> Absent:
    """Where there is a snapshot, a node goes on without an SQLite registry that is missing or broken.

    Else it refuses to start: an empty file in the place of one that was lost or misspelled would serve nobody.
    """
    path, url = settings.routing.snapshot, settings.registry.url.get_secret_value()
    if path is None or parse_location(url).kind != SQLITE:
        return Absent.REFUSE
    try:
        SnapshotFile(path, keys, refusals=(SecretError, ValueError)).read(time.time())
    except (SnapshotError, FileNotFoundError):
        return Absent.REFUSE
    try:
        async with open_registry(url, keys, absent=Absent.REFUSE):
            return Absent.REFUSE
    except (RegistryError, RegistryUnavailable) as error:
        log.error("the registry cannot be opened, the snapshot is used until it can be", reason=str(error))
        return Absent.AWAIT


def check(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Check the settings file without starting anything, and show what differs from the defaults.

    Run it as the user that the node runs as, and with its environment: files are tried as well, and whether the keys
    are those of the registry.  A reload (SIGHUP) refuses what this refuses.
    """
    settings = load_settings(config)
    wiring.rules_of(settings)
    wiring.client_tls(settings)
    wiring.console_rules(settings)
    admin_token(settings)
    _check_snapshot(settings)
    unknown = _check_keys(settings)
    changed = _changed(settings)
    if as_json:
        sys.stdout.write(json.dumps({"ok": True, "changed": dict(changed), "unchecked": unknown}) + "\n")
        return
    console = Console()
    if changed:
        table = Table("setting", "value")
        for name, value in changed:
            table.add_row(name, escape(str(value)))
        console.print(table)
    console.print("The settings are fine." if changed else "The settings are fine; all are defaults.")
    for what, why in unknown.items():
        console.print(f"Not checked: {what}, because {escape(why)}.", highlight=False)


def _changed(settings: Settings) -> list[tuple[str, object]]:
    """What differs from the defaults, without secrets.  Raises Invalid for a registry's URL that cannot be read."""
    defaults, shown = Settings(), settings.model_dump(mode="json")
    shown["registry"]["url"] = str(parse_location(settings.registry.url.get_secret_value()))
    return [
        (f"{section}.{name}", value)
        for section, values in shown.items()
        for name, value in values.items()
        if getattr(getattr(settings, section), name) != getattr(getattr(defaults, section), name)
    ]


def _check_snapshot(settings: Settings) -> None:
    path = settings.routing.snapshot
    problem = "" if path is None else unusable(path)
    if problem:
        raise SettingsError(
            f"routing.snapshot cannot be used: {problem}",
            "The directory has to exist and to be the node's own user's to write in; run this as that user.",
        )


def _check_keys(settings: Settings) -> dict[str, str]:
    """Hold the keys against the registry; returns why that could not be done.  Raises SecretError where they differ."""
    what = "the keys"
    ring = find_keys(settings.registry.encryption_keys_file)
    if ring is None:
        return {what: f"{KEYS_VARIABLE} is not set, nor {FILE_SETTING}"}

    async def look() -> None:
        async with open_registry(settings.registry.url.get_secret_value(), ring, absent=Absent.REFUSE) as opened:
            await opened.check_secrets()

    try:
        asyncio.run(look())
    except SecretError:
        raise
    except RegistryUnavailable as error:
        return {what: f"the registry cannot be reached: {error}"}
    except RegistryError as error:
        return {what: error.message}
    return {}


def explain(
    user: Annotated[str, typer.Option("--user", "-U", help="User name as the client sends it.")],
    database: Annotated[str | None, typer.Option("--database", "-d", help="Database name, if any.")] = None,
    options: Annotated[str, typer.Option(help='Startup options, for example "-c tenant=acme".')] = "",
    sni: Annotated[str | None, typer.Option(help="Host name in the TLS handshake, if any.")] = None,
    address: Annotated[str | None, typer.Option(help="Address that the client comes from.")] = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Explain step by step which tenant a connection would reach, and why.

    pgtenant route explain --user app.acme --database shop
    """
    settings = load_settings(config)
    rules = wiring.rules_of(settings)
    try:
        pairs = parse_startup_options(options, rules.option_names)
    except StartupOptionError as error:
        raise SettingsError(f"--options: {error}", 'Write them as "-c name=value -c name=value".') from None

    keys = find_keys(settings.registry.encryption_keys_file)

    async def ask() -> Explanation:
        url = settings.registry.url.get_secret_value()
        async with open_registry(url, keys, absent=Absent.REFUSE) as opened:
            resolver = Resolver(opened.reader, rules=rules, config=wiring.resolver_config(settings))
            try:
                return await resolver.explain(Selectors(user, database, pairs, sni), address)
            finally:
                await resolver.close()

    found = asyncio.run(ask())
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict()) + "\n")
    else:
        _print_explanation(found)
    if not found.ok:
        raise typer.Exit(1)


def _needed_keys(settings: Settings) -> KeyRing:
    """The key ring of file and environment; without one a node could not open a single password."""
    keys = find_keys(settings.registry.encryption_keys_file)
    if keys is None:
        raise SecretError(
            f"{KEYS_VARIABLE} is not set, nor {FILE_SETTING}, and the registry's passwords cannot be opened without",
            f'export {KEYS_VARIABLE}="$(pgtenant secrets generate-key)", the same for every node and every command.',
        )
    return keys


async def _inspect_secrets(opened: Registry, keys: KeyRing) -> str:
    """Why the registry's secrets cannot be opened with these keys, `""` if they can."""
    try:
        await opened.check_secrets(keys)
    except SecretError as error:
        return f"{error.message} ({error.hint})"
    except RegistryError as error:
        raise RegistryUnavailable(error.message) from None
    return ""


def _announce(node: server.Node) -> None:
    info = build_info()
    missing = {check.name: check.detail for check in node.readiness() if not check.ok}
    says = partial(log.error, missing=missing) if missing else log.info
    says(
        "serving, but not ready" if missing else "ready",
        host=node.settings.listen.host,
        port=node.listener.port,
        http_port=node.http_port,
        version=info.version,
        relay=info.relay,
    )


def _print_explanation(found: Explanation) -> None:
    console = Console()
    table = Table("selector", "value", "says", "found", "note")
    for step in found.steps:
        mark = "[bold]" if step.decides else ""
        cells = (step.selector, step.value, step.says, step.found, step.note)
        table.add_row(*(mark + escape(cell if cell is not None else "-") for cell in cells))
    console.print(table)
    where = found.destination
    if where is not None:
        addresses = ", ".join(where.addresses)
        lines = (
            f"tenant {where.tenant} ({where.state}), generation {where.generation}",
            f"server {where.server} ({addresses}), database {where.database}{', shared' if where.shared else ''}"
            if where.server is not None
            else "no server and database",
            f"{'no role' if where.role is None else f'role {where.role}'}, pool mode {where.pool_mode}",
        )
        console.print(escape("\n".join(lines)), highlight=False)
    login = found.login or f"there is no login {found.user} here"
    console.print(f"login: {escape(login)}", highlight=False)
    if found.note is not None:
        console.print(escape(found.note), highlight=False)
    if found.problem is not None:
        console.print(
            f"[bold red]refused[/bold red] ({found.problem.sqlstate}): {escape(found.problem.message)}", highlight=False
        )
        if found.problem.hint:
            console.print(f"[bold]hint:[/bold] {escape(found.problem.hint)}", highlight=False)
