"""The version of the tables: finding it out, and migrating to this program's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from registry.errors import RegistryError, SchemaError
from registry.store.database import Database

VERSION_TABLE: Final = "schema_version"
MIGRATIONS: Final = Path(__file__).parent / "migrations"


async def current(database: Database) -> str | None:
    """The version of the tables, None where there are none; raises RegistryUnavailable."""
    with database.errors():
        async with database.alone() as connection:
            return await connection.run_sync(_revision)


async def check(database: Database) -> None:
    """Raise SchemaError unless the tables are those of this program."""
    found = await current(database)
    newest = newest_revision()
    if found is None:
        raise database.no_tables()
    if found not in _known_revisions():
        raise _too_new(database, found)
    if found != newest:
        raise SchemaError(
            f"the registry {database.location} has tables of version {found}, this program needs {newest}",
            "run `pgtenant registry upgrade`",
        )


async def upgrade(database: Database) -> tuple[str | None, str]:
    """Migrate to the newest version; returns the version before and after.

    Of several at once one migrates, and the others find it done.  Raises SchemaError where the tables are newer
    than this program, RegistryUnavailable.
    """
    engine = database.migrating()
    try:
        with database.errors():
            async with engine.begin() as connection:
                await database.take_migration_turn(connection)
                before = await connection.run_sync(_revision)
                if before is not None and before not in _known_revisions():
                    raise _too_new(database, before)
                if before != newest_revision():
                    await connection.run_sync(_migrate)
    finally:
        await engine.dispose()
    return before, newest_revision()


def newest_revision() -> str:
    """The version that this program needs."""
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    if head is None:
        raise SchemaError("the program's migrations are missing", "install it anew")
    return head


def _known_revisions() -> frozenset[str]:
    return frozenset(script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions())


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise RegistryError("the migration broke references between tables", "it was undone; report this")


def _too_new(database: Database, found: str) -> SchemaError:
    return SchemaError(
        f"the registry {database.location} has tables of version {found}, which this program does not know",
        "use a newer pgtenant",
    )
