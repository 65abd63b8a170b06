"""The database under the registry: what SQLite and PostgreSQL do differently is behind this one interface."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from registry.contract import RegistryUnavailable
from registry.errors import RegistryError, SchemaError
from registry.location import Location

LOCK_TIMEOUT: Final = 10.0
"""Seconds that a writer waits for another one."""

POOL_TIMEOUT: Final = 5.0
"""Seconds that a reader waits for a connection of the pool."""


class Bell:
    """Wakes all who wait: rung after a change made here, and by a reload."""

    def __init__(self) -> None:
        self._events: set[asyncio.Event] = set()

    def ring(self) -> None:
        """Wake everybody now."""
        for event in self._events:
            event.set()

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever the bell rings, from now on."""
        event = asyncio.Event()
        self._events.add(event)
        try:
            yield event
        finally:
            self._events.discard(event)


class Watch(ABC):
    """Tells that something may have changed."""

    @abstractmethod
    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for one reading statement."""

    @abstractmethod
    async def wait(self, rung: asyncio.Event, interval: float) -> None:
        """Return when there may be something new; `rung` is cleared then, `interval` is in seconds."""


class Database(ABC):
    """Engines for reading (each statement for itself), for writing (transactions) and for long-lived connections."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.bell = Bell()
        self.reading = self._engine_for_reading()
        self.writing = self._engine_for_writing()
        self.single = self._engine_of_singles()

    @abstractmethod
    def _engine_for_reading(self) -> AsyncEngine: ...

    @abstractmethod
    def _engine_for_writing(self) -> AsyncEngine: ...

    @abstractmethod
    def _engine_of_singles(self) -> AsyncEngine: ...

    @abstractmethod
    def migrating(self) -> AsyncEngine:
        """An engine for the migrations; the caller disposes of it."""

    @abstractmethod
    async def take_turn(self, connection: AsyncConnection) -> None:
        """Make all other writers wait until the end of this transaction."""

    @abstractmethod
    async def take_migration_turn(self, connection: AsyncConnection) -> None:
        """Make all other migrations wait until the end of this transaction."""

    @abstractmethod
    async def announce(self, connection: AsyncConnection, version: int) -> None:
        """Tell those who listen of this version once the transaction has committed."""

    @abstractmethod
    async def new_ids(self, connection: AsyncConnection, table: str, count: int) -> list[int]:
        """Ids that no row of a table has had; in SQLite they are only good until the registry's version changes."""

    @abstractmethod
    def watching(self) -> AbstractAsyncContextManager[Watch]:
        """Begin to watch, until the end of the context."""

    @abstractmethod
    def explain(self, error: BaseException) -> Exception:
        """The error to raise in place of one that the driver raised; without secrets."""

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the driver's errors into RegistryUnavailable, SchemaError or RegistryError."""
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            raise self._translated(error) from None
        except (RegistryError, RegistryUnavailable):
            raise
        except Exception as error:
            if not self.is_driver_error(error):
                raise
            raise self.explain(error) from None

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, PoolTimeout):
            return RegistryUnavailable(f"{self.location}: no connection became free within {POOL_TIMEOUT:g} s")
        if isinstance(error, DBAPIError) and error.orig is not None:
            return self.explain(error.orig)
        return self.explain(error)

    @abstractmethod
    def is_driver_error(self, error: Exception) -> bool:
        """Whether the driver raised this past SQLAlchemy."""

    async def fetch(self, statement: sa.Select[Any]) -> list[sa.Row[Any]]:
        """Run one reading statement, once more where its connection turns out to be dead.

        Raises RegistryUnavailable, SchemaError.
        """
        with self.errors():
            try:
                return await self._fetch(statement)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return await self._fetch(statement)

    @abstractmethod
    async def look_after_pools(self) -> None:
        """Forget pooled connections to what is not the registry any more; raises RegistryUnavailable."""

    async def _fetch(self, statement: sa.Select[Any]) -> list[sa.Row[Any]]:
        await self.look_after_pools()
        connection = await self.connect(self.reading)
        try:
            return list((await connection.execute(statement)).all())
        finally:
            await asyncio.shield(connection.close())

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside the pools, closed at the end."""
        await self.look_after_pools()
        connection = await self.connect(self.single)
        try:
            yield connection
        finally:
            # What a cancelled statement left behind is no reason to keep the connection.
            await asyncio.shield(connection.close())

    async def connect(self, engine: AsyncEngine) -> AsyncConnection:
        """A connection of one of the engines; the caller closes it."""
        return await engine.connect()

    async def close(self) -> None:
        """Close all pools."""
        for engine in (self.reading, self.writing, self.single):
            await engine.dispose()

    def no_tables(self) -> SchemaError:
        """The error for a registry that was never set up."""
        return SchemaError(f"there is no registry in {self.location} yet", "run `pgtenant registry upgrade`")

    def incomplete(self, text: str) -> SchemaError:
        """The error for a registry that lacks a table or a column; `text` is the database's own."""
        return SchemaError(
            f"the registry {self.location} is not whole: {text}",
            "run `pgtenant registry upgrade`; where that says that all is done, restore it from a backup",
        )
