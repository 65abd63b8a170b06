"""The console when it is needed most, or least: no room, no registry, a tenant in its place, TLS, a node that stops."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from harness.certificates import Certificates
from harness.databases import Database
from harness.proxy import ADMIN_TOKEN, ProxyProcess
from harness.rawclient import RawClient, ServerSaid
from harness.registries import RegistryUnderTest
from harness.waiting import wait_until

from proxy.demo.facts import ServerFacts
from registry.contract import Secret
from registry.domain.models import LoginChange
from registry.verifiers import build_verifier

PASSWORD = "the-admins-own"
ADMIN = {"ann": build_verifier(PASSWORD, os.urandom(16))}
StartProxy = Callable[..., ProxyProcess]
MakeDatabase = Callable[..., Database]


def version(proxy: ProxyProcess, database: str = "pgtenant") -> str:
    with psycopg.connect(proxy.url(database, "ann", PASSWORD), autocommit=True) as console:
        return str(console.execute("show version").fetchall()[0][0])


def refusal(proxy: ProxyProcess, user: str, database: str) -> tuple[str, str]:
    """The SQLSTATE and text that a wrong password meets, without the user's name."""
    with RawClient(proxy.port) as client, pytest.raises(ServerSaid) as said:
        client.login(user, "wrong", database)
    return said.value.sqlstate, said.value.fields["M"].replace(user, "")


@pytest.mark.parametrize("routing", [{"reveal_tenants": True}, {"order": ["sni"], "sni_patterns": ["{tenant}.db"]}])
def test_where_others_are_refused_at_once_the_consoles_users_do_not_stand_out(
    registry: RegistryUnderTest, start_proxy: StartProxy, routing: dict[str, object]
) -> None:
    registry.do(lambda service: service.tenants())
    proxy = start_proxy(console={"admins": ADMIN}, routing=routing)
    assert version(proxy).startswith("pgtenant ")
    assert refusal(proxy, "ann", "pgtenant") == refusal(proxy, "nobody", "pgtenant")


@contextmanager
def away(registry: RegistryUnderTest) -> Iterator[None]:
    path = Path(registry.url.removeprefix("sqlite:///"))
    hidden = path.rename(path.with_name("away"))
    try:
        yield
    finally:
        hidden.rename(path)


def test_a_full_node_and_a_registry_that_is_away_do_not_shut_operators_out(
    registry: RegistryUnderTest, start_proxy: StartProxy, pg18: ServerFacts, make_database: MakeDatabase
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    proxy = start_proxy(listen={"max_clients": 1}, console={"admins": ADMIN})
    with psycopg.connect(proxy.url_of(tenant)):
        assert version(proxy).startswith("pgtenant ")
        with pytest.raises(psycopg.OperationalError, match="too many clients already"):
            psycopg.connect(proxy.url_of(tenant))
        with away(registry):
            proxy.http("POST", "/reload", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
            wait_until(lambda: proxy.metric("pgtenant_registry_up") == 0, what="a registry that is away")
            with psycopg.connect(proxy.url("pgtenant", "ann", PASSWORD), autocommit=True) as console:
                assert ("up", "no") in console.execute("show registry").fetchall()
                with pytest.raises(psycopg.errors.SystemError, match="reload failed, and what was in force"):
                    console.execute("reload")
            assert refusal(proxy, "ann", "pgtenant") == refusal(proxy, "nobody", "pgtenant")


def test_a_tenant_in_the_consoles_place_is_hidden_from_its_users_only_and_not_silently(
    registry: RegistryUnderTest, start_proxy: StartProxy, pg18: ServerFacts, make_database: MakeDatabase
) -> None:
    tenant = registry.add_tenant("acme", make_database(pg18))
    registry.do(lambda service: service.add_login("ann", "acme", LoginChange(password=Secret("another"))))
    proxy = start_proxy(console={"admins": ADMIN, "database": "acme"})
    with psycopg.connect(proxy.url_of(tenant)) as client:
        assert client.execute("select current_database()").fetchall() == [(tenant.database.name,)]
    with RawClient(proxy.port) as console:
        greeting = console.login("ann", PASSWORD, "acme")
        (notice,) = [message.fields for message in greeting if message.kind == "N"]
        assert notice["M"] == 'this is the console: it hides tenant "acme" from user "ann"'
        assert console.rows("show version")
    assert '"the console hides a tenant"' in proxy.logs()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(proxy.url("acme", "ann", "another"))


def test_the_console_keeps_the_rules_of_tls_and_a_node_that_stops_tells_it_at_the_very_end(
    registry: RegistryUnderTest, start_proxy: StartProxy, tmp_path: Path
) -> None:
    registry.do(lambda service: service.tenants())
    certificates = Certificates(tmp_path)
    proxy = start_proxy(listen=certificates.listen("require"), console={"stats": ADMIN})
    url = proxy.url("pgtenant", "ann", PASSWORD)
    with pytest.raises(psycopg.OperationalError, match="encrypted connections only"):
        psycopg.connect(url, sslmode="disable")
    with psycopg.connect(url, channel_binding="require", **certificates.verify_full()) as console:
        assert len(console.execute("show config").fetchall()) > 50
    with RawClient(proxy.port) as client:
        client.start_tls(certificates.context(), server_hostname="localhost")
        client.login("ann", PASSWORD, "pgtenant")
        proxy.send_signal(signal.SIGTERM)
        assert client.read_to_end()[-1].fields["C"] == "57P01"
    assert proxy.wait(15) == 0
    ended = [json.loads(line) for line in proxy.logs().splitlines() if '"console disconnected"' in line]
    assert [line["reason"] for line in ended] == ["the client disconnected", "the node is shutting down"]
