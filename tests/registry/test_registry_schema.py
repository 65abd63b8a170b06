from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from registry import Registry, open_registry
from registry.contract import Limits, RegistryUnavailable
from registry.errors import NotFound, SchemaError
from registry.location import POSTGRESQL, SQLITE, parse_location
from registry.opening import Absent
from registry.secrets import KeyRing
from registry.store import schema
from registry.store.database import Database
from registry.store.postgres import PostgresDatabase
from registry.store.sqlite import SqliteDatabase
from registry.store.tables import metadata

CASCADE = {SQLITE: "", POSTGRESQL: " CASCADE"}


def database_at(url: str) -> Database:
    location = parse_location(url)
    return SqliteDatabase(location) if location.path is not None else PostgresDatabase(location)


async def test_an_empty_database_is_migrated_to_the_tables_of_the_program(registry_url: str) -> None:
    database = database_at(registry_url)
    try:
        assert await schema.upgrade(database) == (None, schema.newest_revision())
        assert await schema.current(database) == schema.newest_revision()
        assert await schema.upgrade(database) == (schema.newest_revision(), schema.newest_revision())
        await schema.check(database)
        async with database.alone() as connection:
            differences = await connection.run_sync(
                lambda sync: compare_metadata(
                    MigrationContext.configure(sync, opts={"version_table": schema.VERSION_TABLE}), metadata
                )
            )
        assert differences == []
    finally:
        await database.close()


async def test_constraints_have_the_names_of_the_convention(registry_url: str) -> None:
    def names(connection: sa.Connection) -> set[str | None]:
        inspector = sa.inspect(connection)
        return {
            name
            for table in inspector.get_table_names()
            if table != schema.VERSION_TABLE
            for name in (
                inspector.get_pk_constraint(table)["name"],
                *(one["name"] for one in inspector.get_foreign_keys(table)),
                *(one["name"] for one in inspector.get_unique_constraints(table)),
                *(one["name"] for one in inspector.get_check_constraints(table)),
            )
        }

    database = database_at(registry_url)
    try:
        await schema.upgrade(database)
        async with database.alone() as connection:
            found = await connection.run_sync(names)
        expected = {"ck_clock_one_row"} | {
            str(constraint.name)
            for table in metadata.tables.values()
            for constraint in table.constraints
            if constraint.name is not None and not isinstance(constraint, sa.CheckConstraint)
        }
        # SQLite has no name for the key of a table whose ids are never given again.
        unnamed = {"pk_logins", "pk_servers", "pk_tenants"} if None in found else set()
        assert found - {None} == expected - unnamed
    finally:
        await database.close()


async def test_of_several_migrators_one_migrates(registry_url: str, keyring: KeyRing) -> None:
    async def migrate() -> tuple[str | None, str]:
        async with open_registry(registry_url, keyring) as registry:
            return await registry.upgrade()

    outcomes = await asyncio.gather(*(migrate() for _ in range(4)))
    assert {after for _, after in outcomes} == {schema.newest_revision()}
    assert sum(before is None for before, _ in outcomes) <= 1
    async with open_registry(registry_url, keyring) as registry:
        await registry.check_schema()
        assert await registry.reader.version() == 1


async def test_tables_of_a_newer_program_are_left_alone(registry_url: str, keyring: KeyRing) -> None:
    database = database_at(registry_url)
    try:
        await schema.upgrade(database)
        async with database.writing.begin() as connection:
            await connection.execute(sa.text("update schema_version set version_num = '9999'"))
        with pytest.raises(SchemaError, match="9999"):
            await schema.check(database)
        with pytest.raises(SchemaError, match="9999") as caught:
            async with open_registry(registry_url, keyring) as registry:
                await registry.upgrade()
        assert caught.value.hint == "use a newer pgtenant"
    finally:
        await database.close()


