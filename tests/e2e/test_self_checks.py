"""What a node finds out about itself at its start, and `pgtenant config check` without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
from harness.databases import Database
from harness.proxy import ProxyProcess
from harness.registries import RegistryUnderTest
from harness.waiting import wait_until
from typer.testing import CliRunner, Result

from proxy.cli import make_app
from proxy.demo.facts import ServerFacts
from registry.contract import Address, Secret
from registry.domain.models import ServerChange
from registry.secrets import generate_key


def check(config: Path, keys: str | None) -> Result:
    """Run `pgtenant config check`, within this process because that is quicker."""
    environment = {"PGTENANT_ENCRYPTION_KEYS": keys}
    return CliRunner().invoke(make_app(), ["config", "check", "--config", str(config), "--json"], env=environment)


def unchecked(found: Result) -> dict[str, str]:
    assert found.exit_code == 0, found.output
    return dict(json.loads(found.stdout)["unchecked"])


def readiness(proxy: ProxyProcess) -> tuple[int, str]:
    return proxy.http("GET", "/readyz")


def test_a_node_with_the_wrong_keys_is_not_ready_and_says_why(registry: RegistryUnderTest, tmp_path: Path) -> None:
    place = (Address("10.0.0.1"),)
    change = ServerChange(addresses=place, admin_user="admin", admin_password=Secret("not to be seen"))
    registry.do(lambda service: service.add_server("eu1", change))
    proxy = ProxyProcess(tmp_path, registry.url, generate_key("other"))
    proxy.start(wait=False)
    try:
        wait_until(lambda: "serving, but not ready" in proxy.logs() or not proxy.running, what="the start")
        status, body = readiness(proxy)
        assert status == 503
        assert "sealed with key 'test', which is not on the key ring" in body
        assert '"level": "error"' in proxy.logs()
        assert '"ready"' not in proxy.logs()
    finally:
        proxy.stop()
    assert "not on the key ring" in str(check(proxy.config_file, generate_key("other")).exception)
    assert unchecked(check(proxy.config_file, registry.keys)) == {}
    assert "not set" in unchecked(check(proxy.config_file, None))["the keys"]


def test_a_node_that_cannot_open_a_secret_of_another_nodes_key_is_not_ready_and_serves_what_it_can(
    registry: RegistryUnderTest, pg18: ServerFacts, make_database: Callable[..., Database], tmp_path: Path
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    with ProxyProcess(tmp_path, registry.url, registry.keys) as proxy:
        before, registry.keys = registry.keys, f"{generate_key('newer')},{registry.keys}"
        change = ServerChange(role_user="r", role_password=Secret("x"))
        registry.do(lambda service: service.set_server("pg18", change))
        headers = {"Authorization": f"Bearer {proxy.config['http']['admin_token']}"}
        assert proxy.http("POST", "/reload", headers=headers)[0] == 200
        assert "cannot open all secrets of the registry and is not ready: " in proxy.logs()
        assert "'newer'" in proxy.logs()
        status, body = readiness(proxy)
        assert status == 503
        assert "'newer'" in body
        with psycopg.connect(proxy.url_of(tenant)) as connection:
            assert connection.execute("select 1").fetchone() == (1,), "what it can open goes on"
        registry.do(lambda service: service.set_server("pg18", ServerChange(role_user=None, role_password=None)))
        registry.keys = before
        assert proxy.http("POST", "/reload", headers=headers)[0] == 200
        assert "has the registry's keys now" in proxy.logs()
        assert readiness(proxy)[0] == 200


def test_what_config_check_cannot_look_at_it_says(tmp_path: Path) -> None:
    config = tmp_path / "pgtenant.toml"
    config.write_text(f'[registry]\nurl = "sqlite:///{tmp_path}/none.db"\n')
    assert "there is no registry" in unchecked(check(config, generate_key("k")))["the keys"]
    assert not (tmp_path / "none.db").exists()


def test_a_snapshot_that_cannot_be_written_is_told_at_the_start(registry: RegistryUnderTest, tmp_path: Path) -> None:
    registry.do(lambda service: service.tenants())
    nowhere = str(tmp_path / "missing" / "snapshot")
    with ProxyProcess(tmp_path, registry.url, registry.keys, routing={"snapshot": nowhere}) as proxy:
        assert "no snapshot can be written" in proxy.logs()
        assert proxy.metric("pgtenant_snapshot_failures_total") >= 1
        assert "routing.snapshot cannot be used" in str(check(proxy.config_file, registry.keys).exception)
