"""Certificates on both sides of a client's connection: its own, and which of the proxy's it is shown."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
from harness.certificates import Certificates
from harness.process import output
from harness.proxy import ProxyProcess
from harness.rawclient import cancel_request, query
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts, clean_environment

DOMAIN = "db.example.com"
MODES = ("require", "verify-ca", "verify-full")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def issue_for_hosts(certificates: Certificates, *names: str) -> Path:
    """A further certificate of the proxy's, with its key in the same file."""
    path = certificates.directory / f"{names[0].replace('*', 'any')}.pem"
    made = certificates.authority.issue_cert(*names)
    path.write_bytes(b"".join(pem.bytes() for pem in (*made.cert_chain_pems, made.private_key_pem)))
    return path


@pytest.fixture(scope="module")
def client_authority(certificates: Certificates) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(certificates.directory / "clients.pem"))
    return authority


@pytest.fixture(scope="module")
def worlds(
    certificates: Certificates, client_authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, World]]:
    """Three proxies on one registry, one for each mode, all of which ask clients for certificates."""
    registry = RegistryUnderTest(tmp_path_factory.mktemp("registry"))
    registry.do(lambda service: service.tenants())
    certs = [
        str(issue_for_hosts(certificates, f"*.{DOMAIN}")),
        str(issue_for_hosts(certificates, f"special.{DOMAIN}")),
    ]
    with ExitStack() as stack:
        made = {}
        for mode in MODES:
            listen = {
                **certificates.listen(mode),
                "tls_client_ca": str(certificates.directory / "clients.pem"),
                "tls_certs": certs,
            }
            proxy = ProxyProcess(tmp_path_factory.mktemp(mode), registry.url, registry.keys, listen=listen)
            made[mode] = stack.enter_context(World(registry, stack.enter_context(proxy)))
        yield made


@pytest.fixture(scope="module")
def acme(worlds: dict[str, World], pg18: ServerFacts) -> TenantUnderTest:
    return worlds["verify-full"].tenant(pg18)


def own(authority: trustme.CA, directory: Path, name: str) -> dict[str, Any]:
    """What libpq has to be told in order to show a certificate with this common name."""
    made = authority.issue_cert(common_name=name)
    cert, key = directory / "client.crt", directory / "client.key"
    made.cert_chain_pems[0].write_to_path(str(cert))
    key.touch(0o600)
    made.private_key_pem.write_to_path(str(key))
    return {"sslcert": str(cert), "sslkey": str(key)}


def outcome(world: World, tenant: TenantUnderTest, **parameters: str) -> str:
    """The tenant's database, or with what SQLSTATE or words the login is refused."""
    try:
        with psycopg.connect(world.url(tenant, **{"sslmode": "require", **parameters})) as connection:
            row = connection.execute("select current_database()").fetchone()
            return "" if row is None else str(row[0])
    except psycopg.OperationalError as error:
        return str(error)


@pytest.mark.parametrize(
    ("mode", "name", "refusal"),
    [
        ("require", None, None),
        ("require", "whoever", None),
        ("verify-ca", None, "requires a valid client certificate"),
        ("verify-ca", "whoever", None),
        ("verify-full", None, "requires a valid client certificate"),
        ("verify-full", "whoever", 'not one of user "app"'),
        ("verify-full", "app.other", 'not one of user "app"'),
        ("verify-full", "app", None),
        ("verify-full", "app.{slug}", None),
    ],
)
def test_whose_certificate_lets_a_client_in(
    mode: str,
    name: str | None,
    refusal: str | None,
    worlds: dict[str, World],
    acme: TenantUnderTest,
    client_authority: trustme.CA,
    tmp_path: Path,
) -> None:
    shown = {} if name is None else own(client_authority, tmp_path, name.format(slug=acme.slug))
    said = outcome(worlds[mode], acme, **shown)
    assert said == acme.database.name if refusal is None else refusal in said


@pytest.mark.parametrize("mode", MODES)
def test_a_certificate_of_another_authority_is_refused_in_every_mode(
    mode: str, worlds: dict[str, World], acme: TenantUnderTest, tmp_path: Path
) -> None:
    said = outcome(worlds[mode], acme, **own(trustme.CA(), tmp_path, "app"))
    assert "alert" in said or "closed" in said
    wait_until(lambda: "certificate verify failed" in worlds[mode].proxy.logs(), what="the reason in the log")


