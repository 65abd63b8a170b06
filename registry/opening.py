"""The way into a registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

from registry.errors import NotFound
from registry.location import SQLITE, Location, parse_location
from registry.operations import keys
from registry.reader import StoredReader
from registry.secrets import KeyRing, Vault
from registry.service import RegistryService
from registry.store import schema
from registry.store.database import Database

POLL_INTERVAL: Final = 0.5


class Absent(Enum):
    """What to do where an SQLite registry is missing or has no tables."""

    MAKE = "make"
    REFUSE = "refuse"
    AWAIT = "await"
    """Open it all the same: look-ups fail until it is there.  Nothing is made or migrated."""


class Registry:
    """An open registry: `reader` for nodes, `service` for administrators.

    Belongs to the event loop in which it was opened.
    """

    def __init__(self, database: Database, vault: Vault, *, poll_interval: float) -> None:
        self._database = database
        self._vault = vault
        self.location = database.location
        self.reader = StoredReader(database, vault, interval=poll_interval)
        self.service = RegistryService(database, vault)
        self._migrated: tuple[str | None, str] | None = None

    async def open(self, absent: Absent) -> None:
        """Bring an SQLite file to this program's version; of a PostgreSQL database nothing is asked yet."""
        if self.location.kind != SQLITE or absent is Absent.AWAIT:
            return
        present = await schema.current(self._database)
        if present is None and absent is Absent.REFUSE:
            raise self._database.no_tables()
        if present != schema.newest_revision():
            self._migrated = await schema.upgrade(self._database)

    async def upgrade(self) -> tuple[str | None, str]:
        """Bring the tables to this program's version; returns the version before (None: no tables) and after.

        Several may do it at once.  Raises SchemaError where the tables are newer, RegistryUnavailable, and
        SecretError where there are keys but not those of this registry.
        """
        versions = await schema.upgrade(self._database)
        await self.check_keys()
        return self._migrated or versions

    async def check_schema(self) -> None:
        """Raise SchemaError unless the tables are those of this program."""
        await schema.check(self._database)

    async def check_keys(self, *, rehearsal: bool = False) -> None:
        """Raise SecretError where the key ring cannot open this registry's secrets; without a key ring do nothing.

        A registry without secrets gets its first one, which binds it to its keys; a rehearsal writes nothing.
        """
        if self._vault.is_open:
            await (keys.check_mock_secret if rehearsal else keys.mock_secret)(self._database, self._vault)

    async def check_secrets(self, ring: KeyRing | None = None) -> None:
        """Raise SecretError where the key ring is missing, or does not fit the secrets that this registry has.

        Another `ring` may be tried in place of its own.
        """
        await keys.check_secrets(self._database, self._vault if ring is None else Vault(ring))

    async def close(self) -> None:
        """Close all connections but those of feeds, which end with their iterators."""
        await self._database.close()


@asynccontextmanager
async def open_registry(
    url: str,
    keyring: KeyRing | None = None,
    *,
    poll_interval: float = POLL_INTERVAL,
    absent: Absent = Absent.MAKE,
) -> AsyncIterator[Registry]:
    """Open the registry at `sqlite:///path` or `postgresql://user@host/database`, and close it at the end.

    An SQLite file is made where it is missing (unless `absent` is REFUSE: NotFound, or SchemaError for one without
    tables) and brought to this program's version.  A PostgreSQL database is first asked when it is needed, so that a
    node can start while it is down; `Registry.upgrade` makes its tables.  Without a key ring everything works that
    touches no secret.  `poll_interval` is the longest time in seconds until a change is seen.

    Raises Invalid for a bad URL, and for SQLite SchemaError and RegistryUnavailable.
    """
    database = _database(parse_location(url), absent)
    registry = Registry(database, Vault(keyring), poll_interval=poll_interval)
    try:
        await registry.open(absent)
        yield registry
    finally:
        await registry.close()


def _database(location: Location, absent: Absent) -> Database:
    if location.kind == SQLITE:
        from registry.store.sqlite import SqliteDatabase  # noqa: PLC0415 (one driver is loaded, not both)

        sqlite = SqliteDatabase(location)
        if absent is Absent.AWAIT:
            return sqlite
        if absent is Absent.REFUSE and not sqlite.path.exists():
            raise NotFound(
                f"there is no registry {location}",
                "`pgtenant registry upgrade` makes one; --registry or PGTENANT_REGISTRY names another place",
            )
        sqlite.create_file()
        return sqlite
    from registry.store.postgres import PostgresDatabase  # noqa: PLC0415

    return PostgresDatabase(location)
