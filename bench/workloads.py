"""What is done with a way to the server, one class per kind of measurement."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psycopg

from bench.model import COPIES, QUERY_MODES, BenchError, Cell, Endpoint, Reading, Scenario
from bench.options import Options
from bench.pgbench import Tools
from bench.processes import cpu_seconds, memory_bytes
from bench.targets import Target
from bench.world import COPY_SINK

TRANSACTION, CONNECTION, ROW, COPY, CLIENT = "transaction", "connection", "row", "copy", "client"
COPY_OUT = (
    "copy (select id, 'customer ' || id || repeat('x', :filler), round((id % 100000) / 100.0, 2)"
    " from (select generate_series(1, :rows) as id) as series) to stdout"
)
COPY_PATIENCE = 900.0
IDLE_ROUNDS = 3
SETTLE = 1.0
SPARE_FILES = 200
CONNECT_TIMEOUT = 30


class Workload(Protocol):
    """One cell's work."""

    @property
    def cell(self) -> Cell: ...

    @property
    def rounds(self) -> int | None:
        """The most rounds that make sense; None for as many as wanted."""
        ...

    @property
    def proxies_only(self) -> bool:
        """Whether there is nothing to measure without a proxy."""
        ...

    def run(self, target: Target) -> Reading:
        """Do it once; raises BenchError."""
        ...


@dataclass(frozen=True, slots=True)
class Queries:
    """pgbench's select-only script for some seconds; with `reconnect` a new connection for each transaction."""

    cell: Cell
    tools: Tools
    mode: str
    seconds: int
    threads: int
    reconnect: bool = False
    rounds: int | None = None
    proxies_only: bool = False

    def run(self, target: Target) -> Reading:
        before = _cpu(target)
        report = self.tools.pgbench(
            target.endpoint,
            mode=self.mode,
            clients=self.cell.clients,
            threads=self.threads,
            seconds=self.seconds,
            reconnect=self.reconnect,
        )
        return Reading(rate=report.tps, cpu=_cpu_since(target, before, per=report.transactions))


@dataclass(frozen=True, slots=True)
class CopyOut:
    """One COPY TO STDOUT of generated rows, which psql throws away."""

    cell: Cell
    tools: Tools
    rows: int
    filler: int
    rounds: int | None = None
    proxies_only: bool = False

    def run(self, target: Target) -> Reading:
        with Path("/dev/null").open("wb") as sink:
            return _copy(
                target,
                self.rows,
                lambda: self.tools.psql(
                    copy_statement(self.rows, self.filler), target.endpoint, stdout=sink, patience=COPY_PATIENCE
                ),
            )


@dataclass(frozen=True, slots=True)
class CopyIn:
    """One COPY FROM STDIN of the same rows from a file.

    The server reads every row and stores none (`WHERE false`): what is measured is the way there.
    """

    cell: Cell
    tools: Tools
    rows: int
    filler: int
    file: Path
    origin: Endpoint
    rounds: int | None = None
    proxies_only: bool = False

    def run(self, target: Target) -> Reading:
        if not self.file.exists():
            self._write_file()
        with self.file.open("rb") as source:
            return _copy(
                target,
                self.rows,
                lambda: self.tools.psql(
                    f"copy {COPY_SINK} from stdin where false", target.endpoint, stdin=source, patience=COPY_PATIENCE
                ),
            )

    def _write_file(self) -> None:
        unfinished = self.file.with_suffix(".unfinished")
        with unfinished.open("wb") as sink:
            self.tools.psql(copy_statement(self.rows, self.filler), self.origin, stdout=sink, patience=COPY_PATIENCE)
        unfinished.rename(self.file)


@dataclass(frozen=True, slots=True)
class Idle:
    """Many clients that have run one query and then do nothing; the proxy is started anew for it."""

    cell: Cell
    rounds: int | None = IDLE_ROUNDS
    proxies_only: bool = True

    def run(self, target: Target) -> Reading:
        clients = self.cell.clients
        _allow_files(clients + SPARE_FILES)
        target.stop()
        target.start()
        pid = target.proxy_pid
        if pid is None:
            raise BenchError("there is no proxy in between")
        # The first client opens the backend and fills the caches: that belongs to the base.
        with _connect_and_ask(target.endpoint):
            time.sleep(SETTLE)
        base = memory_bytes(pid)
        with ExitStack() as stack:
            begun = time.monotonic()
            for _ in range(clients):
                stack.enter_context(_connect_and_ask(target.endpoint))
            seconds = time.monotonic() - begun
            time.sleep(SETTLE)
            grown = memory_bytes(pid) - base
        return Reading(rate=clients / seconds, base=base, per_client=grown / clients)


def copy_statement(rows: int, filler: int) -> str:
    """A COPY of generated rows, which the server makes one by one as it sends them."""
    return COPY_OUT.replace(":rows", str(rows)).replace(":filler", str(filler))


def make_workloads(options: Options, tools: Tools, origin: Endpoint, directory: Path) -> Sequence[Workload]:
    """The work of every wanted cell; `origin` is the server itself, `directory` takes the rows for COPY."""
    workloads: list[Workload] = []
    for scenario in options.scenarios:
        if scenario in QUERY_MODES:
            workloads.extend(
                Queries(
                    Cell(scenario, clients, TRANSACTION, TRANSACTION),
                    tools,
                    str(scenario),
                    options.seconds,
                    options.threads,
                )
                for clients in options.clients
            )
        elif scenario is Scenario.CONNECT:
            cell = Cell(scenario, options.connect_clients, CONNECTION, CONNECTION)
            workloads.append(Queries(cell, tools, "simple", options.seconds, options.threads, reconnect=True))
        elif scenario in COPIES:
            cell = Cell(scenario, 1, ROW, COPY)
            workloads.append(
                CopyOut(cell, tools, options.copy_rows, options.copy_filler)
                if scenario is Scenario.COPY_OUT
                else CopyIn(cell, tools, options.copy_rows, options.copy_filler, directory / "rows", origin)
            )
        else:
            workloads.append(Idle(Cell(scenario, options.idle_clients, CLIENT, CLIENT)))
    return workloads


def _copy(target: Target, rows: int, copy: Callable[[], object]) -> Reading:
    before = _cpu(target)
    begun = time.monotonic()
    copy()
    seconds = time.monotonic() - begun
    return Reading(rate=rows / seconds, cpu=_cpu_since(target, before, per=1))


def _cpu(target: Target) -> float | None:
    return None if target.proxy_pid is None else cpu_seconds(target.proxy_pid)


def _cpu_since(target: Target, before: float | None, *, per: int) -> float | None:
    now = _cpu(target)
    return None if now is None or before is None else (now - before) / per


def _connect_and_ask(endpoint: Endpoint) -> psycopg.Connection[tuple[object, ...]]:
    try:
        connection = psycopg.connect(
            host=endpoint.host,
            port=endpoint.port,
            user=endpoint.user,
            password=endpoint.password,
            dbname=endpoint.database,
            sslmode="disable",
            gssencmode="disable",
            connect_timeout=CONNECT_TIMEOUT,
            autocommit=True,
            prepare_threshold=None,
        )
        connection.execute("select 1")
    except psycopg.Error as error:
        raise BenchError(f"a client could not connect and ask: {str(error).strip()}") from error
    return connection


def _allow_files(wanted: int) -> None:
    """Let this program, and the proxies that it starts from now on, open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise BenchError(f"{wanted} open files are not allowed here (limit {hard})", "use fewer --idle-clients")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