def test_the_certificate_does_not_replace_the_password(
    worlds: dict[str, World], acme: TenantUnderTest, client_authority: trustme.CA, tmp_path: Path
) -> None:
    guessed = replace(acme, password="wrong")
    said = outcome(worlds["verify-full"], guessed, **own(client_authority, tmp_path, "app"))
    assert "password authentication failed" in said


def test_a_cancel_needs_no_certificate(
    worlds: dict[str, World],
    acme: TenantUnderTest,
    certificates: Certificates,
    client_authority: trustme.CA,
    tmp_path: Path,
) -> None:
    """Many drivers do not show theirs then; the key is proof enough."""
    proxy = worlds["verify-full"].proxy
    context = certificates.context("postgresql")
    client_authority.issue_cert(common_name="app").configure_cert(context)
    with proxy.connect() as client, proxy.connect() as canceller:
        client.start_tls(context, server_hostname="localhost", direct=True)
        client.login(acme.user, acme.password, acme.slug)
        client.send(query("select pg_sleep(30)"))
        wait_until(lambda: acme.database.backends("state = 'active' and query like '%sleep%'") == 1, what="a query")
        canceller.start_tls(certificates.context(), server_hostname="localhost")
        canceller.send(cancel_request(client.pid, client.key))
        assert client.read_until("E")[-1].fields["C"] == "57014"


def test_a_host_name_that_is_no_text_fails_alone_and_makes_one_line_in_the_log(
    worlds: dict[str, World], acme: TenantUnderTest, certificates: Certificates
) -> None:
    proxy = worlds["require"].proxy
    handshake = certificates.context("postgresql").wrap_bio(
        ssl.MemoryBIO(), hello := ssl.MemoryBIO(), server_hostname="zzzz.example.com"
    )
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    with proxy.connect() as client:
        client.send(hello.read().replace(b"zzzz", b"\xff\xfe\xc3("))
        assert client.sock.recv(1) in {b"", b"\x15"}, "an alert at most"
    wait_until(lambda: "error ignored" in proxy.logs(), what="a line in the log")
    assert "Traceback" not in proxy.logs()
    assert outcome(worlds["require"], acme) == acme.database.name


@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
@pytest.mark.parametrize("host", ["localhost", f"acme.{DOMAIN}", f"special.{DOMAIN}"])
def test_libpq_verifies_the_certificate_of_each_host_name(
    host: str, negotiation: str, worlds: dict[str, World], acme: TenantUnderTest, certificates: Certificates
) -> None:
    proxy = worlds["require"].proxy
    where: dict[str, Any] = {"hostaddr": proxy.host, "port": proxy.port, "user": acme.user, "dbname": acme.slug}
    where |= {"password": acme.password, "sslnegotiation": negotiation, **certificates.verify_full()}
    with psycopg.connect(host=host, **where) as connection:
        assert connection.pgconn.ssl_in_use
    if host != "localhost":
        with pytest.raises(psycopg.OperationalError, match="certificate"):
            psycopg.connect(host=host, sslsni="0", **where)


def test_psql_shows_its_certificate(
    worlds: dict[str, World],
    acme: TenantUnderTest,
    certificates: Certificates,
    client_authority: trustme.CA,
    pg17: ServerFacts,
    tmp_path: Path,
) -> None:
    parameters = {**certificates.verify_full(), **own(client_authority, tmp_path, "app")}
    url = worlds["verify-full"].url(acme, **parameters)
    command = [str(pg17.bin_dir / "psql"), "-XAtc", "select current_database()", url]
    assert output(command, env=clean_environment()).strip() == acme.database.name


def test_certificates_that_change_on_disk_are_shown_without_a_reload_and_broken_ones_are_not(
    worlds: dict[str, World], acme: TenantUnderTest, certificates: Certificates
) -> None:
    proxy = worlds["require"].proxy
    host = f"special.{DOMAIN}"

    def serial() -> str:
        with proxy.connect() as client:
            client.start_tls(certificates.context(), server_hostname=host)
            assert isinstance(client.sock, ssl.SSLSocket)
            return str((client.sock.getpeercert() or {})["serialNumber"])

    with psycopg.connect(worlds["require"].url(acme, sslmode="require")) as established:
        first = serial()
        path = issue_for_hosts(certificates, host)
        wait_until(lambda: serial() != first, seconds=15.0, what="the new certificate")
        second, whole = serial(), path.read_bytes()
        path.write_bytes(whole[:-50])
        wait_until(lambda: "those of before stay in force" in proxy.logs(), seconds=15.0, what="a complaint")
        assert serial() == second
        path.write_bytes(whole)
        assert established.execute("select 1").fetchone() == (1,)
