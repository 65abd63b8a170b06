"""TLS with clients: who has to use it, what it names, what goes through it, and what is wrong with a certificate."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from harness.bystander import undisturbed
from harness.certificates import Certificates
from harness.process import output
from harness.proxy import ADMIN_TOKEN, ProxyProcess
from harness.rawclient import (
    GSSENC_REQUEST,
    SSL_REQUEST,
    Disconnected,
    RawClient,
    bind,
    cancel_request,
    execute,
    parse,
    query,
    startup,
    sync,
)
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts, clean_environment

MEGABYTE = 1_000_000
BIG = 50 * MEGABYTE
MODES = ("off", "allow", "require")
SNI_DOMAIN = "db.example.com"
SEED = "create table big (id int, data bytea); create table lines (line text)"
ROUTING = {"sni_patterns": [f"{{tenant}}.{SNI_DOMAIN}"]}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"), ("localhost", "127.0.0.1", f"*.{SNI_DOMAIN}"))


@pytest.fixture(scope="module")
def worlds(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, World]]:
    """Three proxies on one registry, one for each mode."""
    registry = RegistryUnderTest(tmp_path_factory.mktemp("registry"))
    registry.do(lambda service: service.tenants())
    with ExitStack() as stack:
        made = {}
        for mode in MODES:
            listen = certificates.listen(mode) if mode != "off" else {}
            directory = tmp_path_factory.mktemp(mode)
            proxy = ProxyProcess(directory, registry.url, registry.keys, listen=listen, routing=ROUTING)
            made[mode] = stack.enter_context(World(registry, stack.enter_context(proxy)))
        yield made


@pytest.fixture(scope="module")
def world(worlds: dict[str, World]) -> World:
    """The one where TLS is required."""
    return worlds["require"]


@pytest.fixture(scope="module")
def acme(world: World, pg18: ServerFacts) -> TenantUnderTest:
    return world.tenant(pg18, seed=SEED)


@pytest.fixture(scope="module")
def globex(world: World, pg17: ServerFacts) -> TenantUnderTest:
    """A tenant whose server speaks TLS as well."""
    return world.tenant(pg17, seed=SEED)


@pytest.fixture(params=["acme", "globex"])
def either(request: pytest.FixtureRequest) -> TenantUnderTest:
    tenant = request.getfixturevalue(request.param)
    assert isinstance(tenant, TenantUnderTest)
    return tenant


def login_over_tls(
    client: RawClient, tenant: TenantUnderTest, context: ssl.SSLContext, *, direct: bool = False
) -> None:
    client.start_tls(context, server_hostname="localhost", direct=direct)
    client.login(tenant.user, tenant.password, tenant.slug)


def encrypted(url: str, **parameters: Any) -> bool:
    """Connect, ask something, and say whether that was encrypted."""
    with psycopg.connect(url, autocommit=True, **parameters) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        return bool(connection.pgconn.ssl_in_use)


@pytest.mark.parametrize(
    ("mode", "sslmode", "outcome"),
    [
        ("off", "disable", False),
        ("off", "prefer", False),
        ("off", "require", "server does not support SSL"),
        ("allow", "disable", False),
        ("allow", "prefer", True),
        ("allow", "require", True),
        ("require", "disable", "encrypted connections only"),
        ("require", "allow", True),
        ("require", "prefer", True),
        ("require", "require", True),
    ],
)
def test_who_has_to_use_tls(
    mode: str, sslmode: str, outcome: bool | str, worlds: dict[str, World], acme: TenantUnderTest
) -> None:
    url = worlds[mode].url(acme, sslmode=sslmode)
    if isinstance(outcome, bool):
        assert encrypted(url) is outcome
    else:
        with pytest.raises(psycopg.OperationalError, match=outcome):
            encrypted(url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", f"nobody-checks.{SNI_DOMAIN}"])
def test_clients_can_verify_whom_they_talk_to(
    host: str, world: World, acme: TenantUnderTest, certificates: Certificates
) -> None:
    where: dict[str, Any] = {"hostaddr": world.proxy.host, "port": world.proxy.port, "password": acme.password}
    if SNI_DOMAIN in host:
        host = f"{acme.slug}.{SNI_DOMAIN}"
    where |= {"user": acme.user, "dbname": acme.slug, **certificates.verify_full()}
    with psycopg.connect(host=host, **where) as connection:
        assert connection.pgconn.ssl_in_use
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        psycopg.connect(host="elsewhere.example.org", **where)


def test_the_host_name_is_a_selector_and_may_not_contradict_others(
    world: World, acme: TenantUnderTest, globex: TenantUnderTest
) -> None:
    def connect(tenant: TenantUnderTest, **names: Any) -> str:
        with psycopg.connect(
            host=f"{tenant.slug}.{SNI_DOMAIN}",
            hostaddr=world.proxy.host,
            port=world.proxy.port,
            password=tenant.password,
            sslmode="require",
            **names,
        ) as connection:
            row = connection.execute("select current_database()").fetchone()
            assert row is not None
            return str(row[0])

    for tenant in (acme, globex):
        assert connect(tenant, user=tenant.user, dbname=tenant.user) == tenant.database.name
        assert connect(tenant, user=tenant.user, dbname=tenant.slug) == tenant.database.name
    with pytest.raises(psycopg.OperationalError, match="names two different tenants") as caught:
        connect(acme, user=acme.user, dbname=globex.slug)
    assert all(f'"{tenant.slug}"' in str(caught.value) for tenant in (acme, globex))


@pytest.mark.parametrize("names", [["postgresql"], ["http/1.1", "postgresql"], ["http/1.1"], []])
def test_direct_tls_needs_the_name_of_the_protocol(
    names: list[str], world: World, acme: TenantUnderTest, certificates: Certificates
) -> None:
    with world.proxy.connect() as client:
        if "postgresql" in names:
            login_over_tls(client, acme, certificates.context(*names), direct=True)
            assert client.rows("select 1") == [("1",)]
        else:
            with pytest.raises((Disconnected, OSError)):
                login_over_tls(client, acme, certificates.context(*names), direct=True)


def test_libpq_can_begin_with_tls_directly(world: World, acme: TenantUnderTest) -> None:
    assert psycopg.pq.version() >= 170000
    assert encrypted(world.url(acme, sslmode="require", sslnegotiation="direct"))


def test_direct_tls_where_there_is_none_ends_the_connection(worlds: dict[str, World], acme: TenantUnderTest) -> None:
    with pytest.raises(psycopg.OperationalError):
        encrypted(worlds["off"].url(acme, sslmode="require", sslnegotiation="direct"))
    with worlds["off"].proxy.connect() as client:
        client.send(bytes.fromhex("16030100c8010000c40303") + bytes(200))
        assert client.read_to_end() == []


def test_gss_encryption_is_declined_before_tls(world: World, acme: TenantUnderTest, certificates: Certificates) -> None:
    with world.proxy.connect() as client:
        client.send(GSSENC_REQUEST)
        assert client.read_exactly(1) == b"N"
        login_over_tls(client, acme, certificates.context())
        assert client.rows("select 1") == [("1",)]


def test_what_comes_in_the_clear_right_behind_the_request_for_tls_is_not_believed(
    world: World, acme: TenantUnderTest, certificates: Certificates
) -> None:
    """A man in the middle would put his own startup there (CVE-2021-23214)."""
    with world.proxy.connect() as client:
        client.send(SSL_REQUEST + startup({"user": acme.user, "database": acme.slug}))
        assert client.read_exactly(1) == b"S"
        handshake = certificates.context().wrap_bio(
            ssl.MemoryBIO(), hello := ssl.MemoryBIO(), server_hostname="localhost"
        )
        with suppress(ssl.SSLWantReadError):
            handshake.do_handshake()
        answer = b""
        with suppress(ConnectionError):
            client.send(hello.read())
            while piece := client.sock.recv(10_000):
                answer += piece
        assert answer[:1] in {b"", b"\x15"}, "an alert at most"


@pytest.mark.parametrize(
    "junk", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500)]
)
def test_handshakes_that_do_not_succeed_trouble_nobody(
    junk: bytes, world: World, acme: TenantUnderTest, certificates: Certificates
) -> None:
    with undisturbed(world.url(acme, sslmode="require")):
        for vanish in (True, False):
            client = world.proxy.connect()
            client.send(SSL_REQUEST)
            assert client.read_exactly(1) == b"S"
            client.send(junk)
            if vanish or not junk.startswith(b"GET"):
                client.reset()
            else:
                with suppress(Disconnected):
                    client.read_to_end()
                client.close()
        old = certificates.context()
        old.set_ciphers("ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with world.proxy.connect() as client, pytest.raises((ssl.SSLError, ConnectionError)):
            client.start_tls(old, server_hostname="localhost")


def test_the_end_of_a_session_is_told_by_tls_as_well(
    world: World, acme: TenantUnderTest, certificates: Certificates
) -> None:
    """Else it might have been cut off by anybody."""
    for where in ("login", "session"):
        with world.proxy.connect() as client:
            client.send(SSL_REQUEST)
            assert client.read_exactly(1) == b"S"
            client.sock = certificates.context().wrap_socket(
                client.sock, server_hostname="localhost", suppress_ragged_eofs=False
            )
            if where == "login":
                client.send(b"\0\0\0\x08\0\x09\0\0")
            else:
                client.login(acme.user, acme.password, acme.slug)
                client.send(b"?\0\0\0\4")
            assert client.read().fields["C"] == ("0A000" if where == "login" else "08P01")
            assert client.sock.recv(1) == b""


def test_psql_and_asyncpg(world: World, either: TenantUnderTest, pg17: ServerFacts, certificates: Certificates) -> None:
    url = world.url(either, **certificates.verify_full())
    command = [str(pg17.bin_dir / "psql"), "-XAtc", "select current_database()", "-c", r"\conninfo", url]
    said = output(command, env=clean_environment())
    assert said.startswith(either.database.name)
    assert "TLS" in said

    async def ask() -> object:
        connection = await asyncpg.connect(world.url(either), ssl=certificates.context(), statement_cache_size=0)
        try:
            numbers = await connection.fetch("select g from generate_series(1, 50000) g")
            assert [row[0] for row in numbers] == list(range(1, 50_001))
            return await connection.fetchval("select current_database()")
        finally:
            await connection.close()

    assert asyncio.run(ask()) == either.database.name


def test_large_values_go_both_ways_byte_exact(world: World, either: TenantUnderTest) -> None:
    data = os.urandom(BIG)
    with psycopg.connect(world.url(either, sslmode="require"), autocommit=True) as connection:
        connection.execute("insert into big values (1, %b)", [data])
        row = connection.execute("select sha256(data), length(data) from big where id = 1").fetchone()
        assert row == (hashlib.sha256(data).digest(), BIG)
        back = connection.execute("select data from big where id = 1", binary=True).fetchone()
        assert back is not None
        assert back[0] == data
        connection.execute("truncate big")


def test_copy_goes_both_ways_byte_exact(world: World, either: TenantUnderTest) -> None:
    sent, received = hashlib.sha256(), hashlib.sha256()
    piece = b"".join(b"%064d\n" % number for number in range(15_000))
    with (
        psycopg.connect(world.url(either, sslmode="require"), autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        with cursor.copy("copy lines from stdin") as copy:
            for _ in range(BIG // len(piece)):
                copy.write(piece)
                sent.update(piece)
        with cursor.copy("copy lines to stdout") as copy:
            for block in copy:
                received.update(block)
        cursor.execute("truncate lines")
    assert received.digest() == sent.digest()


def test_messages_and_tls_records_need_not_fit(world: World, acme: TenantUnderTest, certificates: Certificates) -> None:
    """Every byte in a record of its own, and many messages in one record."""
    with world.proxy.connect() as client:
        login_over_tls(client, acme, certificates.context())
        client.send_bytewise(query("select 'whole'") + parse("select $1") + bind(["two"]) + execute() + sync())
        answers = client.read_until() + client.read_until()
        assert [message.row for message in answers if message.kind == "D"] == [("whole",), ("two",)]
        client.send(*[query(f"select {number}") for number in range(2000)])
        for number in range(2000):
            assert [message.row for message in client.read_until() if message.kind == "D"] == [(str(number),)]
        client.send(query("select repeat('x', 3000000)"))
        assert len(next(message for message in client.read_until() if message.kind == "D").body) > 3 * MEGABYTE


@pytest.mark.parametrize("way", ["encrypted", "in the clear"])
def test_a_query_is_cancelled(way: str, world: World, acme: TenantUnderTest, certificates: Certificates) -> None:
    with RawClient(world.proxy.port) as client, RawClient(world.proxy.port) as canceller:
        login_over_tls(client, acme, certificates.context())
        client.send(query("select pg_sleep(30)"))
        wait_until(lambda: acme.database.backends("query like '%pg_sleep(30)%' and state = 'active'"), what="a query")
        if way == "encrypted":
            canceller.start_tls(certificates.context(), server_hostname="localhost")
        canceller.send(cancel_request(client.pid, client.key))
        assert client.read_until("E")[-1].fields["C"] == "57014"
        assert client.read_until()[-1].text == "I"
        assert client.rows("select 1") == [("1",)]


def test_libpq_cancels(world: World, acme: TenantUnderTest) -> None:
    with psycopg.connect(world.url(acme, sslmode="require"), autocommit=True) as connection:

        def cancel() -> None:
            wait_until(lambda: acme.database.backends("query like '%pg_sleep(31)%' and state = 'active'"), what="it")
            connection.cancel_safe()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(31)")
        thread.join()


@pytest.mark.parametrize("polite", [True, False])
def test_clients_that_vanish_behind_tls_leave_a_clean_backend(
    polite: bool, world: World, acme: TenantUnderTest, certificates: Certificates
) -> None:
    client = world.proxy.connect()
    login_over_tls(client, acme, certificates.context())
    client.send(query("begin"), query("insert into big values (99)"))
    client.read_until()
    if polite:
        assert isinstance(client.sock, ssl.SSLSocket)
        with suppress(ssl.SSLError, OSError):
            client.sock.unwrap()
        client.close()
    else:
        client.reset()
    wait_until(lambda: acme.database.backends("state like '%transaction%'") == 0, what="no transaction left open")
    assert acme.database.psql("select count(*) from big where id = 99") == "0"


def serial_of(proxy: ProxyProcess, certificates: Certificates) -> str:
    """The serial number of the certificate that new clients see."""
    with proxy.connect() as client:
        client.start_tls(certificates.context(), server_hostname="localhost")
        assert isinstance(client.sock, ssl.SSLSocket)
        shown = client.sock.getpeercert()
        assert shown is not None
        return str(shown["serialNumber"])


@pytest.mark.parametrize("how", ["SIGHUP", "POST /reload"])
def test_a_new_certificate_is_shown_after_a_reload_and_a_broken_one_is_not(
    how: str, world: World, acme: TenantUnderTest, certificates: Certificates
) -> None:
    proxy = world.proxy

    def reload() -> int:
        if how == "SIGHUP":
            proxy.send_signal(signal.SIGHUP)
            return 0
        return proxy.http("POST", "/reload", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})[0]

    first = serial_of(proxy, certificates)
    with undisturbed(world.url(acme, sslmode="require")):
        certificates.issue()
        assert serial_of(proxy, certificates) == first
        assert reload() in {0, 200}
        wait_until(lambda: serial_of(proxy, certificates) != first, seconds=2.0, what="the new certificate")
        second = serial_of(proxy, certificates)
        whole = certificates.cert.read_bytes()
        certificates.cert.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
        try:
            status = reload()
            wait_until(lambda: "reload failed" in proxy.logs(), what="the failure in the log")
            assert status == (0 if how == "SIGHUP" else 422)
            assert serial_of(proxy, certificates) == second
        finally:
            certificates.cert.write_bytes(whole)


def missing(files: Certificates) -> str:
    files.cert.unlink()
    return "No such file"


def no_key(files: Certificates) -> str:
    files.key.unlink()
    return "No such file"


def no_pem(files: Certificates) -> str:
    files.cert.write_text("this is no certificate")
    return "cannot be used"


def empty(files: Certificates) -> str:
    files.key.write_bytes(b"")
    return "cannot be used"


def of_another(files: Certificates) -> str:
    kept = files.cert.read_bytes()
    files.issue()
    files.cert.write_bytes(kept)
    return "cannot be used"


def swapped(files: Certificates) -> str:
    cert, key = files.cert.read_bytes(), files.key.read_bytes()
    files.cert.write_bytes(key)
    files.key.write_bytes(cert)
    return "cannot be used"


@pytest.mark.parametrize("spoil", [missing, no_key, no_pem, empty, of_another, swapped])
def test_certificates_that_cannot_be_used_are_explained_at_the_start(
    spoil: Callable[[Certificates], str], registry: RegistryUnderTest, tmp_path: Path
) -> None:
    files = Certificates(tmp_path)
    said = spoil(files)
    registry.do(lambda service: service.tenants())
    proxy = ProxyProcess(tmp_path, registry.url, registry.keys, listen=files.listen("require"))
    proxy.start(wait=False)
    assert proxy.wait(20) == 1
    log = " ".join(proxy.logs().split())
    assert "error: certificate" in log
    assert said in log
    assert "hint:" in log
    assert "Traceback" not in log


def test_tls_without_files_is_explained_at_the_start(registry: RegistryUnderTest, tmp_path: Path) -> None:
    proxy = ProxyProcess(tmp_path, registry.url, registry.keys, listen={"tls_mode": "require"})
    proxy.start(wait=False)
    assert proxy.wait(20) == 1
    assert "needs tls_cert and tls_key" in " ".join(proxy.logs().split())
