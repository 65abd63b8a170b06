"""Databases, roles and passwords that are made, changed and dropped while clients come: nobody waits in vain."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from harness.disasters import login
from harness.rawclient import bind, describe, execute, parse, query, sync
from harness.registries import TenantUnderTest
from harness.waiting import allowed, wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Limits, Secret
from registry.domain.models import LoginChange

AT_ONCE = 3.0
"""Seconds; who waits for what does not come waits for the 120 of `queue_wait_timeout`."""


def refusal(world: World, tenant: TenantUnderTest) -> str:
    """What a new client reads that asks for something, which must not take long; empty where it is served."""
    started = time.monotonic()
    try:
        with psycopg.connect(world.url(tenant)) as connection:
            connection.execute("select 1")
    except psycopg.OperationalError as error:
        return str(error)
    finally:
        assert time.monotonic() - started < allowed(AT_ONCE)
    return ""


def test_clients_do_not_wait_for_a_backend_that_another_keeps_from_before_a_wrong_password(
    world: World, pg18: ServerFacts
) -> None:
    tenant = world.tenant(pg18)
    with login(world.proxy, tenant) as holder, login(world.proxy, tenant) as other:
        holder.rows("begin")
        world.registry.set_tenant(tenant.slug, role_password=Secret("wrong"))
        wait_until(lambda: "SQLSTATE 28P01" in refusal(world, tenant), what="the change in force")
        started = time.monotonic()
        other.send(query("select 1"))
        assert [message.fields["C"] for message in other.read_until("Z") if message.kind == "E"] == ["57P03"]
        assert time.monotonic() - started < allowed(AT_ONCE)
        assert holder.rows("select 1") == [("1",)]
        holder.rows("commit")
        world.registry.repoint(tenant.slug, tenant.database)
        wait_until(lambda: not refusal(world, tenant), what="the repair in force")
        assert other.rows("select 1") == [("1",)]
    world.wait_for_rest(tenant)


def test_a_password_that_is_wanted_and_not_stored_is_said_to_be_that(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18, role_password=None)
    told = refusal(world, tenant)
    assert "did not accept the proxy's login" in told
    assert "it asks for a password, and the registry has none" in told
    assert tenant.database.role not in told


def test_a_database_is_reached_as_soon_as_it_exists_however_often_it_was_looked_for_before(
    world: World, pg18: ServerFacts
) -> None:
    tenant = world.tenant(pg18, database_name="made_later")
    for _ in range(5):
        assert "SQLSTATE 3D000" in refusal(world, tenant)
    pg18.psql(f"create database made_later owner {tenant.database.role}")
    try:
        assert refusal(world, tenant) == ""
    finally:
        world.registry.repoint(tenant.slug, tenant.database)
        pg18.psql("drop database made_later with (force)")


# Statements for which a database has to be left.

STAFF = "staff"
PATIENCE = 4.0
"""Seconds, less than the five that PostgreSQL waits for others to leave."""


@pytest.fixture(scope="module")
def staff(world: World) -> str:
    """The password of a login for all tenants."""
    password = secrets.token_urlsafe(12)
    world.registry.do(lambda service: service.add_login(STAFF, None, LoginChange(password=Secret(password))))
    return password


@pytest.fixture
def superuser(pg18: ServerFacts) -> Iterator[Callable[[TenantUnderTest], None]]:
    """Lets tenants' roles do what an administrator may, for the length of a test."""
    with ExitStack() as stack:

        def grant(tenant: TenantUnderTest) -> None:
            pg18.psql(f"alter role {tenant.database.role} superuser")
            stack.callback(pg18.psql, f"alter role {tenant.database.role} nosuperuser")

        yield grant


@contextmanager
def at_once() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < allowed(PATIENCE)


def fill(world: World, tenant: TenantUnderTest, count: int) -> None:
    """Leave idle backends in a tenant's pool."""
    with ExitStack() as stack:
        clients = [stack.enter_context(login(world.proxy, tenant)) for _ in range(count)]
        for client in clients:
            client.rows("begin")
        for client in clients:
            client.rows("commit")
    wait_until(lambda: tenant.database.backends("state = 'idle'") == count, what="idle backends")


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_a_tenant_copies_its_own_database_though_others_are_idle_in_it(
    how: str, world: World, pg18: ServerFacts, superuser: Callable[[TenantUnderTest], None]
) -> None:
    tenant = world.tenant(pg18, limits=Limits(min_pool_size=3))
    superuser(tenant)
    fill(world, tenant, 3)
    copy = f"copy_of_{tenant.database.name}"
    sql = f'create database {copy} template "{tenant.database.name}"'
    try:
        with login(world.proxy, tenant) as client, at_once():
            client.send(query(sql) if how == "simple" else parse(sql) + bind() + describe() + execute() + sync())
            assert [message.fields["M"] for message in client.read_until("Z") if message.kind == "E"] == []
            assert client.rows("select 1") == [("1",)]
    finally:
        pg18.psql(f"drop database if exists {copy} with (force)")


def test_a_login_for_all_tenants_renames_and_drops_the_database_of_one(
    world: World, pg18: ServerFacts, staff: str, superuser: Callable[[TenantUnderTest], None]
) -> None:
    tenant, maintenance = world.tenant(pg18), world.tenant(pg18)
    superuser(maintenance)
    name = tenant.database.name
    url = world.proxy.url(maintenance.slug, STAFF, staff)
    with psycopg.connect(url, autocommit=True) as connection:
        fill(world, tenant, 2)
        with at_once():
            connection.execute(f'alter database "{name}" rename to "{name}_2"'.encode())
            connection.execute(f'alter database "{name}_2" rename to "{name}"'.encode())
        assert refusal(world, tenant) == ""
        fill(world, tenant, 2)
        with at_once():
            connection.execute(f"drop database if exists {name}".encode())
        assert "SQLSTATE 3D000" in refusal(world, tenant)
        connection.execute(f"create database {name}".encode())
        assert refusal(world, tenant) == ""


def test_another_tenants_idle_backends_stay_and_postgresql_waits_for_them(
    world: World, pg18: ServerFacts, superuser: Callable[[TenantUnderTest], None]
) -> None:
    tenant, other = world.tenant(pg18), world.tenant(pg18)
    superuser(other)
    fill(world, tenant, 2)
    with psycopg.connect(world.url(other), autocommit=True) as connection:
        # It would fail with 55006 after five seconds.
        connection.execute("set statement_timeout = 300")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(f"drop database {tenant.database.name}".encode())
    assert tenant.database.backends("state = 'idle'") == 2
