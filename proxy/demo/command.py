"""`pgtenant demo`: the whole product on one machine, with nothing to install or configure."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from proxy.demo.install import EmbeddedError
from proxy.demo.kept import KeptProcess
from proxy.demo.stage import HOST, Stage

DEFAULT_PORT = 6432
DEFAULT_HTTP_PORT = 6480
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAILED = 1
LOG_TAIL = 2_000


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line said; without `run`, ports of None are the usual ones, with it any free ones."""

    port: int | None = None
    http_port: int | None = None
    run: str | None = None


class Interrupted(BaseException):
    """A signal asked this program to end; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.status = 128 + number


def register(app: typer.Typer) -> None:
    """Add the `demo` command to a command line."""

    @app.command()
    def demo(
        port: Annotated[
            int | None,
            typer.Option(min=1, max=65535, help=f"Port of the proxy (default {DEFAULT_PORT}; with --run any free one)"),
        ] = None,
        http_port: Annotated[
            int | None,
            typer.Option(
                min=1,
                max=65535,
                help=f"Port of metrics and health (default {DEFAULT_HTTP_PORT}; with --run any free one)",
            ),
        ] = None,
        run: Annotated[
            str | None,
            typer.Option(
                metavar="COMMAND", help="Run COMMAND in a shell against the demo, stop all, exit with its status"
            ),
        ] = None,
    ) -> None:
        """Try pgtenant: two PostgreSQL servers, four tenants and the proxy, until Ctrl-C.

        Everything lives in a temporary directory and is gone afterwards.  COMMAND finds the proxy in PGTENANT_PORT,
        PGTENANT_HTTP_URL, PGTENANT_CONSOLE_URL and PGTENANT_ADMIN_TOKEN, each tenant's connection URL in ACME_URL,
        GLOBEX_URL, INITECH_URL and UMBRELLA_URL, and `psql`, `pgbench` and `pgtenant` on its PATH:

        pgtenant demo --run 'psql "$ACME_URL" -c "select * from best_sellers"'

        It ends with its terminal, too.  Start it with nohup, and it goes on until `kill`, or the end of COMMAND.
        """
        raise typer.Exit(run_demo(DemoOptions(port, http_port, run)))


def run_demo(options: DemoOptions) -> int:
    """Run the demonstration until it is interrupted or its command ends; return the exit status.

    Call it in the main thread: it takes over SIGINT, SIGTERM and SIGHUP while it runs.
    """
    errors = Console(stderr=True, highlight=False)
    try:
        with _signals_raise():
            if options.run is None:
                return _show(options, Console(highlight=False))
            return _run_command(options, options.run)
    except EmbeddedError as error:
        errors.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
        errors.print(f"[bold]hint:[/] {escape(error.hint)}", soft_wrap=True)
        return FAILED
    except Interrupted as interruption:
        return interruption.status


def _show(options: DemoOptions, console: Console) -> int:
    begun = time.monotonic()
    with ExitStack() as stack:
        with console.status("starting") as status:
            stage = stack.enter_context(
                Stage(
                    port=DEFAULT_PORT if options.port is None else options.port,
                    http_port=DEFAULT_HTTP_PORT if options.http_port is None else options.http_port,
                    progress=lambda text: status.update(f"{text} ..."),
                )
            )
        _introduce(stage, console, time.monotonic() - begun)
        try:
            outcome = stage.node.wait()
        except Interrupted as interruption:
            # The terminal may be what has ended.
            with suppress(OSError):
                console.print("\nstopping everything")
            if interruption.number == signal.SIGINT:
                return 0
            raise
        raise EmbeddedError(
            f"the proxy ended by itself with status {outcome}; its log ends:\n{stage.node.logs()[-LOG_TAIL:]}",
            "the log above says why",
        )


def _introduce(stage: Stage, console: Console, seconds: float) -> None:
    where = "psql" if shutil.which("psql") else shlex.quote(str(stage.client_bin_dir / "psql"))
    servers = ", ".join(f"PostgreSQL {server.version} on port {server.port}" for server in stage.servers.values())
    console.print(
        f"[bold green]Ready[/] after {seconds:.1f} s: the proxy on {HOST}:{stage.port}, behind it {servers}.\n"
    )
    console.print("[bold]One tenant, one line[/] (each reaches a database of its own):")
    for tenant in stage.tenants:
        console.print(f"  {where} '{stage.url(tenant)}'", soft_wrap=True, markup=False)
    console.print("\n[bold]The console[/] (SHOW HELP lists what it knows):")
    console.print(f"  {where} '{stage.console_url}' -c 'show clients'", soft_wrap=True, markup=False)
    console.print(f"\n[bold]Metrics[/]  {stage.node.http_url}/metrics   [bold]health[/]  {stage.node.http_url}/readyz")
    console.print(f"[bold]Log[/]      {escape(str(stage.node.log_file))}", soft_wrap=True)
    console.print("\n[bold]What to try next[/], in another terminal:")
    for command in (
        f". {shlex.quote(str(stage.environment_file))}",
        'psql "$ACME_URL" -c "select * from best_sellers"',
        'psql "$GLOBEX_URL" -c "select version()"',
        'psql "$PGTENANT_CONSOLE_URL" -c "show pools"',
        "pgtenant tenant list",
        "pgtenant route explain --user app --database acme",
        "pgtenant tenant suspend initech",
        'pgbench --no-vacuum --client 8 --time 5 --file <(echo "select count(*) from sales") "$ACME_URL"',
    ):
        console.print(f"  {command}", soft_wrap=True, markup=False)
    how = f"kill {os.getpid()}" if _is_ignored(signal.SIGINT) else "Ctrl-C"
    console.print(f"\n{how} stops everything and leaves nothing behind.")


def _run_command(options: DemoOptions, command: str) -> int:
    with Stage(port=options.port, http_port=options.http_port) as stage:
        process = KeptProcess(
            ["/bin/sh", "-c", command],
            env={**os.environ, **stage.environment(), "PATH": stage.search_path()},
            foreground=True,
            sweep=True,
        )
        try:
            return process.wait()
        except Interrupted as interruption:
            process.end(interruption.number)
            raise


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn the first signal into `Interrupted` and ignore those after it: clearing up is not to be cut short."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)

    # Under nohup the end of the terminal is no reason to stop, in a script's background another's Ctrl-C.
    taken = [number for number in SIGNALS if number == signal.SIGTERM or not _is_ignored(number)]
    before = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
