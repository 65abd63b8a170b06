"""pg8000, a driver in plain Python: unnamed statements by default, named ones on demand."""

from __future__ import annotations

import io
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import pg8000.core
import pg8000.dbapi
import pg8000.native

from drivers.scripts.python_driver import main
from drivers.scripts.session import PLACEHOLDER, Driver, Row, Rows, Session, bounded, percent


class Pg8000Session(Session):
    """A DB-API connection in autocommit mode; named statements are those of its native interface."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.connection.autocommit = True
        self._depth = 0
        self._statements: dict[str, Any] = {}

    def query(self, sql: str, *values: Any) -> Rows:
        cursor = self.connection.cursor()
        cursor.execute(percent(sql) if values else sql, values)
        return bounded(cursor.fetchall()) if cursor.description is not None else []

    def unnamed(self, sql: str, *values: Any) -> Rows:
        return self.query(sql, *values)

    def prepare(self, sql: str) -> Callable[..., Rows]:
        statement = pg8000.native.PreparedStatement(self.connection, _named(sql))

        def execute(*values: Any) -> Rows:
            return bounded(statement.run(**{f"p{n}": value for n, value in enumerate(values, 1)}))

        execute.__name__ = statement.name_bin.decode().rstrip("\0")
        self._statements[execute.__name__] = statement
        return execute

    def forget(self, prepared: Callable[..., Rows]) -> None:
        self._statements.pop(prepared.__name__).close()

    def many(self, sql: str, rows: Sequence[Row]) -> Any:
        cursor = self.connection.cursor()
        cursor.executemany(percent(sql), rows)
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
            self.connection.rollback()
            raise
        else:
            self.connection.commit()
        finally:
            self._depth -= 1
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
        self.query(f"declare streamed cursor for {sql}")
        while rows := self.query(f"fetch {size} from streamed"):
            yield from rows
        self.query("close streamed")

    def copy_in(self, sql: str, blocks: Iterable[bytes]) -> None:
        self.connection.cursor().execute(sql, stream=io.BytesIO(b"".join(blocks)))

    def copy_out(self, sql: str) -> bytes:
        out = io.BytesIO()
        self.connection.cursor().execute(sql, stream=out)
        return out.getvalue()

    def listen(self, channel: str) -> None:
        self.query(f"listen {channel}")

    def notifications(self, seconds: float, wanted: int) -> list[tuple[str, str]]:
        end = time.monotonic() + seconds
        while len(self.connection.notifications) < wanted and time.monotonic() < end:
            self.query("select 1")
        taken = [(channel, payload) for _, channel, payload in self.connection.notifications]
        self.connection.notifications.clear()
        return taken

    def notices(self) -> list[str]:
        taken = [notice[b"M"].decode() for notice in self.connection.notices]
        self.connection.notices.clear()
        return taken

    def parameter(self, name: str) -> str | None:
        value = self.connection.parameter_statuses.get(name)
        return value.decode() if isinstance(value, bytes) else value

    def close(self) -> None:
        try:
            self.connection.close()
        except (pg8000.dbapi.Error, pg8000.core.InterfaceError, OSError):
            return


class Pg8000(Driver):
    """The driver with its defaults."""

    errors = (pg8000.dbapi.Error, pg8000.core.InterfaceError, OSError)

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        parts = urlsplit(url)
        return Pg8000Session(
            pg8000.dbapi.connect(
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                host=parts.hostname,
                port=parts.port,
                database=parts.path.removeprefix("/"),
                application_name=application_name,
                **{"ssl_context": False, **options},
            )
        )

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        return self.connect(url, startup_params=settings)

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        context = ssl.create_default_context(cafile=ca)
        if ca is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return self.connect(url, ssl_context=context, **options)

    def sqlstate(self, error: BaseException) -> str | None:
        details = error.args[0] if error.args else None
        return details.get("C") if isinstance(details, dict) else None


def _named(sql: str) -> str:
    """The statement with :p1 in place of $1."""
    return PLACEHOLDER.sub(lambda found: f":p{found.group()[1:]}", sql)


if __name__ == "__main__":
    main(Pg8000())
