"""The proxy under test, as the process that users run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.rawclient import RawClient
from harness.registries import TenantUnderTest
from proxy.demo.node import NodeProcess
from proxy.demo.ports import free_port

HOST = "127.0.0.1"
ADMIN_TOKEN = "admin-token-of-the-tests"
GRACE = 3


class ProxyProcess(NodeProcess):
    """`python -m proxy serve` on free ports; `sections` change or add settings: `pool={"pool_size": 2}`.

    `http()` and `http_url` reach its HTTP endpoint, `logs()` its log, `stop()`, `kill()`, `send_signal()` its process.
    """

    def __init__(
        self,
        directory: Path,
        registry_url: str,
        encryption_keys: str,
        *,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        **sections: Mapping[str, Any],
    ) -> None:
        config: dict[str, dict[str, Any]] = {
            "listen": {"host": HOST, "port": free_port(HOST)},
            "http": {"host": HOST, "port": free_port(HOST), "admin_token": ADMIN_TOKEN},
            "registry": {"url": registry_url},
            "log": {"format": "json", "level": "debug"},
            "shutdown": {"grace": GRACE},
        }
        for section, values in sections.items():
            config.setdefault(section, {}).update(values)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PGTENANT_")}
        super().__init__(
            config,
            directory=directory,
            env={**inherited, "PGTENANT_ENCRYPTION_KEYS": encryption_keys, **(env or {})},
            python=python,
        )

    def url(self, database: str, user: str, password: str, **parameters: str) -> str:
        """A libpq URL through this proxy."""
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{credentials}@{self.host}:{self.port}/{database}{'?' + query if query else ''}"

    def url_of(self, tenant: TenantUnderTest, **parameters: str) -> str:
        """What the tenant's application has as its DATABASE_URL."""
        return self.url(tenant.slug, tenant.user, tenant.password, **parameters)

    def connect(self) -> RawClient:
        """A raw client, connected and nothing more."""
        return RawClient(self.port, self.host)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of `/metrics`: the sum over all samples that carry these labels."""
        status, body = self.http("GET", "/metrics")
        assert status == 200, f"/metrics answered {status}"
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in body.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(pair in line for pair in wanted))
