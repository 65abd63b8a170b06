"""A registry in an SQLite file: WAL, so that readers never wait; writers take turns with BEGIN IMMEDIATE.

Source: SQLite documentation, "Write-Ahead Logging" and `PRAGMA data_version`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from registry.contract import RegistryUnavailable
from registry.errors import Invalid, RegistryError
from registry.location import Location
from registry.store.database import LOCK_TIMEOUT, Database, Watch

PRIVATE: Final = 0o600

_MISSING_TABLE: Final = ("no such table", "no such column")


class SqliteDatabase(Database):
    """See Database; the file is made when it is missing, and nobody but its owner may read it."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._pooled_from: tuple[int, int] | None = None

    def create_file(self) -> None:
        """Make the file where it is missing; raises RegistryError where that cannot be."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE))
        except OSError as error:
            raise RegistryError(
                f"the registry {self.location} cannot be opened: {error.strerror}",
                "also to read it, this user has to be able to write to the file and to its directory, where SQLite"
                " keeps its log; --registry or PGTENANT_REGISTRY names another place",
            ) from None

    @property
    def path(self) -> Path:
        """The file."""
        if self.location.path is None:
            raise Invalid("registry", "an SQLite registry needs a file", "sqlite:///FILE")
        return self.location.path

    def _engine_for_reading(self) -> AsyncEngine:
        # Each connection has a thread, so none is kept: look-ups are rare behind a node's cache.
        return self._engine(poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def _engine_for_writing(self) -> AsyncEngine:
        return _immediate(self._engine(poolclass=NullPool))

    def _engine_of_singles(self) -> AsyncEngine:
        return self._engine(poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def migrating(self) -> AsyncEngine:
        # Batch migrations replace tables; with foreign keys on, dropping the old one would delete what refers to it.
        return _immediate(self._engine(poolclass=NullPool, foreign_keys=False))

    def _engine(self, *, foreign_keys: bool = True, **options: Any) -> AsyncEngine:
        engine = create_async_engine(
            sa.URL.create("sqlite+aiosqlite", database=os.fspath(self.path)),
            connect_args={"timeout": LOCK_TIMEOUT},
            hide_parameters=True,
            **options,
        )

        def prepare(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # Python's sqlite3 must not begin transactions by itself.
            cursor = connection.cursor()
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
            cursor.close()

        sa.event.listen(engine.sync_engine, "connect", prepare)
        return engine

    async def take_turn(self, connection: AsyncConnection) -> None:
        """BEGIN IMMEDIATE has done it."""

    async def take_migration_turn(self, connection: AsyncConnection) -> None:
        """BEGIN IMMEDIATE has done it."""

    async def announce(self, connection: AsyncConnection, version: int) -> None:
        """The file's data_version tells."""

    async def new_ids(self, connection: AsyncConnection, table: str, count: int) -> list[int]:
        newest = await connection.execute(
            sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table}
        )
        above = 1 + int(newest.scalar_one_or_none() or 0)
        return list(range(above, above + count))

    async def look_after_pools(self) -> None:
        # An open file stays readable when another one has taken its place, as a restored backup does.
        present = _identity(self.path)
        if self._pooled_from is not None and present != self._pooled_from:
            await self.reading.dispose()
            await self.writing.dispose()
        self._pooled_from = present

    async def connect(self, engine: AsyncEngine) -> AsyncConnection:
        opening = asyncio.ensure_future(super().connect(engine))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread that opens the file cannot be stopped, and must not find its loop closed when it is done.
            [opened] = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(opened, AsyncConnection):
                await opened.close()
            raise

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Watch]:
        with closing(DataVersionWatch(self)) as watch:
            watch.look()
            yield watch

    def is_driver_error(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.Error)

    def explain(self, error: BaseException) -> Exception:
        text = str(error)
        if text.startswith(_MISSING_TABLE):
            return self.incomplete(text)
        if "locked" in text:
            return RegistryUnavailable(f"{self.location}: another process has kept it locked for {LOCK_TIMEOUT:g} s")
        if "file is not a database" in text or "malformed" in text:
            return RegistryError(f"{self.location} is no registry: {text}", "restore it from a backup")
        return RegistryUnavailable(f"{self.location}: {text}")


class DataVersionWatch(Watch):
    """Polls `PRAGMA data_version`, which changes when another connection has committed.

    Its connection belongs to the calling thread, not to one of its own: a look reads a few bytes of shared memory, and
    a second thread in the process makes every system call of a node dearer.
    """

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._path = database.path
        self._file = _identity(self._path)
        self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        self._seen = -1

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection that is closed again after the statement."""
        return self._database.alone()

    def look(self) -> bool:
        """Whether there was a commit since the last look; raises RegistryUnavailable for another file."""
        # A file that was replaced, as a restored backup is, would never be seen to change.
        if _identity(self._path) != self._file:
            raise RegistryUnavailable(f"{self._path} was replaced")
        try:
            found = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                return True
            raise
        changed, self._seen = found != self._seen, found
        return changed

    async def wait(self, rung: asyncio.Event, interval: float) -> None:
        while True:
            try:
                async with asyncio.timeout(interval):
                    await rung.wait()
            except TimeoutError:
                if self.look():
                    return
            else:
                rung.clear()
                return


def _immediate(engine: AsyncEngine) -> AsyncEngine:
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sa.event.listen(engine.sync_engine, "begin", begin)
    return engine


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise RegistryUnavailable(f"{path}: {error.strerror}") from None
    return status.st_dev, status.st_ino
