"""The PostgreSQL server under all ways, with its data, and the ways themselves: started and stopped together."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.model import DIRECT, PGBOUNCER, BenchError, Endpoint
from bench.options import Options
from bench.pgbench import Tools
from bench.pgbouncer import PgBouncer, find_pgbouncer
from bench.pgtenant import Pgtenant
from bench.targets import Direct, Target
from proxy.demo.embedded import EmbeddedServer

ROLE, DATABASE = "bench_app", "bench"
POSTGRES = 18
# The clients of the direct way, the pools of both proxies, and room for connections that are just ending.
SPARE_CONNECTIONS = 60
INIT_PATIENCE = 600.0
SERVER_SETTINGS = {
    "shared_buffers": "256MB",
    # Nothing but the measured work may run while it is measured.
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "4GB",
}
# The client derives its key with so many rounds of hashing.  The usual 4,096 cost it more than everything else of a
# login, and no proxy has a part in them: they would only hide what is measured.
SCRAM_ITERATIONS = 1
COPY_SINK = "copy_sink"

Progress = Callable[[str], None]


@dataclass
class World:
    """Everything that is measured, running.

    `targets` are the ways that could be started, `absent` says why the others could not.  Raises BenchError when
    PostgreSQL or pgtenant cannot be started; that PgBouncer cannot is a result and no error.
    """

    options: Options
    progress: Progress = lambda _: None
    targets: dict[str, Target] = field(default_factory=dict)
    absent: dict[str, BenchError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._cleanup = ExitStack()
        self._server: EmbeddedServer | None = None
        self._directory: Path | None = None
        self._origin: Endpoint | None = None

    @property
    def origin(self) -> Endpoint:
        """The server itself, for a client that needs no proxy."""
        if self._origin is None:
            raise BenchError("the servers do not run", "enter the context first")
        return self._origin

    @property
    def server(self) -> EmbeddedServer:
        """The server behind all ways."""
        if self._server is None:
            raise BenchError("the servers do not run", "enter the context first")
        return self._server

    @property
    def directory(self) -> Path:
        """A temporary directory outside of the source tree, for the files of this run."""
        if self._directory is None:
            raise BenchError("the servers do not run", "enter the context first")
        return self._directory

    @property
    def tools(self) -> Tools:
        """The client programs of the server's own version."""
        return Tools(self.server.bin_dir)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._directory = Path(tempfile.mkdtemp(prefix="pgtenant-bench-"))
            stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            # PgBouncer may have to read its files as another user.
            self._directory.chmod(0o711)
            self._origin, verifier = self._start_server(stack)
            for way in self.options.ways:
                self._start_way(way, self._origin, verifier, stack)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _start_server(self, stack: ExitStack) -> tuple[Endpoint, str]:
        self.progress(f"starting PostgreSQL {POSTGRES}")
        options = self.options
        busiest = max(*options.clients, options.connect_clients)
        self._server = server = EmbeddedServer(
            POSTGRES,
            max_connections=busiest + 2 * options.pool_size + SPARE_CONNECTIONS,
            durable=False,
            settings=SERVER_SETTINGS,
        )
        stack.callback(server.close)
        server.start()
        password = secrets.token_urlsafe(18)
        server.psql(
            f"set scram_iterations = {SCRAM_ITERATIONS};\n"
            f"create role {ROLE} login password '{password}';\n"
            f"create database {DATABASE} owner {ROLE};"
        )
        verifier = server.psql("select rolpassword from pg_authid where rolname = 'bench_app'")
        endpoint = Endpoint(server.host, server.port, ROLE, DATABASE, password)
        self.progress("loading the data")
        tools = self.tools
        tools.run(
            "pgbench",
            ["--initialize", "--init-steps=dtgvp", f"--scale={options.scale}", "--quiet"],
            endpoint,
            patience=INIT_PATIENCE,
        )
        tools.psql(f"create table {COPY_SINK} (id bigint, name text, amount numeric)", endpoint)
        return endpoint, verifier

    def _start_way(self, way: str, endpoint: Endpoint, verifier: str, stack: ExitStack) -> None:
        self.progress(f"starting {way}")
        try:
            target = self._make_target(way, endpoint, verifier)
            stack.callback(target.stop)
            target.start()
        except BenchError as error:
            if way != PGBOUNCER:
                raise
            self.absent[way] = error
            return
        self.targets[way] = target

    def _make_target(self, way: str, endpoint: Endpoint, verifier: str) -> Target:
        options = self.options
        if way == DIRECT:
            return Direct(endpoint)
        if way == PGBOUNCER:
            program = find_pgbouncer(options.pgbouncer)
            return PgBouncer(program, endpoint, verifier, options.pool_size, self.directory)
        python = options.proxy_python or Path(sys.executable)
        return Pgtenant(python, endpoint, verifier, options.pool_size, self.directory)