async def test_a_missing_file_is_not_made_by_who_only_reads(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no registry"):
        async with open_registry(f"sqlite:///{tmp_path}/typo.db", absent=Absent.REFUSE):
            pass
    assert not (tmp_path / "typo.db").exists()


async def test_the_file_is_in_wal_mode(tmp_path: Path) -> None:
    async with open_registry(f"sqlite:///{tmp_path}/registry.db") as registry:
        await registry.service.add_tenant("acme")
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()


async def test_a_file_without_tables_is_no_registry_to_those_who_make_none(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(SchemaError, match="there is no registry"):
        async with open_registry(f"sqlite:///{tmp_path}/empty.db", absent=Absent.REFUSE):
            pass


@pytest.mark.parametrize("table", ["servers", "tenant_names", "login_md5", "registry_secrets"])
async def test_a_registry_that_lacks_a_table_has_no_version_for_nodes(registry: Registry, table: str) -> None:
    assert await registry.reader.version() >= 0
    async with registry._database.writing.connect() as connection, connection.begin():
        await connection.exec_driver_sql(f"DROP TABLE {table}{CASCADE[registry.location.kind]}")
    with pytest.raises(RegistryUnavailable, match=rf"is not whole: .*{table}"):
        await registry.reader.version()


async def test_an_upgrade_keeps_what_there_is_and_tells_who_is_not_served_any_more(
    registry_url: str, keyring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    """From 0001, in which a tenant that was PENDING was served from a shared database."""
    database = database_at(registry_url)
    rows: list[tuple[int, str, str, int | None, str | None, int | None]] = [
        (1, "acme", "READY", 1, "acme_data", 3),
        (2, "new", "PENDING", None, None, None),
        (3, "gone", "READY", 1, "x", None),
    ]
    try:
        async with database.migrating().begin() as connection:
            await connection.run_sync(lambda sync: migrate(sync, "0001"))
            await connection.execute(sa.text(SERVER))
            for number, slug, state, server, name, weight in rows:
                values = {"id": number, "slug": slug, "state": state, "server": server, "name": name, "weight": weight}
                await connection.execute(sa.text(TENANT), values)
                await connection.execute(
                    sa.text("insert into tenant_names values (:slug, :id, true)"), {"slug": slug, "id": number}
                )
            await connection.execute(sa.text("delete from tenant_names where tenant_id = 3"))
            await connection.execute(sa.text("delete from tenants where id = 3"))
            if connection.dialect.name == "postgresql":
                await connection.execute(sa.text("select setval('tenants_id_seq', 3)"))
        with pytest.raises(SchemaError, match="tables of version 0001, this program needs"):
            await schema.check(database)
        assert await schema.upgrade(database) == ("0001", schema.newest_revision())
    finally:
        await database.close()
    assert "tenants that are PENDING: 1 (new); " in caplog.text
    assert "pgtenant tenant set SLUG --shared" in caplog.text
    async with open_registry(registry_url, keyring) as registry:
        await registry.check_schema()
        found = {one.slug: one for one in await registry.service.tenants()}
        assert {slug: (one.state, one.shared) for slug, one in found.items()} == {
            "acme": ("READY", False),
            "new": ("PENDING", False),
        }
        assert found["acme"].limits == Limits(pool_size=4)
        assert (await registry.service.add_tenant("next")).tenant_id == 4, "an id is never given twice"
        await registry.service.remove_tenant("acme")
        assert (await registry.service.add_tenant("acme")).tenant_id == 5, "its names have gone with it"
    async with database_at(registry_url).single.begin() as connection:
        assert (await connection.execute(sa.text("select count(*) from tenants where weight > 0"))).scalar_one() == 0


def migrate(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


SERVER = """
insert into servers (id, name, addresses, tls_mode, tls_negotiation, tls_min_version, protocol, channel_binding,
                     max_connections, reserve, draining, health)
values (1, 'eu1', '[["10.0.0.1", 5432]]', 'prefer', 'postgres', '1.2', '3.2', 'prefer', 100, 10, false, 'UNKNOWN')
"""
TENANT = """
insert into tenants (id, slug, state, server_id, database_name, pool_size, weight, pool_mode, reset, session_state,
                     networks, generation)
values (:id, :slug, :state, :server, :name, 4, :weight, 'transaction', 'auto', 'pin', '[]', 1)
"""
