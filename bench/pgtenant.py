"""pgtenant as a way to the server: the package that is installed in a Python environment, with its usual settings."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit

from bench.model import PGTENANT, BenchError, Cell, Endpoint
from bench.targets import HOST, MAX_CLIENTS, plain_environment, wait_until_listening
from proxy.demo.kept import KeptProcess
from proxy.demo.ports import free_port

TENANT = "bench"
PASSWORD_VARIABLE = "BENCH_ROLE_PASSWORD"
PATIENCE = 60.0
# The pool must not be smaller than wanted because of what is kept free on the server.
SPARE_CONNECTIONS = 30
KEY_BYTES = 32
DESCRIBE = """
import dataclasses, json, proxy
from proxy.version import build_info
print(json.dumps({**dataclasses.asdict(build_info()), "text": str(build_info()), "package": proxy.__file__}))
"""


# Run by the measured environment: its registry is to be filled by the package that will read it.
FILL = """
import asyncio, os, pathlib, sys
from registry import open_registry
from registry.manifest import apply_manifest, load_manifest
from registry.secrets import KeyRing

async def fill(url, path):
    async with open_registry(url, KeyRing.parse(os.environ["PGTENANT_ENCRYPTION_KEYS"])) as registry:
        await apply_manifest(registry.service, load_manifest(path))

asyncio.run(fill(sys.argv[1], pathlib.Path(sys.argv[2])))
"""


def describe_build(python: Path, directory: Path) -> dict[str, Any]:
    """Ask another Python environment which pgtenant it has; `directory` must be outside of the source tree.

    Raises BenchError when it has none.
    """
    ran = _run([str(python), "-c", DESCRIBE], directory, plain_environment())
    description: dict[str, Any] = json.loads(ran)
    return description


class Pgtenant:
    """One `pgtenant serve` with an SQLite registry of one tenant.

    It is run by `python` from a directory of its own, so that the installed package is measured and not the source
    tree around this program.
    """

    name = PGTENANT

    def __init__(self, python: Path, server: Endpoint, verifier: str, pool_size: int, directory: Path) -> None:
        self.build = describe_build(python, directory)
        self.endpoint = Endpoint(HOST, free_port(HOST), server.user, TENANT, server.password)
        self._python = python
        self._server = server
        self._verifier = verifier
        self._pool_size = pool_size
        self._directory = directory
        self._http_port = free_port(HOST)
        self._registry = f"sqlite:///{directory / 'registry.db'}"
        key = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
        self._environment = {
            **plain_environment(),
            "PGTENANT_REGISTRY": self._registry,
            "PGTENANT_ENCRYPTION_KEYS": f"bench:{key}",
        }
        self._filled = False
        self._process: KeptProcess | None = None

    @property
    def proxy_pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        if not self._filled:
            self._fill_registry()
            self._filled = True
        config = self._write("pgtenant.toml", self._config())
        log = self._directory / "pgtenant.log"
        self._process = KeptProcess(
            [str(self._python), "-m", "proxy", "serve", "--config", str(config)],
            env=self._environment,
            cwd=self._directory,
            log=log,
            remove=[self._directory],
        )
        wait_until_listening(self._process, self.endpoint.port, log, "pgtenant")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.end()

    def unfit_for(self, _cell: Cell) -> str | None:
        return None

    def facts(self) -> Mapping[str, str]:
        return {
            "version": str(self.build["text"]),
            "relay": str(self.build["relay"]),
            "source_matches": str(self.build["source_matches"]).lower(),
            "package": str(Path(self.build["package"]).parent),
            "python": str(self._python),
            "settings": tomlkit.dumps({name: self._config()[name] for name in ("listen", "pool")}).strip(),
        }

    def _config(self) -> dict[str, dict[str, Any]]:
        return {
            "listen": {"host": HOST, "port": self.endpoint.port, "max_clients": MAX_CLIENTS},
            "http": {"host": HOST, "port": self._http_port},
            "pool": {"pool_size": self._pool_size, "max_clients": MAX_CLIENTS},
            "registry": {"url": self._registry},
            "shutdown": {"grace": 1},
        }

    def _fill_registry(self) -> None:
        server = self._server
        manifest = {
            "server": [
                {
                    "name": "pg",
                    "host": server.host,
                    "port": server.port,
                    "tls": "disable",
                    "max_connections": self._pool_size + SPARE_CONNECTIONS,
                }
            ],
            "tenant": [
                {
                    "slug": TENANT,
                    "server": "pg",
                    "database": server.database,
                    "role": server.user,
                    "role_password_env": PASSWORD_VARIABLE,
                }
            ],
            "login": [{"user": server.user, "tenant": TENANT, "verifier": self._verifier}],
        }
        path = self._write("tenants.toml", manifest)
        command = [str(self._python), "-c", FILL, self._registry, str(path)]
        _run(command, self._directory, {**self._environment, PASSWORD_VARIABLE: server.password})

    def _write(self, name: str, content: Mapping[str, Any]) -> Path:
        path = self._directory / name
        path.touch(0o600)
        path.write_text(tomlkit.dumps(content))
        return path


def _run(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> str:
    try:
        ran = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{command[0]} cannot be run: {error}", "--proxy-python names a Python interpreter") from error
    if ran.returncode != 0:
        raise BenchError(
            f"{command[0]} failed: {ran.stderr.strip()[-500:]}",
            f"is pgtenant installed for {command[0]}? (pip install .)",
        )
    return ran.stdout
