"""psycopg 3: blocking, asynchronous and with everything in pipelines."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import psycopg_pool
from psycopg import pq

from drivers.scripts.blocking import Blocking
from drivers.scripts.python_driver import main
from drivers.scripts.session import Driver, NotApplicable, Row, Rows, Session, bounded, percent

CANCEL_AFTER = 0.4


class PsycopgSession(Session):
    """A connection in autocommit mode, or what makes an asynchronous one look like it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._notices: list[str] = []
        connection.add_notice_handler(lambda diagnostic: self._notices.append(diagnostic.message_primary))

    def query(self, sql: str, *values: Any) -> Rows:
        return self._rows(self.connection.execute(percent(sql) if values else sql, values or None))

    def script(self, sql: str) -> None:
        self.connection.execute(sql)

    def prepare(self, sql: str) -> Callable[..., Rows]:
        return lambda *values: self._rows(self.connection.execute(percent(sql), values, prepare=True))

    def unnamed(self, sql: str, *values: Any) -> Rows:
        return self._rows(self.connection.execute(percent(sql), values, prepare=False))

    def many(self, sql: str, rows: Sequence[Row]) -> Any:
        cursor = self.connection.cursor()
        cursor.executemany(percent(sql), rows)
        return cursor.rowcount

    def together(self, statements: Sequence[tuple[str, Row]]) -> list[Rows]:
        with self.connection.pipeline():
            cursors = [self.connection.cursor() for _ in statements]
            for cursor, (sql, values) in zip(cursors, statements, strict=True):
                cursor.execute(percent(sql), values)
        return [self._rows(cursor) for cursor in cursors]

    def transaction(self) -> AbstractContextManager[Any]:
        return self.connection.transaction()  # type: ignore[no-any-return]

    def stream(self, sql: str, size: int) -> Iterator[Row]:
        with self.connection.cursor("streamed") as cursor:
            cursor.itersize = size
            cursor.execute(sql)
            yield from cursor

    def held(self, sql: str, size: int) -> Iterator[Row]:
        with self.connection.cursor("held", withhold=True) as cursor:
            cursor.itersize = size
            with self.transaction():
                cursor.execute(sql)
            yield from cursor

    def copy_in(self, sql: str, blocks: Iterable[bytes]) -> None:
        with self.connection.cursor() as cursor, cursor.copy(sql) as copy:
            for block in blocks:
                copy.write(block)

    def copy_out(self, sql: str) -> bytes:
        with self.connection.cursor() as cursor, cursor.copy(sql) as copy:
            return b"".join(bytes(block) for block in copy)

    def cancelled(self, sql: str) -> None:
        timer = threading.Timer(CANCEL_AFTER, self.connection.cancel_safe)
        timer.start()
        try:
            self.query(sql)
        finally:
            timer.join()

    def listen(self, channel: str) -> None:
        self.query(f"listen {channel}")

    def notifications(self, seconds: float, wanted: int) -> list[tuple[str, str]]:
        return [(n.channel, n.payload) for n in self.connection.notifies(timeout=seconds, stop_after=wanted)]

    def notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        return taken

    def parameter(self, name: str) -> str | None:
        return self.connection.info.parameter_status(name)  # type: ignore[no-any-return]

    def pid(self) -> int:
        return self.connection.info.backend_pid  # type: ignore[no-any-return]

    def encrypted(self) -> bool:
        return bool(self.connection.pgconn.ssl_in_use)

    def usable(self) -> bool:
        return not self.connection.closed and not self.connection.broken

    def close(self) -> None:
        self.connection.close()

    @staticmethod
    def _rows(cursor: Any) -> Rows:
        return bounded(cursor.fetchall()) if cursor.description is not None else []


class AsyncSession(PsycopgSession):
    """An asynchronous connection on an event loop of its own."""

    def __init__(self, runner: asyncio.Runner, connection: psycopg.AsyncConnection[Any]) -> None:
        self._runner = runner
        self._asynchronous = connection
        super().__init__(Blocking(runner, connection))

    def cancelled(self, sql: str) -> None:
        async def run() -> None:
            query = asyncio.create_task(self._asynchronous.execute(sql))
            await asyncio.sleep(CANCEL_AFTER)
            await self._asynchronous.cancel_safe()
            await query

        self._runner.run(run())

    def close(self) -> None:
        super().close()
        self._runner.close()


