"""The shared database: who is served from it, and that nobody gets there who has not said so."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest
from harness.registries import TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Secret
from registry.domain.models import LoginChange, TenantChange

PROXY = {"routing": {"shared_tenant": "t1"}}
SEED = "create table everybodys (owner text); insert into everybodys values ('all')"


@pytest.fixture(scope="module", autouse=True)
def commons(world: World, pg18: ServerFacts) -> TenantUnderTest:
    """The tenant whose database is the shared one."""
    return world.tenant(pg18, seed=SEED)


def newcomer(world: World, slug: str, **change: Any) -> TenantUnderTest:
    """A tenant without a database of its own, and a login."""
    password = f"{slug} secret"
    world.registry.do(lambda service: service.add_tenant(slug, TenantChange(**change)))
    world.registry.do(lambda service: service.add_login("app", slug, LoginChange(password=Secret(password))))
    return TenantUnderTest(slug, "app", password, world.tenants[0].database)


def found(world: World, tenant: TenantUnderTest) -> str:
    """The database that a new client reads, or the SQLSTATE and the text by which it is refused."""
    try:
        with psycopg.connect(world.url(tenant), connect_timeout=5) as connection:
            row = connection.execute("select current_database(), owner from everybodys").fetchone()
            assert row is not None
            return f"{row[0]}: {row[1]}"
    except psycopg.OperationalError as error:
        return f"{error.sqlstate or ''} {error}".strip()


def ends(connection: psycopg.Connection[Any], statement: str, answer: str) -> bool:
    """Whether a session ends soon; until then it must get this answer and no other."""
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        try:
            assert connection.execute(statement.encode()).fetchone() == (answer,)
        except psycopg.OperationalError:
            return True
    return False


def test_a_tenant_that_lacks_a_database_is_refused_and_never_reads_the_shared_one(world: World) -> None:
    pending = newcomer(world, "pending")
    assert 'tenant "pending" has no database yet' in found(world, pending)
    world.registry.set_tenant("pending", shared=True)
    commons = f"{pending.database.name}: all"
    wait_until(lambda: found(world, pending) == commons, seconds=3.0, what="the tenant served, as it has said so")


def test_who_loses_a_database_is_told_so_also_in_the_middle_of_a_session(world: World, pg18: ServerFacts) -> None:
    tenant = world.tenant(pg18)
    with psycopg.connect(world.url(tenant), autocommit=True) as connection:
        assert connection.execute("select current_database()").fetchone() == (tenant.database.name,)
        world.registry.set_tenant(tenant.slug, server=None, database_name=None)
        assert ends(connection, "select current_database()", tenant.database.name)
    assert "has no database yet" in found(world, tenant)


@pytest.mark.parametrize(("state", "told"), [("suspended", "is suspended"), ("no more", "has no database yet")])
def test_one_that_said_so_is_refused_in_the_middle_of_a_session_when_that_ends(
    world: World, state: str, told: str
) -> None:
    tenant = newcomer(world, f"shared-{state.replace(' ', '-')}", shared=True)
    with psycopg.connect(world.url(tenant), autocommit=True) as connection:
        assert connection.execute("select owner from everybodys").fetchone() == ("all",)
        if state == "suspended":
            world.registry.do(lambda service: service.suspend_tenant(tenant.slug))
        else:
            world.registry.set_tenant(tenant.slug, shared=False)
        assert ends(connection, "select owner from everybodys", "all")
    assert told in found(world, tenant)


def test_moving_out_ends_in_the_database_of_ones_own(world: World, pg18: ServerFacts) -> None:
    tenant = newcomer(world, "grown", shared=True)
    assert found(world, tenant).endswith(": all")
    own = world.database(pg18, "grown", seed=SEED.replace("'all'", "'grown'"))
    world.registry.set_tenant("grown", shared=False, **world.registry.place(own))
    wait_until(lambda: found(world, tenant) == f"{own.name}: grown", seconds=3.0, what="the move in force")
