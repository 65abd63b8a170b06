"""TLS between the proxy and its servers: used where it is asked for, verified where that is asked for."""

from __future__ import annotations

import psycopg
import pytest
import trustme
from harness.disasters import login
from harness.rawclient import query
from harness.registries import TenantUnderTest
from harness.shared import ca_file
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import TlsMode
from registry.domain.models import ServerChange

PROXY = {"pool": {"retry_most": 0.3}}
IS_ENCRYPTED = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"


@pytest.mark.parametrize("mode", TlsMode)
def test_a_server_with_tls_is_reached_in_every_mode_and_cancelled_too(
    mode: TlsMode, world: World, pg17: ServerFacts
) -> None:
    ca = ca_file(pg17).read_text() if mode in {TlsMode.VERIFY_CA, TlsMode.VERIFY_FULL} else None
    tenant = world.tenant_on_own_server(pg17, tls_mode=mode, tls_ca=ca)
    with login(world.proxy, tenant) as client:
        assert client.rows(IS_ENCRYPTED) == [("f" if mode is TlsMode.DISABLE else "t",)]
        (big,) = client.rows("select repeat('x', 3000000)")[0]
        assert big == "x" * 3_000_000
        client.send(query("select pg_sleep(30)"))
        wait_until(lambda: tenant.database.backends("state = 'active'") == 1, what="a query")
        client.cancel()
        assert [message.fields["C"] for message in client.read_until("Z") if message.kind == "E"] == ["57014"]
        client.rows("create table t (a text)")
        client.send(query("insert into t values ('" + "y" * 3_000_000 + "')"))
        client.read_until("Z")
        assert client.rows("select length(a) from t") == [("3000000",)]
    world.wait_for_rest(tenant)


def test_a_server_without_tls_is_refused_where_tls_is_required(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant_on_own_server(pg18, tls_mode=TlsMode.REQUIRE)
    with pytest.raises(psycopg.OperationalError, match="cannot be reached now"):
        psycopg.connect(world.url(tenant))
    world.registry.do(lambda service: service.set_server(f"of-{tenant.slug}", ServerChange(tls_mode=TlsMode.PREFER)))
    wait_until(lambda: is_served(world, tenant), seconds=3.0, what="the change in force")


def test_a_server_whose_certificate_is_from_somebody_else_gets_no_password(world: World, pg17: ServerFacts) -> None:
    stranger = trustme.CA().cert_pem.bytes().decode()
    tenant = world.tenant_on_own_server(pg17, tls_mode=TlsMode.VERIFY_FULL, tls_ca=stranger)
    with pytest.raises(psycopg.OperationalError, match="TLS failed"):
        psycopg.connect(world.url(tenant))
    assert tenant.database.backends() == 0
    right = ServerChange(tls_ca=ca_file(pg17).read_text())
    world.registry.do(lambda service: service.set_server(f"of-{tenant.slug}", right))
    wait_until(lambda: is_served(world, tenant), seconds=3.0, what="the right certificate authority in force")


def is_served(world: World, tenant: TenantUnderTest) -> bool:
    try:
        psycopg.connect(world.url(tenant)).close()
    except psycopg.OperationalError:
        return False
    return True
