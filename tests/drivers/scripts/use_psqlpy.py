"""psqlpy, which is Rust's tokio-postgres in Python: what it executes gets a name unless told otherwise."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psqlpy
from psqlpy.exceptions import Error, RustToPyValueMappingError

from drivers.scripts.python_driver import main
from drivers.scripts.session import Driver, NotApplicable, Row, Rows, Session, bounded

CODES = {"password authentication failed": "28P01", "database does not exist": "3D000"}
SMALLEST_POOL = 2
NOTICING = 0.2
QUOTED = re.compile(r'"[^"]*" ?')


class PsqlpySession(Session):
    """A connection on an event loop of its own; within a transaction the driver wants that to be asked."""

    def __init__(self, runner: asyncio.Runner, connection: Any) -> None:
        self.runner = runner
        self.connection = connection
        self._transaction: Any = None
        self._depth = 0

    def query(self, sql: str, *values: Any) -> Rows:
        return self._execute(sql, values, prepared=True)

    def unnamed(self, sql: str, *values: Any) -> Rows:
        return self._execute(sql, values, prepared=False)

    def prepare(self, sql: str) -> Callable[..., Rows]:
        return lambda *values: self.query(sql, *values)

    def script(self, sql: str) -> None:
        self._wait(self._target.execute_batch(sql))

    def many(self, sql: str, rows: Sequence[Row]) -> Any:
        return self._wait(self._target.execute_many(sql, [list(row) for row in rows]))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._transaction is None:
            self._transaction = self.connection.transaction()
            begin, commit, rollback = "begin", "commit", "rollback"
            names: tuple[str, ...] = ()
        else:
            begin, commit, rollback = "create_savepoint", "release_savepoint", "rollback_savepoint"
            names = (f"s{self._depth}",)
        transaction = self._transaction
        self._depth += 1
        try:
            self._wait(getattr(transaction, begin)(*names))
            try:
                yield
            except BaseException:
                self._wait(getattr(transaction, rollback)(*names))
                raise
            self._wait(getattr(transaction, commit)(*names))
        finally:
            self._depth -= 1
            if not self._depth:
                self._transaction = None

    def together(self, statements: Sequence[tuple[str, Row]]) -> list[Rows]:
        if self._transaction is None:
            with self.transaction():
                return self.together(statements)
        results = self._wait(self._transaction.pipeline([(sql, list(values)) for sql, values in statements]))
        return [bounded(result.result(as_tuple=True)) for result in results]

    def stream(self, sql: str, size: int) -> Iterator[Row]:
        cursor = self._target.cursor(sql, array_size=size)
        self._wait(cursor.start())
        try:
            while rows := self._wait(cursor.fetchmany(size)).result(as_tuple=True):
                yield from bounded(rows)
        finally:
            cursor.close()

    def listen(self, channel: str) -> None:
        raise NotApplicable("a listener is a connection that takes no queries")

    def copy_in(self, sql: str, blocks: object) -> None:
        raise NotApplicable("the driver copies Python's records only, in the binary format")

    def close(self) -> None:
        self.connection.close()
        self.runner.close()

    @property
    def _target(self) -> Any:
        return self.connection if self._transaction is None else self._transaction

    def _execute(self, sql: str, values: Row, *, prepared: bool) -> Rows:
        result = self._wait(self._target.execute(sql, list(values), prepared=prepared))
        try:
            return bounded(result.result(as_tuple=True))
        except RustToPyValueMappingError as error:
            # The driver has no value for what a function without a result gives.
            if "void" not in str(error):
                raise
            return [(None,)]

    def _wait(self, future: Any) -> Any:
        return self.runner.run(_outcome(future))


class Psqlpy(Driver):
    """The driver with its defaults."""

    errors = (Error,)

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        options.setdefault("ssl_mode", psqlpy.SslMode.Disable)
        return _open(psqlpy.connect, dsn=url, application_name=application_name, **options)

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        return self.connect(url, options=" ".join(f"-c {name}={value}" for name, value in settings.items()))

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        if ca is None:
            return self.connect(url, ssl_mode=psqlpy.SslMode.Require, **options)
        return self.connect(url, ssl_mode=psqlpy.SslMode.VerifyFull, ca_file=ca, **options)

    def sqlstate(self, error: BaseException) -> str | None:
        """The server's message, because the driver keeps the code to itself; the code where an explanation has it."""
        text = QUOTED.sub("", str(error).rpartition(" error: ")[2]).partition("\n")[0]
        return next((code for words, code in CODES.items() if words in text), text)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        async def run() -> list[Any]:
            pool = _pool(url, 4)
            try:
                return list(await asyncio.gather(*(client(pool, number) for number in range(clients))))
            finally:
                pool.close()

        async def client(pool: Any, number: int) -> list[Any]:
            return [await _asked(pool, "select $1::int4", [number * 100 + turn]) for turn in range(turns)]

        return asyncio.run(run())

    def pooled_after_loss(self, url: str) -> list[Any]:
        async def run() -> list[Any]:
            pool = _pool(url, SMALLEST_POOL)
            seen: list[Any] = []
            for sql in ("select 1", "select pg_terminate_backend(pg_backend_pid())", "select 2", "select 3"):
                try:
                    seen.append(await _asked(pool, sql, []))
                except Error as error:
                    seen.append(self.sqlstate(error))
                    # The pool asks whether a connection is closed, which its task finds out in its own time.
                    await asyncio.sleep(NOTICING)
            pool.close()
            return seen

        return asyncio.run(run())


def _pool(url: str, size: int) -> Any:
    return psqlpy.ConnectionPool(dsn=url, max_db_pool_size=size, ssl_mode=psqlpy.SslMode.Disable)


async def _asked(pool: Any, sql: str, values: list[Any]) -> Any:
    async with pool.acquire() as connection:
        return await connection.fetch_val(sql, values)


def _open(connect: Callable[..., Any], **options: Any) -> Session:
    runner = asyncio.Runner()
    try:
        return PsqlpySession(runner, runner.run(_outcome(connect(**options))))
    except Error:
        runner.close()
        raise


def _outcome(future: Any) -> Coroutine[Any, Any, Any]:
    async def wait() -> Any:
        return await future

    return wait()


if __name__ == "__main__":
    main(Psqlpy())
