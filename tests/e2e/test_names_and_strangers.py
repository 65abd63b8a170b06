"""How connections name their tenant, what strangers learn, and what bad input does."""

from __future__ import annotations

import random
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
from harness.databases import Database
from harness.proxy import ProxyProcess
from harness.rawclient import Disconnected, RawClient, ServerSaid, frame, query, startup
from harness.registries import RegistryUnderTest, TenantUnderTest

from proxy.demo.facts import ServerFacts

MakeDatabase = Callable[..., Database]
StartProxy = Callable[..., ProxyProcess]


@pytest.fixture
def acme(pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest) -> TenantUnderTest:
    return registry.add_tenant("acme", make_database(pg18), aliases=("acme-inc",))


@pytest.fixture
def globex(pg18: ServerFacts, make_database: MakeDatabase, registry: RegistryUnderTest) -> TenantUnderTest:
    return registry.add_tenant("globex", make_database(pg18))


def reached(**where: Any) -> str:
    with psycopg.connect(**where, autocommit=True) as connection:
        row = connection.execute("select current_database()").fetchone()
        assert row is not None
        return str(row[0])


def test_every_selector_finds_the_tenant(
    acme: TenantUnderTest, globex: TenantUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(routing={"database_patterns": ["db_{tenant}"]})
    known = {"host": proxy.host, "port": proxy.port, "password": acme.password}
    ours = acme.database.name
    assert reached(**known, user="app", dbname="acme") == ours
    assert reached(**known, user="app", dbname="acme-inc") == ours
    assert reached(**known, user="app", dbname="db_acme") == ours
    assert reached(**known, user="app", dbname=ours) == ours
    assert reached(**known, user="app.acme") == ours
    assert reached(**known, user="app", options="-c tenant=acme") == ours
    assert reached(**{**known, "password": globex.password}, user="app.globex") == globex.database.name


def test_contradictory_selectors_are_refused_with_both_named(
    acme: TenantUnderTest, globex: TenantUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy()
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(proxy.url("globex", "app.acme", acme.password))
    assert "acme" in str(caught.value)
    assert "globex" in str(caught.value)
    assert globex.slug == "globex"


def test_a_strangers_conversation_is_the_same_for_known_and_unknown_tenants_and_users(
    acme: TenantUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy()
    told = set()
    for user, database in (("app", "acme"), ("app", "nobody"), ("eve", "acme")):
        with proxy.connect() as client, pytest.raises(ServerSaid) as caught:
            client.login(user, "wrong password", database)
        fields = caught.value.fields
        told.add((fields["S"], fields["C"], fields["M"].replace(user, "USER"), fields.get("H")))
    assert len(told) == 1
    assert next(iter(told))[1] == "28P01"
    assert acme.slug == "acme"


@pytest.mark.parametrize("length", [0, 3, 2**31 - 1])
def test_impossible_lengths_are_answered_or_cut_and_nobody_else_notices(
    length: int, acme: TenantUnderTest, start_proxy: StartProxy
) -> None:
    proxy = start_proxy()
    with psycopg.connect(proxy.url_of(acme), autocommit=True) as bystander:
        with proxy.connect() as client:
            client.send(struct.pack("!i", length) + b"\0\3\0\0")
            ended(client)
        with proxy.connect() as client:
            client.login(acme.user, acme.password, acme.slug)
            client.send(b"Q" + struct.pack("!i", length) + b"x" * 20)
            ended(client)
        assert bystander.execute("select 1").fetchone() == (1,)
    assert proxy.metric("pgtenant_internal_errors_total") == 0


def ended(client: RawClient) -> None:
    """The proxy ends this connection, with a protocol violation or without a word."""
    for message in client.read_to_end():
        if message.kind == "E":
            assert message.fields["C"] in {"08P01", "0A000"}


def test_random_bytes_harm_nobody(acme: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(listen={"login_timeout": 1.0})
    chance = random.Random(4)
    with psycopg.connect(proxy.url_of(acme), autocommit=True) as bystander:
        for turn in range(30):
            with proxy.connect() as client:
                if turn % 2:
                    client.login(acme.user, acme.password, acme.slug)
                client.send(chance.randbytes(chance.randrange(1, 400)))
            assert bystander.execute("select 1").fetchone() == (1,)
    assert proxy.metric("pgtenant_internal_errors_total") == 0


def test_a_startup_that_never_ends_is_ended(acme: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy(listen={"login_timeout": 0.5})
    with proxy.connect() as client:
        client.send(startup({"user": acme.user, "database": acme.slug})[:9])
        messages = client.read_to_end()
        assert [message.fields["C"] for message in messages if message.kind == "E"] == ["57014"]


def test_a_session_split_at_every_byte_is_the_same_session(acme: TenantUnderTest, start_proxy: StartProxy) -> None:
    proxy = start_proxy()
    with proxy.connect() as client:
        client.login(acme.user, acme.password, acme.slug)
        client.send_bytewise(query("select 'whole'") + frame("S"))
        assert [message.row for message in client.read_until("Z") if message.kind == "D"] == [("whole",)]
        client.read_until("Z")


@pytest.mark.parametrize("mode", ["allow", "require"])
def test_tls_with_clients_and_the_host_name_as_selector(
    mode: str, acme: TenantUnderTest, start_proxy: StartProxy, tmp_path: Path
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("acme.db.example.com", "localhost", "127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    listen = {"tls_mode": mode, "tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    proxy = start_proxy(listen=listen, routing={"sni_patterns": ["{tenant}.db.example.com"]})
    safe = {"sslmode": "verify-full", "sslrootcert": str(tmp_path / "ca.pem")}
    with psycopg.connect(proxy.url_of(acme, **safe), autocommit=True) as connection:
        big = connection.execute("select repeat('x', 5000000)").fetchone()
        assert big is not None
        assert len(big[0]) == 5_000_000
        assert connection.execute("select length(%s)", ["y" * 3_000_000]).fetchone() == (3_000_000,)
    named = {"host": "acme.db.example.com", "hostaddr": proxy.host, "port": proxy.port, "password": acme.password}
    assert reached(**named, user="app", dbname="app", **safe) == acme.database.name
    if mode == "require":
        with pytest.raises(psycopg.OperationalError, match="encrypted connections only"):
            psycopg.connect(proxy.url_of(acme, sslmode="disable"))
    else:
        assert reached(host=proxy.host, port=proxy.port, password=acme.password, user="app", dbname="acme")


def test_direct_tls_needs_the_protocol_name(acme: TenantUnderTest, start_proxy: StartProxy, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    proxy = start_proxy(
        listen={"tls_mode": "require", "tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["postgresql"])
    with proxy.connect() as client:
        login_over_direct_tls(client, context, acme)
        assert client.rows("select 1") == [("1",)]
    context.set_alpn_protocols(["http/1.1"])
    with proxy.connect() as client, pytest.raises((Disconnected, OSError)):
        login_over_direct_tls(client, context, acme)


def login_over_direct_tls(client: RawClient, context: ssl.SSLContext, tenant: TenantUnderTest) -> None:
    client.start_tls(context, server_hostname="localhost", direct=True)
    client.login(tenant.user, tenant.password, tenant.slug)
