"""psycopg2, which puts all values into the statement's text."""

from __future__ import annotations

import io
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import psycopg2.pool

from drivers.scripts.python_driver import main
from drivers.scripts.session import Driver, NotApplicable, Row, Rows, Session, bounded, percent

CANCEL_AFTER = 0.4


class Psycopg2Session(Session):
    """A connection in autocommit mode; `prepare` is SQL's own PREPARE."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.connection.autocommit = True
        self._depth = 0
        self._names = 0

    def query(self, sql: str, *values: Any) -> Rows:
        with self.connection.cursor() as cursor:
            cursor.execute(percent(sql) if values else sql, tuple(map(_adapted, values)) or None)
            return bounded(cursor.fetchall()) if cursor.description is not None else []

    def script(self, sql: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)

    def prepare(self, sql: str) -> Callable[..., Rows]:
        self._names += 1
        name = f"by_hand_{self._names}"
        self.query(f"prepare {name} as {sql}")

        def execute(*values: Any) -> Rows:
            return self.query(f"execute {name} ({', '.join(f'${n}' for n, _ in enumerate(values, 1))})", *values)

        execute.__name__ = name
        return execute

    def forget(self, prepared: Callable[..., Rows]) -> None:
        self.query(f"deallocate {prepared.__name__}")

    def many(self, sql: str, rows: Sequence[Row]) -> Any:
        with self.connection.cursor() as cursor:
            psycopg2.extras.execute_batch(cursor, percent(sql), rows)
            return cursor.rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._depth:
            with self._savepoint(f"level_{self._depth}"):
                yield
            return
        self.connection.autocommit = False
        self._depth += 1
        try:
            yield
        except BaseException:
            if not self.connection.closed:
                self.connection.rollback()
            raise
        else:
            self.connection.commit()
        finally:
            self._depth -= 1
            if not self.connection.closed:
                self.connection.autocommit = True

    @contextmanager
    def _savepoint(self, name: str) -> Iterator[None]:
        self.query(f"savepoint {name}")
        self._depth += 1
        try:
            yield
        except BaseException:
            self.query(f"rollback to {name}")
            raise
        else:
            self.query(f"release {name}")
        finally:
            self._depth -= 1

    def stream(self, sql: str, size: int) -> Iterator[Row]:
        with self.connection.cursor("streamed") as cursor:
            cursor.itersize = size
            cursor.execute(sql)
            yield from cursor

    def held(self, sql: str, size: int) -> Iterator[Row]:
        with self.connection.cursor("held", withhold=True) as cursor:
            cursor.itersize = size
            cursor.execute(sql)
            yield from cursor

    def copy_in(self, sql: str, blocks: Iterable[bytes]) -> None:
        with self.connection.cursor() as cursor:
            cursor.copy_expert(sql, io.BytesIO(b"".join(blocks)))

    def copy_out(self, sql: str) -> bytes:
        out = io.BytesIO()
        with self.connection.cursor() as cursor:
            cursor.copy_expert(sql, out)
        return out.getvalue()

    def cancelled(self, sql: str) -> None:
        timer = threading.Timer(CANCEL_AFTER, self.connection.cancel)
        timer.start()
        try:
            self.query(sql)
        finally:
            timer.join()

    def listen(self, channel: str) -> None:
        self.query(f"listen {channel}")

    def notifications(self, seconds: float, wanted: int) -> list[tuple[str, str]]:
        end = time.monotonic() + seconds
        self.connection.poll()
        while len(self.connection.notifies) < wanted and (left := end - time.monotonic()) > 0:
            if select.select([self.connection], [], [], left)[0]:
                self.connection.poll()
        taken = [(notification.channel, notification.payload) for notification in self.connection.notifies]
        self.connection.notifies.clear()
        return taken

    def notices(self) -> list[str]:
        taken = [notice.strip() for notice in self.connection.notices]
        self.connection.notices.clear()
        return taken

    def parameter(self, name: str) -> str | None:
        return self.connection.get_parameter_status(name)  # type: ignore[no-any-return]

    def pid(self) -> int:
        return self.connection.info.backend_pid  # type: ignore[no-any-return]

    def encrypted(self) -> bool:
        return bool(self.connection.info.ssl_in_use)

    def usable(self) -> bool:
        return not self.connection.closed

    def close(self) -> None:
        self.connection.close()


class Psycopg2(Driver):
    """The driver with its defaults."""

    errors = (psycopg2.Error,)

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        return Psycopg2Session(psycopg2.connect(url, application_name=application_name, sslmode="disable", **options))

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        return self.connect(url, options=" ".join(f"-c {name}={value}" for name, value in settings.items()))

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        checks = {"sslmode": "require"} if ca is None else {"sslmode": "verify-full", "sslrootcert": ca}
        return Psycopg2Session(psycopg2.connect(url, **checks, **options))

    def connect_tls_specially(self, url: str, ca: str, way: str) -> Session:
        if way == "channel binding":
            return self.connect_tls(url, ca=ca, channel_binding="require")
        if psycopg2.extensions.libpq_version() < 170000:
            raise NotApplicable("libpq is older than 17")
        return self.connect_tls(url, ca=ca, sslnegotiation="direct")

    def sqlstate(self, error: BaseException) -> str | None:
        return getattr(error, "pgcode", None)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        pool = psycopg2.pool.ThreadedConnectionPool(1, clients, url, sslmode="disable")

        def client(number: int) -> list[Any]:
            answers = []
            for turn in range(turns):
                connection = pool.getconn()
                with connection, connection.cursor() as cursor:
                    cursor.execute("select %s::int4", [number * 100 + turn])
                    answers.append(cursor.fetchone())
                pool.putconn(connection)
            return answers

        with ThreadPoolExecutor(clients) as threads:
            answers = list(threads.map(client, range(clients)))
        pool.closeall()
        return answers


def _adapted(value: Any) -> Any:
    """Lists become arrays by themselves; a UUID needs its adapter."""
    return str(value) if type(value).__name__ == "UUID" else value


if __name__ == "__main__":
    main(Psycopg2())