class PipelineSession(PsycopgSession):
    """A connection whose every statement is in the middle of a pipeline."""

    def query(self, sql: str, *values: Any) -> Rows:
        with self.connection.pipeline():
            before = self.connection.execute("select %s::int4", (1,))
            cursor = self.connection.execute(percent(sql), values)
            after = self.connection.execute("select %s::int4", (2,))
        if (before.fetchone(), after.fetchone()) != ((1,), (2,)):
            raise RuntimeError("the pipeline mixed up its answers")
        return self._rows(cursor)

    def script(self, sql: str) -> None:
        raise NotApplicable("a pipeline sends every statement on its own")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self.connection.transaction(), self.connection.pipeline():
            yield

    def stream(self, sql: str, size: int) -> Iterator[Row]:
        raise NotApplicable("the driver has no server-side cursors in a pipeline")

    def copy_in(self, sql: str, blocks: Iterable[bytes]) -> None:
        raise NotApplicable("libpq has no COPY in a pipeline")

    def copy_out(self, sql: str) -> bytes:
        raise NotApplicable("libpq has no COPY in a pipeline")


class Psycopg(Driver):
    """The blocking API, with the default that a statement is prepared when it is executed for the fifth time."""

    errors = (psycopg.Error, psycopg_pool.PoolTimeout)
    session: type[PsycopgSession] = PsycopgSession

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        return self.session(
            psycopg.connect(url, autocommit=True, application_name=application_name, sslmode="disable", **options)
        )

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        return self.connect(url, options=" ".join(f"-c {name}={value}" for name, value in settings.items()))

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        checks = {"sslmode": "require"} if ca is None else {"sslmode": "verify-full", "sslrootcert": ca}
        given: dict[str, Any] = {**checks, **options}
        return self.session(psycopg.connect(url, autocommit=True, **given))

    def connect_tls_specially(self, url: str, ca: str, way: str) -> Session:
        if way == "channel binding":
            return self.connect_tls(url, ca=ca, channel_binding="require")
        if pq.version() < 170000:
            raise NotApplicable("libpq is older than 17")
        return self.connect_tls(url, ca=ca, sslnegotiation="direct")

    def sqlstate(self, error: BaseException) -> str | None:
        return getattr(error, "sqlstate", None)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        with (
            psycopg_pool.ConnectionPool(url, min_size=1, max_size=4, kwargs={"sslmode": "disable"}) as pool,
            ThreadPoolExecutor(clients) as threads,
        ):

            def client(number: int) -> list[Any]:
                answers = []
                for turn in range(turns):
                    with pool.connection() as connection:
                        answers.append(connection.execute("select %s::int4", [number * 100 + turn]).fetchone())
                return answers

            return list(threads.map(client, range(clients)))

    def pooled_after_loss(self, url: str) -> list[Any]:
        check = psycopg_pool.ConnectionPool.check_connection
        with psycopg_pool.ConnectionPool(
            url, min_size=1, max_size=1, check=check, kwargs={"sslmode": "disable"}
        ) as pool:
            seen: list[Any] = []
            for sql in ("select 1", "select pg_terminate_backend(pg_backend_pid())", "select 2", "select 3"):
                try:
                    with pool.connection(timeout=5) as connection:
                        seen.append(connection.execute(sql).fetchone())
                except self.errors as error:
                    seen.append(self.sqlstate(error))
            return seen


class PsycopgAsync(Psycopg):
    """The asynchronous API."""

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        return self._open(url, application_name=application_name, sslmode="disable", **options)

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        checks = {"sslmode": "require"} if ca is None else {"sslmode": "verify-full", "sslrootcert": ca}
        return self._open(url, **checks, **options)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        async def client(pool: psycopg_pool.AsyncConnectionPool, number: int) -> list[Any]:
            answers = []
            for turn in range(turns):
                async with pool.connection() as connection:
                    cursor = await connection.execute("select %s::int4", [number * 100 + turn])
                    answers.append(await cursor.fetchone())
            return answers

        async def run() -> list[Any]:
            async with psycopg_pool.AsyncConnectionPool(
                url, min_size=1, max_size=4, open=False, kwargs={"sslmode": "disable"}
            ) as pool:
                return list(await asyncio.gather(*(client(pool, number) for number in range(clients))))

        return asyncio.run(run())

    def pooled_after_loss(self, url: str) -> list[Any]:
        raise NotApplicable("as with the blocking pool")

    @staticmethod
    def _open(url: str, **options: Any) -> Session:
        runner = asyncio.Runner()
        return AsyncSession(runner, runner.run(psycopg.AsyncConnection.connect(url, autocommit=True, **options)))


class PsycopgPipeline(Psycopg):
    """The blocking API, every statement inside a pipeline.

    Nothing is prepared unless asked: of statements that an error in the pipeline skips, psycopg remembers some as
    prepared, depending on what arrives when.
    """

    session = PipelineSession

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        return super().connect(url, application_name=application_name, prepare_threshold=None, **options)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        raise NotApplicable("as without pipelines")


VARIANTS: dict[str, type[Psycopg]] = {"blocking": Psycopg, "async": PsycopgAsync, "pipeline": PsycopgPipeline}

if __name__ == "__main__":
    main(VARIANTS[sys.argv[1]]())
