from __future__ import annotations

import pytest

from registry.contract import (
    Address,
    AuthMethod,
    ChannelBinding,
    Limits,
    PoolMode,
    Secret,
    ServerHealth,
    TenantState,
    TlsMode,
)
from registry.domain.limits import check_limits
from registry.domain.models import LoginChange, Server, ServerChange, Tenant, TenantChange
from registry.domain.names import (
    check_addresses,
    check_aliases,
    check_networks,
    check_slug,
    format_address,
    parse_address,
)
from registry.domain.servers import change_server
from registry.domain.states import TRANSITIONS, check_transition
from registry.domain.tenants import change_tenant, resumed, suspended
from registry.errors import Conflict, Invalid, NotFound
from registry.location import parse_location
from registry.service import RegistryService

READY = Tenant(1, "acme", TenantState.READY, server_id=1, server="eu1", database_name="acme", role_user="r")


@pytest.mark.parametrize("slug", ["a", "acme", "a-b_c", "4ever", "x" * 63])
def test_slugs(slug: str) -> None:
    assert check_slug(slug) == slug


@pytest.mark.parametrize(
    "slug", ["", "Acme", "a.b", "-a", "a-", "_a", "x" * 64, "a b", "ä", "a\n", "pgtenant", "postgres", "template1"]
)
def test_what_is_no_slug(slug: str) -> None:
    with pytest.raises(Invalid):
        check_slug(slug)


