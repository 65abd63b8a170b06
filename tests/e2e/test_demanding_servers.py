"""A PostgreSQL that asks much of TLS: a client certificate, version 1.3, and TLS from the first byte on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
import typer
from harness.disasters import login
from harness.rawclient import query
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from harness.world import World
from typer.testing import CliRunner

from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts
from registry import cli
from registry.contract import Address, Secret, TlsMode, TlsNegotiation, TlsVersion

PROXY = {"pool": {"retry_most": 0.3}}
FACTS = """
select version || ' ' || coalesce(client_dn, '-') || ' ' ||
       (select count(*) from pg_stat_activity where backend_type = 'client backend')
from pg_stat_ssl where pid = pg_backend_pid()
"""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Of the server and of its clients."""
    return trustme.CA()


@pytest.fixture(scope="module", autouse=True)
def demanding(authority: trustme.CA) -> Iterator[ServerFacts]:
    """The server; it outlives the proxy, whose tenants' databases are dropped with it."""
    made = authority.issue_cert("localhost", "127.0.0.1")
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    # Another user than this test's has to read it.
    directory = Path(tempfile.mkdtemp(prefix="pgtenant-tests-ca-"))
    directory.chmod(0o755)
    ca = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    try:
        with EmbeddedServer(
            17,
            durable=False,
            tls=(chain, made.private_key_pem.bytes()),
            settings={"ssl_ca_file": str(ca), "ssl_min_protocol_version": "TLSv1.3"},
            hba=[
                "host all postgres 127.0.0.1/32 scram-sha-256",
                "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca",
            ],
        ) as server:
            yield server.facts
    finally:
        shutil.rmtree(directory)


def certificate(authority: trustme.CA, name: str = "pgtenant") -> dict[str, Any]:
    made = authority.issue_cert(common_name=name)
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    return {"tls_cert": chain.decode(), "tls_key": Secret(made.private_key_pem.bytes().decode())}


def tenant_on(world: World, server: ServerFacts, authority: trustme.CA, **fields: Any) -> TenantUnderTest:
    """A tenant whose server is entered under a name of its own, with this way of using TLS."""
    wanted: dict[str, Any] = {
        "addresses": (Address("localhost", server.port),),
        "tls_mode": TlsMode.VERIFY_FULL,
        "tls_ca": authority.cert_pem.bytes().decode(),
        "admin_user": server.superuser,
        "admin_password": Secret(server.password),
        **fields,
    }
    return world.tenant_on_own_server(server, **wanted)


def is_served(world: World, tenant: TenantUnderTest) -> bool:
    try:
        psycopg.connect(world.url(tenant)).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("negotiation", TlsNegotiation)
@pytest.mark.parametrize("mode", [TlsMode.REQUIRE, TlsMode.VERIFY_CA, TlsMode.VERIFY_FULL])
def test_it_is_served_and_its_queries_are_cancelled(
    mode: TlsMode, negotiation: TlsNegotiation, world: World, demanding: ServerFacts, authority: trustme.CA
) -> None:
    fields = {"tls_mode": mode, "tls_negotiation": negotiation, "tls_min_version": TlsVersion.TLS_1_3}
    tenant = tenant_on(world, demanding, authority, **fields, **certificate(authority))
    with login(world.proxy, tenant) as client:
        ((facts,),) = client.rows(FACTS)
        assert facts is not None
        assert facts.startswith("TLSv1.3 ")
        assert "CN=pgtenant" in facts
        client.send(query("select pg_sleep(30)"))
        wait_until(lambda: tenant.database.backends("wait_event = 'PgSleep'") == 1, what="a query")
        client.cancel()
        assert [message.fields["C"] for message in client.read_until("Z") if message.kind == "E"] == ["57014"]
    world.wait_for_rest(tenant)


def test_without_a_certificate_it_serves_nobody_until_there_is_one(
    world: World, demanding: ServerFacts, authority: trustme.CA
) -> None:
    tenant = tenant_on(world, demanding, authority)
    with pytest.raises(psycopg.OperationalError, match="did not accept"):
        psycopg.connect(world.url(tenant))
    assert "valid client certificate" in world.proxy.logs()
    pair = certificate(authority)
    world.registry.set_server(f"of-{tenant.slug}", **pair)
    wait_until(lambda: is_served(world, tenant), seconds=10.0, what="the certificate in force")
    assert pair["tls_key"].reveal()[40:80] not in world.proxy.logs()


def test_another_certificate_is_shown_by_new_backends_while_nobody_is_disturbed(
    world: World, demanding: ServerFacts, authority: trustme.CA
) -> None:
    tenant = tenant_on(world, demanding, authority, **certificate(authority, "first"))
    with login(world.proxy, tenant) as client:
        client.rows("begin")
        assert "CN=first" in str(client.rows(FACTS))
        world.registry.set_server(f"of-{tenant.slug}", **certificate(authority, "second"))
        wait_until(lambda: world.proxy.logs().count("route changed") > 0, what="the change")
        assert "CN=first" in str(client.rows(FACTS)), "a transaction ends where it began"
        client.rows("commit")
        wait_until(lambda: "CN=second" in str(client.rows(FACTS)), seconds=10.0, what="the new certificate")


def test_a_server_that_is_older_than_asked_for_is_refused(
    world: World, pg18: ServerFacts, pg17: ServerFacts, authority: trustme.CA
) -> None:
    """The shared PostgreSQL 18 has no TLS at all."""
    tenant = tenant_on(world, pg18, authority, tls_mode=TlsMode.REQUIRE, tls_negotiation=TlsNegotiation.DIRECT)
    with pytest.raises(psycopg.OperationalError, match="TLS failed"):
        psycopg.connect(world.url(tenant))
    assert "does not speak TLS from the first byte on" in world.proxy.logs()


def test_server_test_uses_all_of_it(
    registry: RegistryUnderTest,
    demanding: ServerFacts,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = certificate(authority)
    (tmp_path / "client.crt").write_text(pair["tls_cert"])
    (tmp_path / "client.key").write_text(pair["tls_key"].reveal())
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    demanding.psql("create role keeper login password 'of the keeper'")
    monkeypatch.setenv("PGTENANT_REGISTRY", registry.url)
    monkeypatch.setenv("PGTENANT_ENCRYPTION_KEYS", registry.keys)
    monkeypatch.setenv("PW", "of the keeper")

    app = typer.Typer()
    cli.register(app)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["server", *arguments])
        return result.exit_code, result.output

    add = ["add", "x", "--host", f"localhost:{demanding.port}", "--tls", "verify-full"]
    add += ["--tls-ca", str(tmp_path / "ca.pem"), "--admin", "keeper", "--admin-password-env", "PW"]
    status, output = run(*add)
    assert (status, "valid client certificate" in output) == (1, True), "it is tested before it is registered"
    assert run(*add, "--no-test")[0] == 0
    status, output = run("test", "x")
    assert (status, "valid client certificate" in output) == (1, True)
    change = ["set", "x", "--tls-cert", str(tmp_path / "client.crt"), "--tls-key", str(tmp_path / "client.key")]
    assert run(*change, "--tls-negotiation", "direct", "--tls-min-version", "1.3")[0] == 0
    status, output = run("test", "x")
    assert (status, "TLSv1.3" in output) == (0, True), output
    status, output = run("show", "x", "--json")
    assert '"tls_key": true' in output
    assert "PRIVATE KEY" not in output
    assert run("set", "x", "--no-tls-cert")[0] == 1
    assert run("set", "x", "--no-tls-cert", "--force")[0] == 0
    assert run("test", "x")[0] == 1
