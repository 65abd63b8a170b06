from __future__ import annotations

import signal
from collections.abc import Callable

import psycopg
import pytest
from harness.databases import Database
from harness.proxy import ProxyProcess, sum_of_samples
from harness.registries import RegistryUnderTest

from proxy.demo.facts import ServerFacts
from proxy.demo.install import EmbeddedError
from registry.contract import TenantState


def test_application_reaches_its_tenant_through_the_proxy(
    any_pg: ServerFacts,
    make_database: Callable[..., Database],
    registry: RegistryUnderTest,
    start_proxy: Callable[..., ProxyProcess],
) -> None:
    acme = registry.add_tenant("acme", make_database(any_pg, seed="create table mine as select 'acme' as slug"))
    globex = registry.add_tenant("globex", make_database(any_pg, seed="create table mine as select 'globex' as slug"))
    proxy = start_proxy(pool={"pool_size": 2})
    for tenant in (acme, globex):
        with psycopg.connect(proxy.url_of(tenant), autocommit=True) as connection:
            assert connection.execute("select slug from mine").fetchone() == (tenant.slug,)
    with proxy.connect() as client:
        client.login(acme.user, acme.password, acme.slug)
        assert client.rows("select slug from mine") == [("acme",)]
    assert proxy.metric("pgtenant_build_info") == 1
    proxy.send_signal(signal.SIGTERM)
    assert proxy.wait(15) == 0


def test_proxy_that_does_not_start_shows_its_log(
    registry: RegistryUnderTest, start_proxy: Callable[..., ProxyProcess]
) -> None:
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        start_proxy(pool={"no_such_setting": 1})


PAGE = """\
# TYPE pgtenant_logins_total counter
pgtenant_logins_total 3.0
# TYPE pgtenant_pins gauge
pgtenant_pins{reason="load"} 1.0
pgtenant_pins{reason="listen",tenant="a"} 2.0
# TYPE pgtenant_errors_total counter
# TYPE pgtenant_wait_seconds histogram
"""


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("pgtenant_logins_total", {}, 3),
        ("pgtenant_pins", {}, 3),
        ("pgtenant_pins", {"reason": "listen"}, 2),
        ("pgtenant_pins", {"reason": "listen", "tenant": "b"}, 0),
        ("pgtenant_errors_total", {"tenant": "a"}, 0),
        ("pgtenant_wait_seconds_count", {}, 0),
    ],
)
def test_a_metric_is_the_sum_of_its_samples(name: str, labels: dict[str, str], value: float) -> None:
    assert sum_of_samples(PAGE, name, labels) == value


@pytest.mark.parametrize(
    ("name", "labels"), [("pgtenant_login", {}), ("pgtenant_wait_seconds", {}), ("pgtenant_pins", {"tenants": "a"})]
)
def test_a_metric_that_does_not_exist_is_no_zero(name: str, labels: dict[str, str]) -> None:
    with pytest.raises(LookupError, match=name):
        sum_of_samples(PAGE, name, labels)


def test_registry_changes_while_a_loop_may_run(
    pg18: ServerFacts, make_database: Callable[..., Database], registry: RegistryUnderTest
) -> None:
    registry.add_tenant("acme", make_database(pg18))
    registry.repoint("acme", make_database(pg18))
    registry.do(lambda service: service.suspend_tenant("acme"))
    tenant = registry.do(lambda service: service.tenant("acme"))
    assert (tenant.state, tenant.server) == (TenantState.SUSPENDED, "pg18")
