"""What docs/tls.md tells people to type does what it says."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.databases import Database
from harness.process import output
from harness.references import ROOT
from harness.registries import RegistryUnderTest

from proxy.demo.facts import ServerFacts

PAGE = (ROOT / "docs" / "tls.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")
def test_certificates_made_by_the_page_let_its_client_in(
    registry: RegistryUnderTest, start_proxy: Any, pg18: ServerFacts, make_database: Any, tmp_path: Path
) -> None:
    make, use = blocks("sh")
    output(["sh", "-e", "-c", make], cwd=tmp_path)
    database: Database = make_database(pg18)
    tenant = registry.add_tenant("acme", database)
    listen = tomllib.loads(blocks("toml")[1])["listen"]
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        listen[name] = str(tmp_path / listen[name])
    proxy = start_proxy(listen=listen)
    found = re.search(r'psql "(.*)"', use)
    assert found is not None
    words: dict[str, Any] = dict(word.split("=", 1) for word in found.group(1).split())
    words |= {name: str(tmp_path / words[name]) for name in ("sslrootcert", "sslcert", "sslkey")}
    words |= {"hostaddr": proxy.host, "port": str(proxy.port), "password": tenant.password}
    with psycopg.connect(**words) as connection:
        assert connection.execute("select current_database()").fetchone() == (database.name,)
    del words["sslcert"], words["sslkey"]
    with pytest.raises(psycopg.OperationalError, match="requires a valid client certificate"):
        psycopg.connect(**words)
