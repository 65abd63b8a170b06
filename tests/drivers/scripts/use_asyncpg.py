"""asyncpg, which names every statement and remembers a hundred of them."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import asyncpg

from drivers.scripts.blocking import Blocking
from drivers.scripts.python_driver import main
from drivers.scripts.session import Driver, NotApplicable, Row, Rows, Session, bounded

CANCEL_AFTER = 0.4


class AsyncpgSession(Session):
    """A connection on an event loop of its own."""

    def __init__(self, runner: asyncio.Runner, connection: Any) -> None:
        self.runner = runner
        self.connection = connection
        self._notices: list[str] = []
        self._notifications: list[tuple[str, str]] = []
        connection.add_log_listener(lambda _, message: self._notices.append(message.message))

    def query(self, sql: str, *values: Any) -> Rows:
        return bounded(self.runner.run(self.connection.fetch(sql, *values)))

    def script(self, sql: str) -> None:
        self.runner.run(self.connection.execute(sql))

    def prepare(self, sql: str) -> Callable[..., Rows]:
        prepared: list[Any] = []

        def execute(*values: Any) -> Rows:
            if not prepared:
                prepared.append(self.runner.run(self.connection.prepare(sql)))
            return bounded(self.runner.run(prepared[0].fetch(*values)))

        return execute

    def unnamed(self, sql: str, *values: Any) -> Rows:
        raise NotApplicable("only with statement_cache_size=0, which is a row of its own")

    def many(self, sql: str, rows: Sequence[Row]) -> Any:
        return self.runner.run(self.connection.executemany(sql, rows))

    def transaction(self) -> AbstractContextManager[Any]:
        return Blocking(self.runner, self.connection.transaction())

    def stream(self, sql: str, size: int) -> Iterator[Row]:
        rows: AsyncIterator[Any] = self.connection.cursor(sql, prefetch=size).__aiter__()

        async def following() -> Any:
            return await anext(rows, None)

        while (row := self.runner.run(following())) is not None:
            yield tuple(row)

    def copy_in(self, sql: str, blocks: Iterable[bytes]) -> None:
        async def source() -> AsyncIterator[bytes]:
            for block in blocks:
                yield block

        table = sql.split()[1]
        self.runner.run(self.connection.copy_to_table(table, source=source()))

    def copy_out(self, sql: str) -> bytes:
        out = io.BytesIO()
        inner = sql.removeprefix("copy ").partition(" to stdout")[0]
        if inner.startswith("("):
            options = {"format": "csv"} if "format csv" in sql else {}
            self.runner.run(self.connection.copy_from_query(inner.strip("()"), output=out, **options))
        else:
            self.runner.run(self.connection.copy_from_table(inner, output=out))
        return out.getvalue()

    def cancelled(self, sql: str) -> None:
        """A time-out makes the driver cancel; it hides the server's answer behind an error of its own."""
        self.runner.run(self.connection.fetch(sql, timeout=CANCEL_AFTER))

    def listen(self, channel: str) -> None:
        self.runner.run(self.connection.add_listener(channel, self._notified))

    def unlisten(self, channel: str) -> None:
        self.runner.run(self.connection.remove_listener(channel, self._notified))

    def _notified(self, _connection: Any, _pid: int, channel: str, payload: str) -> None:
        self._notifications.append((channel, payload))

    def notifications(self, seconds: float, wanted: int) -> list[tuple[str, str]]:
        async def wait() -> None:
            for _ in range(int(seconds * 100)):
                if len(self._notifications) >= wanted:
                    return
                await asyncio.sleep(0.01)

        self.runner.run(wait())
        taken, self._notifications = self._notifications, []
        return taken

    def notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        return taken

    def parameter(self, name: str) -> str | None:
        return getattr(self.connection.get_settings(), name, None)

    def pid(self) -> int:
        return self.connection.get_server_pid()  # type: ignore[no-any-return]

    def usable(self) -> bool:
        return not self.connection.is_closed()

    def close(self) -> None:
        self.runner.run(_ended(self.connection))
        self.runner.close()


class Asyncpg(Driver):
    """The driver with its defaults."""

    errors: tuple[type[Exception], ...] = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
    session: type[AsyncpgSession] = AsyncpgSession
    options: dict[str, Any] = {}  # noqa: RUF012

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        settings = {"application_name": application_name, **options.pop("server_settings", {})}
        return self._open(url, ssl=False, server_settings=settings, **options)

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        return self.connect(url, server_settings=settings)

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        checks = "require" if ca is None else ssl.create_default_context(cafile=ca)
        return self._open(url, ssl=checks, **options)

    def connect_tls_specially(self, url: str, ca: str, way: str) -> Session:
        if way == "direct":
            return self.connect_tls(url, ca=ca, direct_tls=True)
        raise NotApplicable("the driver does not bind channels")

    def sqlstate(self, error: BaseException) -> str | None:
        return getattr(error, "sqlstate", None)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        async def client(pool: Any, number: int) -> list[Any]:
            return [await pool.fetchval("select $1::int4", number * 100 + turn) for turn in range(turns)]

        async def run() -> list[Any]:
            async with asyncpg.create_pool(url, min_size=1, max_size=4, ssl=False, **self.options) as pool:
                return list(await asyncio.gather(*(client(pool, number) for number in range(clients))))

        return asyncio.run(run())

    def pooled_after_loss(self, url: str) -> list[Any]:
        async def run() -> list[Any]:
            seen: list[Any] = []
            async with asyncpg.create_pool(url, min_size=1, max_size=1, ssl=False, **self.options) as pool:
                for sql in ("select 1", "select pg_terminate_backend(pg_backend_pid())", "select 2", "select 3"):
                    try:
                        seen.append(await pool.fetchval(sql))
                    except self.errors as error:
                        seen.append(self.sqlstate(error) or type(error).__name__)
            return seen

        return asyncio.run(run())

    def _open(self, url: str, **options: Any) -> Session:
        runner = asyncio.Runner()
        return self.session(runner, runner.run(_opened(url, **options, **self.options)))


async def _opened(url: str, **options: Any) -> Any:
    return await asyncpg.connect(url, **options)


async def _ended(connection: Any) -> None:
    try:
        await connection.close(timeout=2)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


class UncachedSession(AsyncpgSession):
    """A connection that uses the unnamed statement only."""

    def prepare(self, sql: str) -> Callable[..., Rows]:
        raise NotApplicable("no statement gets a name without the cache")

    def unnamed(self, sql: str, *values: Any) -> Rows:
        return self.query(sql, *values)


class AsyncpgUncached(Asyncpg):
    """With statement_cache_size=0, as one had to use it behind poolers of old."""

    session = UncachedSession
    options = {"statement_cache_size": 0}  # noqa: RUF012


if __name__ == "__main__":
    import sys

    main(AsyncpgUncached() if "uncached" in sys.argv else Asyncpg())
