"""SQLAlchemy 2 over psycopg and over asyncpg, with its own pool and pool_pre_ping."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from drivers.scripts.blocking import Blocking
from drivers.scripts.python_driver import main
from drivers.scripts.session import PLACEHOLDER, Driver, NotApplicable, Row, Rows, Session, bounded

BENEATH = "SQLAlchemy leaves it to the driver beneath it"
OUTSIDE = ("discard", "listen")


class SqlAlchemySession(Session):
    """One connection of an engine; what is not in `transaction()` is committed at once, as SQLAlchemy has it."""

    def __init__(self, engine: Any, connection: Any, release: Callable[[], None]) -> None:
        self.engine = engine
        self.connection = connection
        self._release = release
        self._depth = 0

    def query(self, sql: str, *values: Any) -> Rows:
        if sql.startswith(OUTSIDE):
            self.connection.execution_options(isolation_level="AUTOCOMMIT")
            self._run(sql)
            self.connection.rollback()
            self.connection.execution_options(isolation_level="READ COMMITTED")
            return []
        if self._depth:
            return self._run(sql, *values)
        with self.transaction():
            return self._run(sql, *values)

    def _run(self, sql: str, *values: Any) -> Rows:
        result = self.connection.execute(_text(sql), _values(values))
        return bounded(result.fetchall()) if result.returns_rows else []

    def prepare(self, sql: str) -> Callable[..., Rows]:
        return lambda *values: self.query(sql, *values)

    def many(self, sql: str, rows: Sequence[Row]) -> Any:
        def run() -> Any:
            return self.connection.execute(_text(sql), [_values(row) for row in rows]).rowcount

        if self._depth:
            return run()
        with self.transaction():
            return run()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        begun = self.connection.begin_nested() if self._depth else self.connection.begin()
        self._depth += 1
        try:
            with begun:
                yield
        finally:
            self._depth -= 1

    def stream(self, sql: str, size: int) -> Iterator[Row]:
        options = {"yield_per": size}
        if isinstance(self.connection, Blocking):
            with self.connection.stream(_text(sql), execution_options=options) as result:
                yield from map(tuple, result)
        else:
            with self.connection.execute(_text(sql), execution_options=options) as result:
                yield from map(tuple, result)

    def unnamed(self, sql: str, *values: Any) -> Rows:
        raise NotApplicable(BENEATH)

    def together(self, statements: Sequence[tuple[str, Row]]) -> list[Rows]:
        raise NotApplicable(BENEATH)

    def copy_in(self, sql: str, blocks: Iterable[bytes]) -> None:
        raise NotApplicable(BENEATH)

    def cancelled(self, sql: str) -> None:
        raise NotApplicable(BENEATH)

    def listen(self, channel: str) -> None:
        raise NotApplicable(BENEATH)

    def close(self) -> None:
        try:
            self.connection.close()
            self.engine.dispose()
        finally:
            self._release()


class SqlAlchemyPsycopg(Driver):
    """The engine over psycopg, blocking."""

    errors = (SQLAlchemyError,)

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        arguments = {"application_name": application_name, "sslmode": "disable", **options}
        engine = self._engine(url, arguments)
        return SqlAlchemySession(engine, engine.connect(), lambda: None)

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        return self.connect(url, options=" ".join(f"-c {name}={value}" for name, value in settings.items()))

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        checks = {"sslmode": "require"} if ca is None else {"sslmode": "verify-full", "sslrootcert": ca}
        return self.connect(url, **checks, **options)

    def sqlstate(self, error: BaseException) -> str | None:
        return getattr(getattr(error, "orig", None), "sqlstate", None)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        engine = self._engine(url, {"sslmode": "disable"}, pool_size=4, max_overflow=2)

        def client(number: int) -> list[Any]:
            answers = []
            for turn in range(turns):
                with engine.begin() as connection:
                    answers.append(connection.scalar(sa.text("select :n ::int4"), {"n": number * 100 + turn}))
            return answers

        with ThreadPoolExecutor(clients) as threads:
            answers = list(threads.map(client, range(clients)))
        engine.dispose()
        return answers

    def pooled_after_loss(self, url: str) -> list[Any]:
        engine = self._engine(url, {"sslmode": "disable"}, pool_size=1, max_overflow=0, pool_pre_ping=True)
        seen: list[Any] = []
        for sql in ("select 1", "select pg_terminate_backend(pg_backend_pid())", "select 2", "select 3"):
            try:
                with engine.connect() as connection:
                    seen.append(connection.scalar(sa.text(sql)))
            except SQLAlchemyError as error:
                seen.append(self.sqlstate(error))
        engine.dispose()
        return seen

    @staticmethod
    def _engine(url: str, arguments: dict[str, Any], **options: Any) -> sa.Engine:
        place = make_url(url).set(drivername="postgresql+psycopg")
        return sa.create_engine(place, connect_args=arguments, **options)


class SqlAlchemyAsyncpg(Driver):
    """The asynchronous engine over asyncpg."""

    errors = (SQLAlchemyError, asyncpg.PostgresError, OSError, TimeoutError)

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        settings = {"application_name": application_name, **options.pop("server_settings", {})}
        arguments = {"server_settings": settings, "ssl": False, **options}
        runner = asyncio.Runner()
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), connect_args=arguments)
        connection = Blocking(runner, runner.run(_connected(engine)))
        return SqlAlchemySession(Blocking(runner, engine), connection, runner.close)

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        return self.connect(url, server_settings=settings)

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        checks = "require" if ca is None else ssl.create_default_context(cafile=ca)
        return self.connect(url, ssl=checks, **options)

    def sqlstate(self, error: BaseException) -> str | None:
        return getattr(getattr(error, "orig", error), "sqlstate", None)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        async def client(engine: Any, number: int) -> list[Any]:
            answers = []
            for turn in range(turns):
                async with engine.begin() as connection:
                    answers.append(await connection.scalar(sa.text("select :n ::int4"), {"n": number * 100 + turn}))
            return answers

        async def run() -> list[Any]:
            place = make_url(url).set(drivername="postgresql+asyncpg")
            engine = create_async_engine(place, pool_size=4, max_overflow=2, connect_args={"ssl": False})
            answers = list(await asyncio.gather(*(client(engine, number) for number in range(clients))))
            await engine.dispose()
            return answers

        return asyncio.run(run())

    def pooled_after_loss(self, url: str) -> list[Any]:
        raise NotApplicable("as over psycopg")


async def _connected(engine: AsyncEngine) -> AsyncConnection:
    return await engine.connect()


def _text(sql: str) -> Any:
    """The statement with :p1 in place of $1; what looks like a name already is kept."""
    return sa.text(PLACEHOLDER.sub(lambda found: f":p{found.group()[1:]} ", sql.replace("::", r"\:\:")))


def _values(values: Sequence[Any]) -> dict[str, Any]:
    return {f"p{number}": value for number, value in enumerate(values, 1)}


if __name__ == "__main__":
    main(SqlAlchemyAsyncpg() if sys.argv[1] == "asyncpg" else SqlAlchemyPsycopg())
