"""PostgreSQL servers from Python wheels, started and stopped as children of this program."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from proxy.demo.facts import ServerFacts, clean_environment
from proxy.demo.install import (
    EmbeddedError,
    Installation,
    find_installation,
    reachable_installation,
    server_account,
)
from proxy.demo.kept import KeptProcess
from proxy.demo.ports import PortClaim, claim_port

HOST = "127.0.0.1"
POLL_INTERVAL = 0.01
KILL_PATIENCE = 10.0
LOG_TAIL = 2_000
# The address of a Unix socket has 104 bytes on some systems; its name here is `/.s.PGSQL.` and a port.
LONGEST_SOCKET_DIRECTORY = 85
STATUS_LINE = 7
STOP_SIGNALS: Mapping[str, signal.Signals] = MappingProxyType(
    {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
)
QUICK_NOT_DURABLE: Mapping[str, str] = MappingProxyType({"fsync": "off", "full_page_writes": "off"})


class EmbeddedServer:
    """One PostgreSQL server (major version 17 or 18) with a fresh cluster in a temporary directory.

    It listens on 127.0.0.1 and, where its path is short enough, on a Unix socket in its data directory; it wants
    SCRAM-SHA-256 from everyone unless `hba` gives the lines of pg_hba.conf.  `durable=False` trades safety in a
    power cut for speed.  `tls` is a certificate chain and its key in PEM; only version 17 is built with TLS.
    `settings` are any others of postgresql.conf.  The superuser is `postgres`, its password random.

    It ends with this program even if that is killed.  Methods block; they are safe in any thread, one at a time.
    As root it runs as another user of the machine.  All methods raise EmbeddedError with a hint.
    """

    def __init__(
        self,
        version: int = 18,
        *,
        port: int | None = None,
        max_connections: int = 100,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        hba: Sequence[str] | None = None,
        tls: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.version = version
        self.host = HOST
        self.superuser = "postgres"
        self.password = secrets.token_urlsafe(18)
        self.installation = find_installation(version)
        self._account = server_account()
        self._wanted_port = port
        self._port = port
        self._claim: PortClaim | None = None
        self._hba = hba
        self._tls = tls
        self._settings = {
            "listen_addresses": HOST,
            "max_connections": str(max_connections),
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **({} if durable else QUICK_NOT_DURABLE),
            **(settings or {}),
        }
        self._base: Path | None = None
        self._runnable: Installation | None = None
        self._process: KeptProcess | None = None

    @property
    def port(self) -> int:
        """The TCP port; it stays the same over restarts."""
        if self._port is None:
            raise EmbeddedError("this server has no port yet", "call start() first")
        return self._port

    @property
    def base_dir(self) -> Path:
        """The temporary directory that holds everything of this server."""
        if self._base is None:
            raise EmbeddedError("this server has no directory yet", "call start() first")
        return self._base

    @property
    def data_dir(self) -> Path:
        """The data directory, which also holds the Unix socket."""
        return self.base_dir / "data"

    @property
    def bin_dir(self) -> Path:
        """The directory of `psql`, `pgbench` and the other programs of this version."""
        return self.installation.bin_dir

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._process is None:
            raise EmbeddedError("this server does not run", "call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def facts(self) -> ServerFacts:
        """What another process needs to use this server."""
        return ServerFacts(
            self.version, self.host, self.port, self.superuser, self.password, self.bin_dir, self.base_dir
        )

    def url(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """A libpq URL of a database here, as the superuser or as the given role; it contains the password."""
        return self.facts.url(database, user=user, password=password)

    def logs(self) -> str:
        """Everything the server has logged so far."""
        return self.facts.logs()

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run an SQL script as the superuser, stopping at its first error; return psql's unaligned output."""
        return self.facts.psql(sql, database)

    def start(self) -> None:
        """Create the cluster if there is none, start the server and return once it accepts connections."""
        if self.running:
            return
        if self._base is None:
            self._base = self._create_cluster()
        attempts = 1 if self._wanted_port is not None or self._port is not None else 5
        for attempt in range(attempts):
            if self._port is None or attempt > 0:
                self._claim = claim_port(HOST)
                self._port = self._claim.port
            self._configure()
            if self._launch():
                return
            if "Address already in use" not in self.logs()[-LOG_TAIL:]:
                break
        tail = self.logs()[-LOG_TAIL:]
        taken = "Address already in use" in tail
        raise EmbeddedError(
            f"embedded PostgreSQL {self.version} did not start; its log ends:\n{tail}",
            f"port {self._port} is taken, choose another" if taken else "the log above says why",
        )

    def stop(self, mode: str = "fast", *, patience: float = 30.0) -> None:
        """Stop the server (`smart`, `fast` or `immediate`, as pg_ctl has them) and keep its data."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.end(STOP_SIGNALS[mode], patience=patience)

    def kill(self) -> None:
        """Kill every process of the server with SIGKILL, as a crash of the machine would; the data stay."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            children = _children_of(process.pid)
            process.end(signal.SIGKILL)
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + KILL_PATIENCE
            while any(map(_lives, children)) and time.monotonic() < deadline:
                time.sleep(POLL_INTERVAL)

    def restart(self, mode: str = "fast") -> None:
        """Stop the server and start it again on the same port."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and delete its files."""
        self.stop()
        base, self._base = self._base, None
        if base is not None:
            shutil.rmtree(base, ignore_errors=True)

    def _create_cluster(self) -> Path:
        base = Path(tempfile.mkdtemp(prefix=f"pgtenant-pg{self.version}-"))
        try:
            base.chmod(0o711)
            self._runnable = reachable_installation(self.installation, self._account, base / "pg")
            data = base / "data"
            data.mkdir(0o700)
            self._give_away(data)
            self._initdb(base, data)
        except BaseException:
            shutil.rmtree(base, ignore_errors=True)
            raise
        return base

    def _initdb(self, base: Path, data: Path) -> None:
        password_file = base / "password"
        self._write_private(password_file, self.password.encode() + b"\n")
        command = [
            self._tool("initdb"),
            f"--pgdata={data}",
            f"--username={self.superuser}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ]
        log = base / "initdb.log"
        with KeptProcess(
            command, env=clean_environment(), cwd=base, log=log, account=self._account, remove=[base]
        ) as process:
            status = process.wait(timeout=120)
        password_file.unlink()
        if status != 0:
            output = log.read_text(errors="replace")[-LOG_TAIL:]
            raise EmbeddedError(
                f"initdb of PostgreSQL {self.version} failed:\n{output}",
                f"set TMPDIR to a directory which the user {self._account.name!r} can enter"
                if self._account and "ermission denied" in output
                else "the output above says why; is the disk full?",
            )

    def _configure(self) -> None:
        sockets = str(self.data_dir) if len(str(self.data_dir)) <= LONGEST_SOCKET_DIRECTORY else ""
        settings = {**self._settings, "port": str(self.port), "unix_socket_directories": sockets}
        if self._tls is not None:
            for name, pem in zip(("server.crt", "server.key"), self._tls, strict=True):
                self._write_private(self.data_dir / name, pem)
            settings["ssl"] = "on"
        lines = "".join(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())
        self._write_private(self.data_dir / "postgresql.conf", lines.encode())
        if self._hba is not None:
            self._write_private(self.data_dir / "pg_hba.conf", "".join(f"{line}\n" for line in self._hba).encode())

    def _launch(self) -> bool:
        """Start the postmaster and wait until it says that it is ready; False when it ended instead."""
        self._process = process = KeptProcess(
            [self._tool("postgres"), "-D", str(self.data_dir)],
            env=clean_environment(),
            cwd=self.base_dir,
            log=self.base_dir / "server.log",
            account=self._account,
            end_signal=signal.SIGQUIT,
            remove=[self.base_dir],
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._says_ready(process.pid):
                return True
            if process.poll() is not None:
                self._process = None
                return False
            time.sleep(POLL_INTERVAL)
        self.stop("immediate")
        return False

    def _says_ready(self, pid: int) -> bool:
        """Whether the status line of postmaster.pid is "ready", which is how pg_ctl waits, too."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > STATUS_LINE and lines[0] == str(pid) and lines[STATUS_LINE].strip() == "ready"

    def _tool(self, name: str) -> str:
        return (self._runnable or self.installation).tool(name)

    def _give_away(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.user_id, self._account.group_id)

    def _write_private(self, path: Path, content: bytes) -> None:
        path.touch(0o600)
        path.write_bytes(content)
        self._give_away(path)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _children_of(parent: int) -> list[int]:
    """The direct children of a process, where /proc tells (Linux); elsewhere they notice its end by themselves."""
    children = []
    for entry in Path("/proc").glob("[0-9]*"):
        status = _process_status(int(entry.name))
        if len(status) > 1 and int(status[1]) == parent:
            children.append(int(entry.name))
    return children


def _lives(pid: int) -> bool:
    status = _process_status(pid)
    return bool(status) and status[0] != "Z"


def _process_status(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third (state, parent ...) on; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    # The second field, the command's name in parentheses, may itself contain spaces and parentheses.
    return text.rpartition(")")[2].split()
