"""The ways to the server: direct, or through a proxy that is started for it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bench.model import DIRECT, BenchError, Cell, Endpoint
from proxy.demo.kept import KeptProcess

HOST = "127.0.0.1"
# Room for the idle clients; both proxies get the same.
MAX_CLIENTS = 10_000
POLL_INTERVAL = 0.02
START_PATIENCE = 30.0
LOG_TAIL = 1_500
CALLERS_OWN = ("PG", "PGTENANT_", "PYTHON", "PGBOUNCER")


class Target(Protocol):
    """A way to the server.  `start` and `stop` may be called again and again, in turn."""

    @property
    def name(self) -> str: ...

    @property
    def endpoint(self) -> Endpoint: ...

    @property
    def proxy_pid(self) -> int | None:
        """The root of the proxy's process tree; None where there is none in between."""
        ...

    def start(self) -> None:
        """Start the proxy and return when it takes connections; raises BenchError."""
        ...

    def stop(self) -> None:
        """Stop the proxy, if it runs."""
        ...

    def unfit_for(self, cell: Cell, /) -> str | None:
        """Why this cell cannot be measured here, or None."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Versions and settings, for the record."""
        ...


class Direct:
    """No proxy at all."""

    name = DIRECT
    proxy_pid: int | None = None

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def start(self) -> None:
        """Nothing is to be started."""

    def stop(self) -> None:
        """Nothing is to be stopped."""

    def unfit_for(self, _cell: Cell) -> str | None:
        return None

    def facts(self) -> Mapping[str, str]:
        return {}


def wait_until_listening(process: KeptProcess, port: int, log: Path, name: str) -> None:
    """Wait until a port takes connections.

    Raises BenchError with the end of the log when the process ends instead, or does not listen within 30 seconds.
    """
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(POLL_INTERVAL)
    outcome = "did not start in time" if process.poll() is None else f"ended with status {process.poll()}"
    tail = log.read_text(errors="replace")[-LOG_TAIL:].strip() if log.exists() else ""
    raise BenchError(f"{name} {outcome}; its log ends:\n{tail}", "the log above says why")


def plain_environment() -> dict[str, str]:
    """The environment here, without what would change a proxy, PostgreSQL's programs or Python's imports."""
    return {name: value for name, value in os.environ.items() if not name.startswith(CALLERS_OWN)}
