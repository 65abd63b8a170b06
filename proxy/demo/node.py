"""The proxy as a child process: `python -m proxy serve`, ready to take connections."""

from __future__ import annotations

import http.client
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomlkit

from proxy.demo.install import EmbeddedError
from proxy.demo.kept import KeptProcess

POLL_INTERVAL = 0.02
START_PATIENCE = 30.0
LOG_TAIL = 3_000


class NodeProcess:
    """One proxy node with a configuration file of its own in `directory`.

    `config` has the sections of `pgtenant.toml` and must give the ports (`[listen] port`, `[http] port`); `env` is the
    node's whole environment, `python` the interpreter whose `proxy` it runs.  It ends with this program even if that
    is killed.  Methods block.
    """

    def __init__(
        self,
        config: Mapping[str, Mapping[str, Any]],
        *,
        directory: Path,
        env: Mapping[str, str],
        remove: tuple[Path, ...] = (),
        python: str = sys.executable,
    ) -> None:
        self.config = config
        self.host = str(config["listen"].get("host", "127.0.0.1"))
        self.port = int(config["listen"]["port"])
        self.http_host = str(config["http"].get("host", "127.0.0.1"))
        self.http_port = int(config["http"]["port"])
        self.directory = directory
        self.config_file = directory / "pgtenant.toml"
        self.log_file = directory / "proxy.log"
        self._env = dict(env)
        self._remove = remove
        self._python = python
        self._process: KeptProcess | None = None

    @property
    def http_url(self) -> str:
        """The address of `/metrics`, `/healthz` and `/readyz`, without a slash at its end."""
        return f"http://{self.http_host}:{self.http_port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedError("the proxy does not run", "call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def logs(self) -> str:
        """The whole lines that the node has logged so far."""
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return text[: text.rfind("\n") + 1]

    def write_config(self) -> None:
        """Write the configuration file, readable by its owner only."""
        self.config_file.touch(0o600)
        self.config_file.write_text(tomlkit.dumps(self.config))

    def start(self, *, wait: bool = True) -> None:
        """Start the node and return once it says that it is ready (at once, without `wait`).

        Raises EmbeddedError with the end of its log when it ends instead, or is not ready within 30 seconds.
        """
        self.write_config()
        self._process = KeptProcess(
            [self._python, "-m", "proxy", "serve", "--config", str(self.config_file)],
            env=self._env,
            log=self.log_file,
            remove=self._remove,
        )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until `/readyz` answers 200."""
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline and self.running:
            if self.is_ready():
                return
            time.sleep(POLL_INTERVAL)
        outcome = "was not ready in time" if self.running else "ended"
        self.kill()
        raise EmbeddedError(f"the proxy {outcome}; its log ends:\n{self.logs()[-LOG_TAIL:]}", "the log above says why")

    def is_ready(self) -> bool:
        try:
            status, _ = self.http("GET", "/readyz")
        except (OSError, http.client.HTTPException):
            return False
        return status == http.HTTPStatus.OK

    def http(self, method: str, path: str, *, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """One request to the HTTP endpoint; returns status and body."""
        connection = http.client.HTTPConnection(self.http_host, self.http_port, timeout=10)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def send_signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status; raises TimeoutError."""
        if self._process is None:
            raise EmbeddedError("the proxy does not run", "call start() first")
        return self._process.wait(timeout)

    def stop(self, *, patience: float = 15.0) -> int | None:
        """Stop it with SIGTERM, after `patience` seconds with SIGKILL; return its exit status (None: did not run)."""
        return self._end(signal.SIGTERM, patience)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._end(signal.SIGKILL, 10.0)

    def _end(self, number: signal.Signals, patience: float) -> int | None:
        process, self._process = self._process, None
        return None if process is None else process.end(number, patience=patience)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
