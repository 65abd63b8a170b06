"""A node whose settings and keys are changed while it serves: nobody is dropped, and whoever asked is told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from harness.certificates import Certificates
from harness.databases import Database
from harness.proxy import ADMIN_TOKEN, ProxyProcess
from harness.rawclient import startup
from harness.registries import RegistryUnderTest
from harness.waiting import wait_until
from typer.testing import CliRunner

from proxy.auth import ScramClient
from proxy.cli import make_app
from proxy.demo.facts import ServerFacts
from registry.contract import Secret
from registry.domain.models import ServerChange
from registry.secrets import generate_key
from registry.verifiers import build_verifier

ANN = "the-admins-own"


def rewrite(proxy: ProxyProcess, **sections: dict[str, Any]) -> None:
    for section, values in sections.items():
        proxy.config.setdefault(section, {}).update(values)  # type: ignore[attr-defined]
    proxy.write_config()


def reload(proxy: ProxyProcess, token: str = ADMIN_TOKEN) -> tuple[int, dict[str, Any]]:
    status, body = proxy.http("POST", "/reload", headers={"Authorization": f"Bearer {token}"})
    return status, json.loads(body)


def hang_up(proxy: ProxyProcess) -> dict[str, Any]:
    """Send SIGHUP; returns what the log says of the reload."""
    before = len(proxy.logs())
    proxy.send_signal(signal.SIGHUP)

    def line() -> dict[str, Any] | None:
        lines = [json.loads(one) for one in proxy.logs()[before:].splitlines() if one.startswith("{")]
        return next((one for one in lines if one["event"] in {"reloaded", "reload failed"}), None)

    found = wait_until(line, what="the reload")
    assert found is not None
    return found


def test_settings_are_changed_while_clients_stay(
    registry: RegistryUnderTest, pg18: ServerFacts, make_database: Callable[..., Database], tmp_path: Path
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    certificates = Certificates(tmp_path)
    with (
        ProxyProcess(tmp_path, registry.url, registry.keys) as proxy,
        psycopg.connect(proxy.url_of(tenant)) as client,
    ):
        client.execute("select 1")  # a transaction, which stays open
        rewrite(
            proxy,
            listen={"max_clients": 1, **certificates.listen("require"), "port": 1},
            console={"admins": {"ann": build_verifier(ANN, os.urandom(16))}},
        )
        said = hang_up(proxy)
        tls = ["listen.tls_mode", "listen.tls_cert", "listen.tls_key"]
        assert said["event"] == "reloaded"
        assert sorted(said["changed"]) == sorted(["listen.max_clients", *tls, "console.admins"])
        assert "settings need a restart" in proxy.logs()
        assert client.execute("select 2").fetchone() == (2,), "who is there stays as he is"
        client.commit()
        with pytest.raises(psycopg.OperationalError, match="encrypted connections only"):
            psycopg.connect(proxy.url_of(tenant, sslmode="disable"))
        with pytest.raises(psycopg.OperationalError, match="too many c"):
            psycopg.connect(proxy.url_of(tenant, sslmode="require"))
        rewrite(proxy, listen={"max_clients": 20}, pool={"pool_size": 3})
        console = proxy.url("pgtenant", "ann", ANN, sslmode="require")
        with psycopg.connect(console, autocommit=True) as admin:
            notices: list[str] = []
            admin.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
            admin.execute("reload")
            assert notices == [
                "in force now: listen.max_clients, pool.pool_size",
                "these settings need a restart, and stay as they were: listen.port",
            ]
            rewrite(proxy, pool={"pool_size": "many"})
            with pytest.raises(psycopg.errors.SystemError, match=r"pool\.pool_size"):
                admin.execute("reload")
            rewrite(proxy, console={"admins": {}}, pool={"pool_size": 3})
            assert reload(proxy)[1]["changed"] == ["console.admins"]
            with pytest.raises(psycopg.OperationalError, match="no such console user any more"):
                admin.execute("show version")
        assert client.execute("select 3").fetchone() == (3,)


def test_load_balancers_and_places_for_logins_are_those_of_the_file(
    registry: RegistryUnderTest, pg18: ServerFacts, make_database: Callable[..., Database], tmp_path: Path
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    with ProxyProcess(tmp_path, registry.url, registry.keys) as proxy:
        rewrite(proxy, listen={"proxy_protocol": "require", "proxy_networks": ["127.0.0.0/8"], "max_logins": 9})
        assert hang_up(proxy)["event"] == "reloaded"
        assert proxy.metric("pgtenant_login_places_max", kind="login") == 9
        with proxy.connect() as client:
            client.send(b"PROXY TCP4 192.0.2.9 127.0.0.1 50009 6432\r\n")
            client.login(tenant.user, tenant.password, tenant.slug)
        rewrite(proxy, listen={"proxy_protocol": "off", "trusted_networks": ["127.0.0.0/8"]})
        assert hang_up(proxy)["event"] == "reloaded"
        with proxy.connect() as client:
            client.login(tenant.user, tenant.password, tenant.slug)


def test_a_broken_file_changes_nothing_and_is_told_to_whoever_asked(
    registry: RegistryUnderTest, tmp_path: Path
) -> None:
    registry.do(lambda service: service.tenants())
    with ProxyProcess(tmp_path, registry.url, registry.keys) as proxy:
        rewrite(proxy, http={"admin_token": "another"}, pool={"pool_size": "many"})
        status, answer = reload(proxy)
        assert status == 422, "the token of before still counts"
        assert "pool.pool_size" in answer["error"]
        assert answer["hint"]
        said = hang_up(proxy)
        assert (said["event"], said["level"]) == ("reload failed", "error")
        assert "pool.pool_size" in said["reason"]
        assert str(proxy.config_file) in said["reason"]
        proxy.config_file.write_text("[pool\n")
        assert "is not TOML" in hang_up(proxy)["reason"]
        rewrite(proxy, pool={"pool_size": 7})
        assert reload(proxy)[1]["changed"] == ["http.admin_token", "pool.pool_size"]
        assert reload(proxy)[0] == 401
        assert reload(proxy, "another") == (200, {"registry_version": 1, "changed": [], "needs_restart": []})
        assert "another" not in proxy.logs()


def test_whoever_proves_to_be_a_tenants_user_never_gets_to_the_console_by_a_reload_meanwhile(
    registry: RegistryUnderTest, pg18: ServerFacts, make_database: Callable[..., Database], tmp_path: Path
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    users = {tenant.user: build_verifier(ANN, os.urandom(16))}
    with ProxyProcess(tmp_path, registry.url, registry.keys) as proxy:
        for admins, password in ((users, tenant.password), ({}, ANN)):
            with proxy.connect() as client:
                client.send(startup({"user": tenant.user, "database": tenant.slug}))
                scram = ScramClient(password, os.urandom(18))
                client._answer(client.read(), scram, tenant.user, password)
                challenge = client.read()
                rewrite(proxy, console={"database": tenant.slug, "admins": admins})
                assert reload(proxy)[0] == 200
                client._answer(challenge, scram, tenant.user, password)
                if admins:
                    client.read_until("Z")
                    assert client.rows("select current_database()") == [(tenant.database.name,)]
                else:
                    assert client.read_until("E")[-1].fields["C"] == "28P01", "who was the console's user is nobody now"
        assert "console connected" not in proxy.logs()
        assert proxy.metric("pgtenant_internal_errors_total") == 0


def test_keys_are_rotated_without_a_restart(
    registry: RegistryUnderTest, pg18: ServerFacts, make_database: Callable[..., Database], tmp_path: Path
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    keys, old, new = tmp_path / "keys", registry.keys, generate_key("new")
    keys.write_text(generate_key("wrong"))
    keys.chmod(0o600)
    proxy = ProxyProcess(tmp_path, registry.url, "", registry={"encryption_keys_file": str(keys)})
    proxy.start(wait=False)
    try:
        wait_until(lambda: "serving, but not ready" in proxy.logs() or not proxy.running, what="the start")
        status, body = proxy.http("GET", "/readyz")
        assert status == 503
        assert "not on the key ring" in body
        keys.write_text(old)
        assert hang_up(proxy)["changed"] == ["registry.encryption_keys_file"]
        assert proxy.http("GET", "/readyz")[0] == 200
        with psycopg.connect(proxy.url_of(tenant), autocommit=True) as client:
            assert client.execute("select 1").fetchone() == (1,), "the role's password can be opened now"
            keys.write_text(f"{new}\n{old}\n")
            assert hang_up(proxy)["event"] == "reloaded"
            keys.write_text(new)
            said = hang_up(proxy)
            assert (said["event"], "a key was taken away that the registry still needs" in said["reason"]) == (
                "reload failed",
                True,
            )
            keys.write_text(f"{new}\n{old}\n")
            rotated = CliRunner().invoke(
                make_app(),
                ["secrets", "rotate", "--config", str(proxy.config_file)],
                env={"PGTENANT_ENCRYPTION_KEYS": None, "PGTENANT_REGISTRY": None},
            )
            assert rotated.exit_code == 0, rotated.output
            keys.write_text(new)
            assert hang_up(proxy)["changed"] == ["registry.encryption_keys_file"]
            registry.keys = new
            change = ServerChange(role_user="nobody", role_password=Secret("x"))
            registry.do(lambda service: service.set_server("pg18", change))
            assert client.execute("select 2").fetchone() == (2,)
        with psycopg.connect(proxy.url_of(tenant)) as client:
            assert client.execute("select 3").fetchone() == (3,)
        assert proxy.http("GET", "/readyz")[0] == 200
        keys.chmod(0o644)
        assert "may be read or changed by others" in hang_up(proxy)["reason"]
        for key in (old, new):
            assert key.partition(":")[2] not in proxy.logs()
    finally:
        proxy.stop()
