"""The proxy under test, as the process that users run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.rawclient import RawClient
from harness.registries import TenantUnderTest
from proxy.demo.node import NodeProcess
from proxy.demo.ports import claim_port

HOST = "127.0.0.1"
ADMIN_TOKEN = "admin-token-of-the-tests"
GRACE = 3
SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")


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
        # They stay its own while it is stopped, too: other tests start servers at any moment.
        self._claims = claim_port(HOST), claim_port(HOST)
        config: dict[str, dict[str, Any]] = {
            "listen": {"host": HOST, "port": self._claims[0].port},
            "http": {"host": HOST, "port": self._claims[1].port, "admin_token": ADMIN_TOKEN},
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

    def connect(self, source: str = "") -> RawClient:
        """A raw client, connected and nothing more, from the address `source`."""
        return RawClient(self.port, self.host, source=source)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of `/metrics`: the sum over all samples that carry these labels, 0 without any.

        Raises LookupError for a name that no metric has, or a label that none of its samples has.
        """
        status, body = self.http("GET", "/metrics")
        assert status == 200, f"/metrics answered {status}"
        return sum_of_samples(body, name, labels)


def sum_of_samples(page: str, name: str, labels: Mapping[str, str]) -> float:
    """Sum up what a page of metrics says under a name and some labels; raises as `ProxyProcess.metric`."""
    samples = [SAMPLE.match(line) for line in page.splitlines()]
    found = [(sample["labels"] or "", sample["value"]) for sample in samples if sample and sample["name"] == name]
    if not found and name not in _names_without_samples(page):
        raise LookupError(f"there is no metric {name}")
    for label in labels:
        if found and not any(re.search(rf'(^|,){label}="', pairs) for pairs, _ in found):
            raise LookupError(f"no sample of {name} has a label {label}")
    wanted = [re.compile(rf'(^|,){label}="{re.escape(value)}"') for label, value in labels.items()]
    return sum(float(value) for pairs, value in found if all(pair.search(pairs) for pair in wanted))


def _names_without_samples(page: str) -> set[str]:
    """The names that the headings of a page of metrics promise."""
    names = set[str]()
    for family, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
        names |= {f"{family}{suffix}" for suffix in ("_bucket", "_count", "_sum")} if kind == "histogram" else {family}
    return names
