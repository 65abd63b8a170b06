"""Everything the demonstration needs, started together and stopped together."""

from __future__ import annotations

import os
import secrets
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from shlex import quote as shell_quoted
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import proxy
from proxy.demo.catalog import DemoRegistry, DemoTenant
from proxy.demo.embedded import EmbeddedServer
from proxy.demo.install import EmbeddedError
from proxy.demo.node import NodeProcess
from proxy.demo.ports import free_port, is_free
from proxy.demo.shop import SHOPS, creation_script, seed_script
from registry.verifiers import SALT_SIZE, build_verifier

HOST = "127.0.0.1"
LOGIN = "app"
CONSOLE = "pgtenant"
CONSOLE_USER = "admin"
PASSWORD_BYTES = 12
SHUTDOWN_GRACE = 2

Progress = Callable[[str], None]


class Stage:
    """Two PostgreSQL servers, a registry with four tenants, and the proxy in front of them.

    `with Stage(...) as stage` starts all of it and stops all of it, also when only part of it has started.  A port of
    None is any free one.  `progress` is told what is being done.  Raises EmbeddedError with a hint.
    """

    def __init__(
        self, *, port: int | None = None, http_port: int | None = None, progress: Progress = lambda _: None
    ) -> None:
        self.port = _claim(port, "--port")
        self.http_port = _claim(http_port, "--http-port")
        if self.port == self.http_port:
            raise EmbeddedError(
                f"--port and --http-port are both {self.port}", "give them different ports, or leave one out"
            )
        self.admin_token = secrets.token_urlsafe(24)
        self._console_password = secrets.token_urlsafe(PASSWORD_BYTES)
        self.tenants = tuple(
            DemoTenant(shop, secrets.token_urlsafe(PASSWORD_BYTES), secrets.token_urlsafe(PASSWORD_BYTES))
            for shop in SHOPS
        )
        self._progress = progress
        self._cleanup = ExitStack()
        self._directory: Path | None = None
        self._node: NodeProcess | None = None
        self._registry: DemoRegistry | None = None
        self.servers: dict[int, EmbeddedServer] = {}

    @property
    def node(self) -> NodeProcess:
        """The proxy's process."""
        if self._node is None:
            raise EmbeddedError("the demonstration is not running", "enter the context first")
        return self._node

    @property
    def client_bin_dir(self) -> Path:
        """The directory of `psql` and `pgbench`, of the newer server."""
        return self.servers[max(self.servers)].bin_dir

    @property
    def environment_file(self) -> Path:
        """A file to source in a shell: it sets `environment()`."""
        return self._in_directory("env")

    def url(self, tenant: DemoTenant) -> str:
        """The DATABASE_URL of a tenant's application, password included."""
        return f"postgresql://{LOGIN}:{quote(tenant.password, safe='')}@{HOST}:{self.port}/{tenant.shop.slug}"

    @property
    def console_url(self) -> str:
        """The way to the proxy's console, password included."""
        return f"postgresql://{CONSOLE_USER}:{quote(self._console_password, safe='')}@{HOST}:{self.port}/{CONSOLE}"

    def environment(self) -> dict[str, str]:
        """The variables that lead a program to this demonstration; they contain its secrets."""
        return {
            **self._registry_environment(),
            "PGTENANT_CONFIG": str(self.node.config_file),
            "PGTENANT_PORT": str(self.port),
            "PGTENANT_HTTP_URL": self.node.http_url,
            "PGTENANT_ADMIN_TOKEN": self.admin_token,
            "PGTENANT_CONSOLE_URL": self.console_url,
            **{f"{tenant.shop.slug.upper()}_URL": self.url(tenant) for tenant in self.tenants},
        }

    def search_path(self) -> str:
        """PATH with this Python environment first and PostgreSQL's client programs behind it."""
        directories = [sysconfig.get_path("scripts"), str(self.client_bin_dir), os.environ.get("PATH", os.defpath)]
        return os.pathsep.join(directories)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._directory = Path(tempfile.mkdtemp(prefix="pgtenant-demo-"))
            stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            self._start_servers(stack)
            self._fill_registry()
            self._start_node(stack)
            self._write_environment_file()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _start_servers(self, stack: ExitStack) -> None:
        versions = sorted({shop.postgres for shop in SHOPS}, reverse=True)
        self._progress(f"starting PostgreSQL {' and '.join(map(str, versions))}")
        self.servers = {version: EmbeddedServer(version) for version in versions}
        with ThreadPoolExecutor(len(versions)) as threads:
            for server in self.servers.values():
                stack.callback(server.close)
            _all_of(threads.map(lambda server: server.start(), self.servers.values()))
            self._progress(f"filling the shops of {len(self.tenants)} tenants")
            _all_of(threads.map(self._create_shops, self.servers.values()))

    def _create_shops(self, server: EmbeddedServer) -> None:
        tenants = [tenant for tenant in self.tenants if tenant.shop.postgres == server.version]
        server.psql("".join(creation_script(tenant.shop, tenant.role_password) for tenant in tenants))
        for tenant in tenants:
            server.psql(f"set role {tenant.shop.role};\n{seed_script(tenant.shop)}", tenant.shop.database)

    def _fill_registry(self) -> None:
        self._progress("creating the registry")
        self._registry = DemoRegistry(self._in_directory("registry.db"))
        self._registry.fill((server.facts for server in self.servers.values()), self.tenants, LOGIN)

    def _start_node(self, stack: ExitStack) -> None:
        self._progress("starting the proxy")
        config: Mapping[str, Mapping[str, Any]] = {
            "listen": {"host": HOST, "port": self.port},
            "http": {"host": HOST, "port": self.http_port, "admin_token": self.admin_token},
            "console": {"database": CONSOLE, "admins": {CONSOLE_USER: self._console_verifier()}},
            "registry": {"url": self._registry_environment()["PGTENANT_REGISTRY"]},
            "shutdown": {"grace": SHUTDOWN_GRACE},
        }
        directory = self._in_directory("")
        env = {**_without_settings(os.environ), **self._registry_environment(), **_same_package()}
        self._node = NodeProcess(config, directory=directory, env=env, remove=(directory,))
        stack.callback(self._node.stop)
        self._node.start()

    def _console_verifier(self) -> str:
        return build_verifier(self._console_password, secrets.token_bytes(SALT_SIZE))

    def _registry_environment(self) -> dict[str, str]:
        if self._registry is None:
            raise EmbeddedError("the demonstration is not running", "enter the context first")
        return {"PGTENANT_REGISTRY": self._registry.url, "PGTENANT_ENCRYPTION_KEYS": self._registry.keys}

    def _write_environment_file(self) -> None:
        variables = {**self.environment(), "PATH": self.search_path()}
        self.environment_file.touch(0o600)
        self.environment_file.write_text(
            "".join(f"export {name}={shell_quoted(value)}\n" for name, value in variables.items())
        )

    def _in_directory(self, name: str) -> Path:
        if self._directory is None:
            raise EmbeddedError("the demonstration is not running", "enter the context first")
        return self._directory / name


def _claim(port: int | None, option: str) -> int:
    if port is None:
        return free_port(HOST)
    if not is_free(port, HOST):
        raise EmbeddedError(
            f"port {port} on {HOST} is taken",
            f"stop what listens there, or choose another port with {option}, for example {option} {free_port(HOST)}",
        )
    return port


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out the caller's own pgtenant settings, which would change the demonstration's."""
    return {name: value for name, value in environment.items() if not name.startswith("PGTENANT_")}


def _same_package() -> dict[str, str]:
    """Have the node import this very package: a source tree in the working directory would hide the installed one."""
    return {} if Path(proxy.__file__).parents[1] == Path.cwd() else {"PYTHONSAFEPATH": "1"}


def _all_of(outcomes: Iterable[object]) -> None:
    """Wait for all and raise the first error."""
    for _ in outcomes:
        pass
