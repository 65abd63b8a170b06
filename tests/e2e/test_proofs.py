"""How clients prove who they are: certificates, channel binding, where they come from, and what failures cost."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
from cryptography import x509
from harness.certificates import Certificates
from harness.proxy import ProxyProcess
from harness.rawclient import cstring, frame, startup
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import allowed, wait_until
from harness.world import World

from proxy.auth import ScramClient
from proxy.demo.facts import ServerFacts
from registry.contract import AuthMethod, Secret
from registry.domain.models import LoginChange

CERT = frozenset({AuthMethod.CERT})


class Clients:
    """An authority for clients' certificates, and the files of some."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.ca = directory / "clients.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def issue(
        self, name: str, *, authority: trustme.CA | None = None, organization: str | None = None
    ) -> dict[str, str]:
        """The parameters of libpq for a certificate with this common name."""
        made = (authority or self.authority).issue_cert(common_name=name, organization_name=organization)
        cert, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return {"sslmode": "require", "sslcert": str(cert), "sslkey": str(key)}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Clients:
    return Clients(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def world(certificates: Certificates, clients: Clients, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    registry = RegistryUnderTest(tmp_path_factory.mktemp("registry"))
    registry.do(lambda service: service.tenants())
    listen = {**certificates.listen("allow"), "tls_client_ca": str(clients.ca)}
    with (
        ProxyProcess(tmp_path_factory.mktemp("proxy"), registry.url, registry.keys, listen=listen) as proxy,
        World(registry, proxy) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def tenant(world: World, pg18: ServerFacts) -> TenantUnderTest:
    return world.tenant(pg18)


def whoami(world: World, tenant: TenantUnderTest, **parameters: Any) -> str:
    with psycopg.connect(world.url(tenant), **parameters) as connection:
        row = connection.execute("select current_user::text").fetchone()
    assert row is not None
    return str(row[0])


def refusal(world: World, tenant: TenantUnderTest, **parameters: Any) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(world.url(tenant), **parameters).close()
    return str(caught.value)


# Certificates.


def test_a_certificate_is_a_proof_where_the_login_says_so(
    world: World, tenant: TenantUnderTest, clients: Clients
) -> None:
    world.registry.do(lambda service: service.add_login("batch", tenant.slug, LoginChange(methods=CERT)))
    named = LoginChange(methods=CERT, certificate="reports@acme")
    world.registry.do(lambda service: service.add_login("reports", tenant.slug, named))
    own: dict[str, Any] = {"user": "batch", "password": "", **clients.issue(f"batch.{tenant.slug}")}
    assert whoami(world, tenant, **own) == tenant.database.role
    of_another: dict[str, Any] = {"user": "batch", "password": "x", **clients.issue("batch")}
    assert "password authentication failed" in refusal(world, tenant, **of_another), "it may be another tenant's batch"
    assert whoami(world, tenant, user="reports", password="", **clients.issue("reports@acme")) == tenant.database.role


def test_a_certificate_may_be_known_by_its_whole_subject(
    world: World, tenant: TenantUnderTest, clients: Clients
) -> None:
    files = clients.issue("etl", organization="Acme")
    subject = x509.load_pem_x509_certificate(Path(files["sslcert"]).read_bytes()).subject.rfc4514_string()
    login = LoginChange(methods=CERT, certificate=f"dn:{subject}")
    world.registry.do(lambda service: service.add_login("etl", tenant.slug, login))
    assert whoami(world, tenant, user="etl", password="", **files) == tenant.database.role
    again = clients.issue("etl", organization="Other")
    assert "password authentication failed" in refusal(world, tenant, user="etl", password="x", **again)


@pytest.mark.parametrize("whose", ["nobody's", "another login's", "another authority's"])
def test_without_the_right_certificate_a_login_is_like_one_that_does_not_exist(
    whose: str, world: World, tenant: TenantUnderTest, clients: Clients
) -> None:
    user = f"job-{len(whose)}"
    world.registry.do(lambda service: service.add_login(user, tenant.slug, LoginChange(methods=CERT)))
    if whose == "another authority's":
        with pytest.raises(psycopg.OperationalError, match=r"(?i)ssl|tls|closed"):
            whoami(world, tenant, user=user, password="x", **clients.issue(user, authority=trustme.CA()))
        return
    files = {} if whose == "nobody's" else clients.issue("somebody-else")
    told = refusal(world, tenant, user=user, password="x", **files)
    assert told == refusal(world, tenant, user="nobody", password="x", **files).replace("nobody", user)


def test_a_certificate_is_no_proof_for_a_login_that_does_not_say_so(
    world: World, tenant: TenantUnderTest, clients: Clients
) -> None:
    files = clients.issue(tenant.user)
    assert "password authentication failed" in refusal(world, tenant, password="guess", **files)
    assert whoami(world, tenant, **files) == tenant.database.role


# Channel binding.


@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
def test_libpq_binds_its_login_to_the_connection(
    binding: str, world: World, tenant: TenantUnderTest, certificates: Certificates
) -> None:
    parameters = {**certificates.verify_full(), "host": "localhost", "channel_binding": binding}
    assert whoami(world, tenant, **parameters) == tenant.database.role


def test_without_tls_there_is_nothing_to_bind_to(world: World, tenant: TenantUnderTest) -> None:
    assert whoami(world, tenant, sslmode="disable", channel_binding="prefer") == tenant.database.role
    assert "channel binding" in refusal(world, tenant, sslmode="disable", channel_binding="require")


def test_the_operator_may_switch_it_off(
    registry: RegistryUnderTest, pg18: ServerFacts, certificates: Certificates, start_proxy: Callable[..., ProxyProcess]
) -> None:
    registry.do(lambda service: service.tenants())
    listen = certificates.listen("allow")
    with World(registry, start_proxy(listen=listen, auth={"channel_binding": False})) as other:
        tenant = other.tenant(pg18)
        assert whoami(other, tenant, sslmode="require") == tenant.database.role
        assert "channel binding" in refusal(other, tenant, sslmode="require", channel_binding="require")


# Networks.


def test_clients_from_elsewhere_hear_what_strangers_hear(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, networks=("192.0.2.0/24", "2001:db8::/32"))
    assert refusal(world, tenant) == refusal(world, tenant, password="guess")
    assert f'password authentication failed for user "{tenant.user}"' in refusal(world, tenant)
    assert "may not come from this address" in world.proxy.logs()
    world.registry.set_tenant(tenant.slug, networks=("192.0.2.0/24", "127.0.0.0/8"))
    wait_until(lambda: _lets_in(world, tenant), what="the network is one of the tenant's")


def _lets_in(world: World, tenant: TenantUnderTest) -> bool:
    try:
        return bool(whoami(world, tenant))
    except psycopg.OperationalError:
        return False


# Changes meanwhile.


@pytest.mark.parametrize("change", ["another password", "removed", "another network"])
def test_who_began_to_log_in_before_a_change_is_held_to_what_is_in_force(
    change: str, world: World, pg18: ServerFacts
) -> None:
    tenant = world.tenant(pg18)
    with world.proxy.connect() as slow:
        slow.send(startup({"user": tenant.user, "database": tenant.slug}))
        scram = ScramClient(tenant.password, bytes(18))
        assert slow.read().int32 == 10
        first = scram.first()
        slow.send(frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", len(first)) + first))
        proof = scram.respond(slow.read().body[4:])
        if change == "another password":
            world.registry.do(lambda service: service.rotate_login(tenant.user, tenant.slug))
        elif change == "removed":
            world.registry.do(lambda service: service.remove_login(tenant.user, tenant.slug))
        else:
            world.registry.set_tenant(tenant.slug, networks=("192.0.2.0/24",))
        wait_until(lambda: not _lets_in(world, tenant), what="the change in force")
        slow.send(frame("p", proof))
        assert slow.read().fields["C"] == "28P01"


# Long passwords.


@pytest.mark.parametrize("letter", ["p", "\u00e9"])
def test_the_longest_password_that_postgresql_takes_leads_through_on_both_sides(
    world: World, pg17: ServerFacts, letter: str
) -> None:
    longest = letter * (65_530 // len(letter.encode()))
    tenant = world.tenant(pg17)
    tenant.database.psql(f"alter role {tenant.database.role} password '{longest}'")
    world.registry.set_tenant(tenant.slug, role_password=Secret(longest))
    methods = frozenset({AuthMethod.PASSWORD})
    change = LoginChange(password=Secret(longest), methods=methods)
    world.registry.do(lambda service: service.add_login("long", tenant.slug, change))
    role = whoami(world, tenant, user="long", password=longest, sslmode="require")
    assert role == tenant.database.role


# Failed logins.


def test_failures_slow_their_address_and_tenant_and_nobody_else(
    registry: RegistryUnderTest, pg18: ServerFacts, start_proxy: Callable[..., ProxyProcess]
) -> None:
    registry.do(lambda service: service.tenants())
    with World(registry, start_proxy(auth={"failure_delay": 0.3, "failure_delay_most": 0.6})) as world:
        one, other = world.tenant(pg18), world.tenant(pg18)
        waits = [_until_refused(world, one) for _ in range(5)]
        assert max(waits[:3]) < allowed(0.25)
        assert min(waits[3:]) > 0.25
        assert [_until_refused(world, one, dbname="no-such-tenant") for _ in range(4)][3] > 0.25
        assert _until_let_in(world, other, other.password) < allowed(0.25), "another tenant"
        assert 0.25 < _until_let_in(world, one, one.password) < allowed(2), "the right password waits as long, once"
        assert _until_let_in(world, one, one.password) < allowed(0.25), "and has cleared the failures"


def test_a_hundred_connections_guess_no_faster_than_one_and_who_shares_their_address_goes_on(
    registry: RegistryUnderTest, pg18: ServerFacts, start_proxy: Callable[..., ProxyProcess]
) -> None:
    registry.do(lambda service: service.tenants())
    with World(registry, start_proxy(auth={"failure_delay": 0.2, "failure_delay_most": 0.2})) as world:
        tenant = world.tenant(pg18)
        mate = LoginChange(password=Secret("mate"))
        world.registry.do(lambda service: service.add_login("mate", tenant.slug, mate))
        began = time.monotonic()
        with ThreadPoolExecutor(12) as pool:
            guesses = [pool.submit(_until_refused, world, tenant) for _ in range(12)]
            wait_until(lambda: sum(one.done() for one in guesses) >= 3, what="the first three refused")
            mates = _until_let_in(world, tenant, "mate", user="mate")
            assert not all(one.done() for one in guesses)
        assert time.monotonic() - began >= 9 * 0.2
        assert mates < allowed(0.2)
        assert _until_refused(world, tenant) > 0.15, "what a mate has proved forgives nothing"


def _until_let_in(world: World, tenant: TenantUnderTest, password: str, **parameters: Any) -> float:
    """The seconds that a login takes."""
    began = time.monotonic()
    psycopg.connect(world.url(tenant), password=password, **parameters).close()
    return time.monotonic() - began


def _until_refused(world: World, tenant: TenantUnderTest, **parameters: Any) -> float:
    """The seconds that it takes to be told that a password is wrong."""
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(world.url(tenant), password="guess", **parameters)
    return time.monotonic() - began
