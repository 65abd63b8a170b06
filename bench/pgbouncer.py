"""PgBouncer as a way to the server, set up to do the same work as pgtenant."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from bench.model import PGBOUNCER, BenchError, Cell, Endpoint, Scenario
from bench.targets import HOST, MAX_CLIENTS, plain_environment, wait_until_listening
from proxy.demo.install import server_account
from proxy.demo.kept import KeptProcess
from proxy.demo.ports import free_port

INSTALL_HINT = "install PgBouncer (Debian, Ubuntu: apt install pgbouncer; macOS: brew install pgbouncer; others: \
https://www.pgbouncer.org/install.html), or name it with --pgbouncer PATH"
ELSEWHERE = (Path("/usr/sbin/pgbouncer"), Path("/usr/local/sbin/pgbouncer"))
FIRST_WITH_PREPARED = (1, 21)
MAX_PREPARED = 200
# Newer versions wait for their clients then; there are none left when it is stopped.
STOP = signal.SIGTERM


def find_pgbouncer(wanted: Path | None) -> Path:
    """The program to use.

    Raises BenchError with a hint how to install it.
    """
    if wanted is not None:
        if not os.access(wanted, os.X_OK):
            raise BenchError(f"{wanted} is no program", "give the path of PgBouncer's executable")
        return wanted.resolve()
    found = shutil.which("pgbouncer")
    for path in (*([Path(found)] if found else []), *ELSEWHERE):
        if os.access(path, os.X_OK):
            return path
    raise BenchError("PgBouncer is not installed", INSTALL_HINT)


def parse_version(text: str) -> tuple[int, int]:
    """Read the major and minor number from what `pgbouncer --version` prints.

    Raises BenchError.
    """
    found = re.search(r"PgBouncer (\d+)\.(\d+)", text)
    if found is None:
        raise BenchError(f"this is no PgBouncer: {text.strip()[:100]!r}", INSTALL_HINT)
    return int(found[1]), int(found[2])


class PgBouncer:
    """One PgBouncer in transaction pooling mode, with its usual settings else.

    Its clients log in with SCRAM against the server's own verifier, which it also uses to log in to the server.  As
    root it runs as another user of the machine, because it refuses to be root.
    """

    name = PGBOUNCER

    def __init__(self, program: Path, server: Endpoint, verifier: str, pool_size: int, directory: Path) -> None:
        self.program = program
        self.version_text = _version_text(program)
        self.version = parse_version(self.version_text)
        self.endpoint = Endpoint(HOST, free_port(HOST), server.user, server.database, server.password)
        self._server = server
        self._verifier = verifier
        self._pool_size = pool_size
        self._directory = directory
        self._account = server_account()
        self._process: KeptProcess | None = None

    @property
    def proxy_pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        config = self._write("pgbouncer.ini", self._settings_text())
        self._write("userlist.txt", f'"{self._server.user}" "{self._verifier}"\n')
        log = self._directory / "pgbouncer.log"
        try:
            self._process = KeptProcess(
                [str(self.program), str(config)],
                env=plain_environment(),
                cwd=Path("/"),
                log=log,
                account=self._account,
                end_signal=STOP,
                remove=[self._directory],
            )
        except OSError as error:
            raise BenchError(f"PgBouncer cannot be run: {error}", INSTALL_HINT) from error
        wait_until_listening(self._process, self.endpoint.port, log, "PgBouncer")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.end(STOP)

    def unfit_for(self, cell: Cell) -> str | None:
        if cell.scenario is Scenario.PREPARED and not self._keeps_prepared:
            major, minor = FIRST_WITH_PREPARED
            return f"{self.version_text} has no prepared statements in transaction mode ({major}.{minor} and newer do)"
        return None

    def facts(self) -> Mapping[str, str]:
        return {"version": self.version_text, "settings": "; ".join(self._settings())}

    @property
    def _keeps_prepared(self) -> bool:
        return self.version >= FIRST_WITH_PREPARED

    def _settings(self) -> list[str]:
        settings = [
            "auth_type = scram-sha-256",
            "pool_mode = transaction",
            f"default_pool_size = {self._pool_size}",
            f"max_client_conn = {MAX_CLIENTS}",
            "server_tls_sslmode = disable",
        ]
        return [*settings, f"max_prepared_statements = {MAX_PREPARED}"] if self._keeps_prepared else settings

    def _settings_text(self) -> str:
        server = self._server
        return "\n".join(
            [
                "[databases]",
                f"{server.database} = host={server.host} port={server.port} dbname={server.database}",
                "[pgbouncer]",
                f"listen_addr = {HOST}",
                f"listen_port = {self.endpoint.port}",
                "unix_socket_dir =",
                f"auth_file = {self._directory / 'userlist.txt'}",
                *self._settings(),
                "",
            ]
        )

    def _write(self, name: str, content: str) -> Path:
        path = self._directory / name
        path.touch(0o600)
        path.write_text(content)
        if self._account is not None:
            os.chown(path, self._account.user_id, self._account.group_id)
        return path


def _version_text(program: Path) -> str:
    try:
        ran = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{program} cannot be run: {error}", INSTALL_HINT) from error
    return ran.stdout.strip().splitlines()[0] if ran.stdout.strip() else ran.stderr.strip()
