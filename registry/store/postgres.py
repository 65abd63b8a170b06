"""A registry in a PostgreSQL database, which all nodes share.

Source: PostgreSQL documentation, `LISTEN`, `NOTIFY` and "Explicit Locking"; asyncpg understands libpq's URLs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from registry.contract import RegistryUnavailable
from registry.errors import Invalid, RegistryError
from registry.store.database import LOCK_TIMEOUT, POOL_TIMEOUT, Database, Watch
from registry.store.tables import clock

CHANNEL: Final = "pgtenant_registry"
MIGRATION_LOCK: Final = 7_304_912_640_231_911
READERS: Final = 8
WRITERS: Final = 2
CONNECT_TIMEOUT: Final = 5.0
STATEMENT_TIMEOUT: Final = 15.0
LISTEN_TIMEOUT: Final = 5.0

_FORM: Final = "postgresql://user:password@host:port/database, as libpq takes it"
_MISSING_TABLE: Final = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)
_REFUSED: Final = (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError)


class PostgresDatabase(Database):
    """See Database."""

    def _engine_for_reading(self) -> AsyncEngine:
        return self._engine(pool_size=READERS, max_overflow=0, pool_timeout=POOL_TIMEOUT, isolation_level="AUTOCOMMIT")

    def _engine_for_writing(self) -> AsyncEngine:
        return self._engine(pool_size=WRITERS, max_overflow=0, pool_timeout=LOCK_TIMEOUT, pool_pre_ping=True)

    def _engine_of_singles(self) -> AsyncEngine:
        return self._engine(poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def migrating(self) -> AsyncEngine:
        return self._engine(poolclass=NullPool)

    def _engine(self, **options: Any) -> AsyncEngine:
        async def connect(*_: object, **__: object) -> asyncpg.Connection[asyncpg.Record]:
            try:
                connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
                    self.location.url,
                    timeout=CONNECT_TIMEOUT,
                    command_timeout=STATEMENT_TIMEOUT,
                    server_settings={"application_name": "pgtenant registry"},
                )
            except asyncpg.ClientConfigurationError as error:
                raise Invalid("registry", f"{self.location}: {error}", _FORM) from None
            except ValueError:
                # Its text may be a piece of the password.
                raise Invalid("registry", "the registry's URL cannot be read", _FORM) from None
            return connection

        return create_async_engine("postgresql+asyncpg://", async_creator=connect, hide_parameters=True, **options)

    async def take_turn(self, connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT:g}s'")
        await connection.execute(sa.select(clock.c.v).with_for_update())

    async def take_migration_turn(self, connection: AsyncConnection) -> None:
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))

    async def announce(self, connection: AsyncConnection, version: int) -> None:
        await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, str(version))))

    async def new_ids(self, connection: AsyncConnection, table: str, count: int) -> list[int]:
        statement = sa.text("SELECT nextval(pg_get_serial_sequence(:table, 'id')) FROM generate_series(1, :count)")
        return [int(row[0]) for row in await connection.execute(statement, {"table": table, "count": count})]

    async def look_after_pools(self) -> None:
        """A connection to a server that went away says so when it is used."""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Watch]:
        async with self.alone() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            watch = NotifyWatch(driver, connection)
            async with asyncio.timeout(LISTEN_TIMEOUT):
                await watch.start()
            yield watch

    def is_driver_error(self, error: Exception) -> bool:
        return isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError)

    def explain(self, error: BaseException) -> Exception:
        # SQLAlchemy puts an exception of its own around the driver's.
        cause = error.__cause__ if isinstance(error.__cause__, asyncpg.PostgresError) else error
        if isinstance(cause, _MISSING_TABLE):
            return self.incomplete(str(cause))
        if isinstance(cause, _REFUSED):
            return RegistryError(f"{self.location}: {cause}", "use a role that owns the registry's tables")
        if isinstance(cause, asyncpg.LockNotAvailableError):
            return RegistryUnavailable(f"{self.location}: another writer has kept it locked for {LOCK_TIMEOUT:g} s")
        text = str(cause) or ("no answer in time" if isinstance(cause, TimeoutError) else type(cause).__name__)
        return RegistryUnavailable(f"{self.location}: {text}")


class NotifyWatch(Watch):
    """LISTEN wakes it; in case a notice is lost it lets its owner look after every interval."""

    def __init__(self, driver: asyncpg.Connection[asyncpg.Record], connection: AsyncConnection) -> None:
        self._connection = driver
        self._reads = connection
        self._noticed = asyncio.Event()

    async def start(self) -> None:
        """Begin to listen, before the owner reads for the first time."""
        await self._connection.add_listener(CHANNEL, self._notice)
        self._connection.add_termination_listener(self._wake)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """The connection that listens reads as well."""
        yield self._reads

    async def wait(self, rung: asyncio.Event, interval: float) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (rung, self._noticed)]
        try:
            await asyncio.wait(waits, timeout=interval, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        rung.clear()
        self._noticed.clear()

    def _notice(self, *_: object) -> None:
        self._noticed.set()

    def _wake(self, *_: object) -> None:
        self._noticed.set()
