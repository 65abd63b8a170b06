"""Databases, roles and passwords that are made, changed and dropped while clients come: nobody waits in vain."""

from __future__ import annotations

import time

import psycopg
import pytest
from harness.disasters import login
from harness.rawclient import query
from harness.registries import TenantUnderTest
from harness.waiting import allowed, wait_until
from harness.world import World

from proxy.demo.facts import ServerFacts
from registry.contract import Secret

AT_ONCE = 3.0
"""Seconds; who waits for what does not come waits for the 120 of `queue_wait_timeout`."""


def refusal(world: World, tenant: TenantUnderTest) -> str:
    """What a new client reads, which must not take long; empty where it is served."""
    started = time.monotonic()
    try:
        psycopg.connect(world.url(tenant)).close()
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
        with pytest.raises(psycopg.errors.UndefinedTable), psycopg.connect(world.url(tenant)) as connection:
            connection.execute("table nothing")
    finally:
        world.registry.repoint(tenant.slug, tenant.database)
        pg18.psql("drop database made_later with (force)")