def test_aliases_are_sorted_and_each_given_once() -> None:
    assert check_aliases(["Zeta", "alpha.1"], "acme") == ("Zeta", "alpha.1")
    for wrong in (["a", "a"], ["acme"], ["a b"], [""], ["pgtenant"], [f"a{n}" for n in range(33)]):
        with pytest.raises(Invalid):
            check_aliases(wrong, "acme")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("db", Address("db", 5432)),
        ("db.example.com:6000", Address("db.example.com", 6000)),
        ("10.0.0.1", Address("10.0.0.1", 5432)),
        ("::1", Address("::1", 5432)),
        ("[fe80::1%eth0]:7000", Address("fe80::1%eth0", 7000)),
        ("/run/postgresql", Address("/run/postgresql", 5432)),
        ("/tmp/.s:5433", Address("/tmp/.s", 5433)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(format_address(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", ":5432", "a b", "db:0", "db:70000", "db:x", "[::1", "a,b", "db:123456", "db:1:2", "::1:54321", "[db:1]:2"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Invalid):
        parse_address(text)


@pytest.mark.parametrize(
    "text", ["postgresql://app:hunter2@db/x", "app:hunter2@db", "app:hunter2@db:5432", "hunter2@::1"]
)
def test_a_url_in_place_of_an_address_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_address(text)
    with pytest.raises(Invalid) as also:
        check_addresses([Address(text)])
    assert "hunter2" not in f"{caught.value}{caught.value.hint}{also.value}{also.value.hint}"


@pytest.mark.parametrize(
    "limits",
    [
        Limits(pool_size=0),
        Limits(pool_size=2_000_000),
        Limits(min_pool_size=-1),
        Limits(pool_size=3, min_pool_size=4),
        Limits(queue_wait_timeout=-1.0),
        Limits(server_lifetime=float("inf")),
        Limits(server_idle_timeout=float("nan")),
    ],
)
def test_limits_out_of_bounds(limits: Limits) -> None:
    with pytest.raises(Invalid):
        check_limits(limits)


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(TenantState)
    for before in TenantState:
        for after in TenantState:
            if before is after or after in TRANSITIONS[before]:
                assert check_transition("acme", before, after) is after
            else:
                with pytest.raises(Conflict, match=f"is {before} and cannot become {after}"):
                    check_transition("acme", before, after)


@pytest.mark.parametrize(
    ("change", "obsolete"),
    [
        (TenantChange(database_name="other"), True),
        (TenantChange(role_user="other"), True),
        (TenantChange(role_user=None), True),
        (TenantChange(limits=Limits(pool_size=4)), False),
        (TenantChange(pool_mode=PoolMode.SESSION), False),
        (TenantChange(aliases=("other",)), False),
        (TenantChange(state=TenantState.SUSPENDED), False),
        (TenantChange(), False),
    ],
)
def test_what_makes_a_new_generation(change: TenantChange, obsolete: bool) -> None:
    assert change_tenant(READY, change, server_id=1, password_changed=False).generation == 1 + obsolete


def test_another_server_or_password_makes_a_new_generation() -> None:
    assert change_tenant(READY, TenantChange(server="eu2"), server_id=2, password_changed=False).generation == 2
    assert change_tenant(READY, TenantChange(), server_id=1, password_changed=True).generation == 2


def test_the_state_follows_the_database() -> None:
    pending = Tenant(1, "acme", TenantState.PENDING)
    ready = change_tenant(pending, TenantChange(server="eu1", database_name="d"), server_id=1, password_changed=False)
    assert ready.state is TenantState.READY
    gone = change_tenant(ready, TenantChange(server=None, database_name=None), server_id=None, password_changed=False)
    assert gone.state is TenantState.PENDING
    with pytest.raises(Invalid, match="has no database"):
        change_tenant(pending, TenantChange(server="eu1"), server_id=1, password_changed=False)
    with pytest.raises(Conflict, match="has no database"):
        change_tenant(pending, TenantChange(state=TenantState.READY), server_id=None, password_changed=False)


def test_a_suspended_tenant_can_be_repointed_and_stays_suspended() -> None:
    tenant = change_tenant(READY, TenantChange(state=suspended(READY)), server_id=1, password_changed=False)
    moved = change_tenant(tenant, TenantChange(server="eu2"), server_id=2, password_changed=False)
    assert moved.state is TenantState.SUSPENDED
    assert resumed(moved) is TenantState.READY


@pytest.mark.parametrize("state", [TenantState.ERROR, TenantState.MOVING, TenantState.CREATING, TenantState.DROPPING])
def test_what_is_not_suspended_is_not_resumed(state: TenantState) -> None:
    tenant = Tenant(1, "acme", state, server_id=1, server="eu1", database_name="acme")
    with pytest.raises(Conflict):
        resumed(tenant)
    with pytest.raises(Conflict):
        suspended(tenant)


def test_networks_have_one_spelling() -> None:
    assert check_networks(["2001:DB8::/32", "10.0.0.1", "10.0.0.1/32"]) == ("10.0.0.1/32", "2001:db8::/32")
    assert check_networks(["::ffff:10.0.0.0/104", "::ffff:192.0.2.7"]) == ("10.0.0.0/8", "192.0.2.7/32")
    assert check_networks(["::/0"]) == ("::/0",), "which is no network of IPv4 addresses"


@pytest.mark.parametrize(
    "networks", [["10.0.0.1/8"], ["localhost"], ["::1/129"], [f"10.0.{n}.0/24" for n in range(65)]]
)
def test_what_is_no_network(networks: list[str]) -> None:
    with pytest.raises(Invalid):
        check_networks(networks)


@pytest.mark.parametrize(
    "change",
    [
        ServerChange(addresses=()),
        ServerChange(addresses=(Address("a"), Address("a"))),
        ServerChange(max_connections=0),
        ServerChange(max_connections=10, reserve=10),
        ServerChange(reserve=-1),
        ServerChange(tls_ca="not PEM"),
        ServerChange(role_password=Secret("x")),
        ServerChange(admin_user="x" * 64),
        ServerChange(auth_password=Secret("x")),
        ServerChange(auth_query="SELECT rolpassword FROM pg_authid", auth_user="asker"),
        ServerChange(auth_user="asker", max_connections=11),
        ServerChange(channel_binding=ChannelBinding.REQUIRE),
    ],
)
def test_servers_that_cannot_be(change: ServerChange) -> None:
    with pytest.raises(Invalid):
        change_server(Server(1, "eu1", (Address("a"),)), change, role_password_changed=False)


def test_what_makes_a_servers_backends_obsolete() -> None:
    server = Server(1, "eu1", (Address("a"),), role_user="app")
    change = ServerChange(draining=True, health=ServerHealth.HEALTHY, max_connections=50)
    outcome = change_server(server, change, role_password_changed=False)
    assert (outcome.moved, outcome.role_changed) == (False, False)
    assert change_server(server, ServerChange(addresses=(Address("b"),)), role_password_changed=False).moved
    assert change_server(server, ServerChange(tls_mode=TlsMode.REQUIRE), role_password_changed=False).moved
    assert change_server(server, ServerChange(role_user="other"), role_password_changed=False).role_changed


async def test_a_changed_server_outdates_the_tenants_that_depend_on_it(service: RegistryService, acme: int) -> None:
    await service.add_tenant("own", TenantChange(server="eu1", database_name="own", role_user="own"))
    await service.add_tenant("elsewhere")

    async def generations() -> dict[str, int]:
        return {tenant.slug: tenant.generation for tenant in await service.tenants()}

    await service.set_server("eu1", ServerChange(role_password=Secret("new")))
    assert await generations() == {"acme": 2, "own": 1, "elsewhere": 1}
    await service.set_server("eu1", ServerChange(addresses=(Address("10.0.0.9"),)))
    assert await generations() == {"acme": 3, "own": 2, "elsewhere": 1}
    await service.set_server("eu1", ServerChange(max_connections=50))
    assert await generations() == {"acme": 3, "own": 2, "elsewhere": 1}


async def test_no_name_stands_for_two_tenants(service: RegistryService, acme: int) -> None:
    with pytest.raises(Conflict, match="there is a tenant 'acme' already"):
        await service.add_tenant("acme")
    await service.set_tenant("acme", TenantChange(aliases=("beta",)))
    with pytest.raises(Conflict, match="tenant 'acme' has the alias 'beta'"):
        await service.add_tenant("beta")
    await service.add_tenant("gamma")
    for taken in ("acme", "beta"):
        with pytest.raises(Conflict, match="is that of tenant 'acme'"):
            await service.set_tenant("gamma", TenantChange(aliases=(taken,)))
    await service.set_tenant("acme", TenantChange(aliases=()))
    assert (await service.set_tenant("gamma", TenantChange(aliases=("beta",)))).aliases == ("beta",)


async def test_a_server_with_tenants_is_not_removed(service: RegistryService, acme: int) -> None:
    with pytest.raises(Conflict, match="has 1 tenant"):
        await service.remove_server("eu1")
    await service.remove_tenant("acme")
    await service.remove_server("eu1")
    assert await service.servers() == []


async def test_what_is_not_there_is_said_with_a_hint(service: RegistryService) -> None:
    for asked in (
        service.server("x"),
        service.tenant("x"),
        service.login("x", None),
        service.logins(tenant="x"),
        service.tenants(server="x"),
        service.set_server("x", ServerChange()),
        service.suspend_tenant("x"),
        service.remove_login("x", None),
        service.add_tenant("y", TenantChange(server="x", database_name="d")),
    ):
        with pytest.raises(NotFound) as caught:
            await asked
        assert caught.value.hint
    assert await service.tenants() == []


async def test_logins_of_one_name_live_side_by_side(service: RegistryService, acme: int) -> None:
    change = LoginChange(password=Secret("pw"))
    await service.add_login("app", None, change)
    for tenant in ("acme", None):
        with pytest.raises(Conflict, match="already"):
            await service.add_login("app", tenant, change)
    await service.remove_login("app", "acme")
    assert [(login.user, login.tenant) for login in await service.logins()] == [("app", None)]


async def test_a_rotated_login_has_the_new_password_with_every_method(service: RegistryService, acme: int) -> None:
    methods = frozenset({AuthMethod.MD5, AuthMethod.SCRAM})
    added = await service.add_login("old", "acme", LoginChange(password=Secret("pw"), methods=methods))
    made = await service.rotate_login("old", "acme")
    login = await service.login("old", "acme")
    assert len(made.reveal()) == 24
    assert (login.methods, login.md5_spellings) == (methods, added.md5_spellings)
    assert login.verifier != added.verifier
    with pytest.raises(Invalid, match="needs its password"):
        await service.set_login("app", "acme", LoginChange(methods=methods))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///registry.db", "sqlite:///registry.db"),
        ("sqlite:////var/lib/registry.db", "sqlite:////var/lib/registry.db"),
        (
            "postgresql://node:pw@db:5433/reg?sslmode=require&sslpassword=x",
            "postgresql://node@db:5433/reg?sslmode=require",
        ),
        ("postgres:///reg?host=/run/pg&password=secret", "postgresql:///reg?host=%2Frun%2Fpg"),
    ],
)
def test_a_location_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert str(parse_location(url)) == shown
    assert "pw" not in repr(parse_location(url))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "registry.db",
        "sqlite://registry.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://pw@x/y",
        "postgresql://node:pw@db:port/reg",
        "postgresql://node:pw@db:70000/reg",
        "postgresql://node:pw/s@db/reg",
        "postgresql://node:5432/pw@db/reg",
        "postgresql://node:5432?pw@db/reg",
        "postgresql://node:5432#pw@db/reg",
        "postgresql://node:p@w@db/reg",
    ],
)
def test_what_is_no_location(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_location(url)
    assert caught.value.hint
    assert "pw" not in str(caught.value)
