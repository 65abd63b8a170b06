"""Django's ORM and connections over psycopg 3: persistent connections, server-side cursors, atomic blocks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import unquote, urlsplit

import django
import psycopg
from django.conf import settings as django_settings
from django.db import Error, connections, models, transaction
from django.db.utils import ConnectionHandler

from drivers.scripts.python_driver import main
from drivers.scripts.session import Driver, Row, Rows, Session, bounded, percent

CANCEL_AFTER = 0.4


def configure() -> None:
    """Make Django usable without a project."""
    django_settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}},
        INSTALLED_APPS=[],
        USE_TZ=True,
        TIME_ZONE="UTC",
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()


def item_model() -> Any:
    """The table `items` as a model."""
    fields = {
        "id": models.IntegerField(primary_key=True),
        "name": models.TextField(),
        "__module__": __name__,
        "Meta": type("Meta", (), {"app_label": "drivers", "managed": False, "db_table": "items"}),
    }
    return type("Item", (models.Model,), fields)


def entry(url: str, **options: Any) -> dict[str, Any]:
    """An entry of DATABASES: a connection is kept between requests, and looked after."""
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.removeprefix("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname,
        "PORT": parts.port,
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {"sslmode": "disable", **options},
    }


class DjangoSession(Session):
    """A connection under an alias of its own."""

    def __init__(self, alias: str, database: dict[str, Any], model: Any) -> None:
        self.alias = alias
        self.model = model
        connections.settings[alias] = {**connections.settings["default"], **database}
        self.connection = connections[alias]
        self._notices: list[str] = []
        self.connection.ensure_connection()
        self.connection.connection.add_notice_handler(lambda notice: self._notices.append(notice.message_primary))

    def query(self, sql: str, *values: Any) -> Rows:
        with self.connection.cursor() as cursor:
            cursor.execute(percent(sql) if values else sql, values or None)
            return bounded(cursor.fetchall()) if cursor.description is not None else []

    def script(self, sql: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)

    def prepare(self, sql: str) -> Callable[..., Rows]:
        def execute(*values: Any) -> Rows:
            self.connection.ensure_connection()
            cursor = self.connection.connection.execute(percent(sql), values, prepare=True)
            return bounded(cursor.fetchall())

        return execute

    def unnamed(self, sql: str, *values: Any) -> Rows:
        self.connection.ensure_connection()
        return bounded(self.connection.connection.execute(percent(sql), values, prepare=False).fetchall())

    def many(self, sql: str, rows: Sequence[Row]) -> Any:
        with self.connection.cursor() as cursor:
            cursor.executemany(percent(sql), rows)
            return cursor.rowcount

    def transaction(self) -> AbstractContextManager[Any]:
        return transaction.atomic(using=self.alias)  # type: ignore[no-any-return]

    def stream(self, sql: str, size: int) -> Iterator[Row]:
        """Rows of the model where the statement is one that a QuerySet makes, else raw ones."""
        if sql == "select id from items order by id":
            found = self.model.objects.using(self.alias).order_by("id").values_list("id")
            yield from found.iterator(chunk_size=size)
            return
        with self.connection.chunked_cursor() as cursor:
            cursor.execute(sql)
            while rows := cursor.fetchmany(size):
                yield from rows

    def cancelled(self, sql: str) -> None:
        timer = threading.Timer(CANCEL_AFTER, self.connection.connection.cancel_safe)
        timer.start()
        try:
            self.query(sql)
        finally:
            timer.join()

    def listen(self, channel: str) -> None:
        self.query(f"listen {channel}")

    def notifications(self, seconds: float, wanted: int) -> list[tuple[str, str]]:
        found = self.connection.connection.notifies(timeout=seconds, stop_after=wanted)
        return [(notification.channel, notification.payload) for notification in found]

    def notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        return taken

    def parameter(self, name: str) -> str | None:
        return self.connection.connection.info.parameter_status(name)  # type: ignore[no-any-return]

    def usable(self) -> bool:
        return bool(self.connection.is_usable())

    def encrypted(self) -> bool:
        return bool(self.connection.connection.pgconn.ssl_in_use)

    def close(self) -> None:
        self.connection.close()
        del connections[self.alias]


class Django(Driver):
    """Django with its defaults: values in the text, no prepared statements; with `server_side` both are on."""

    errors = (Error, psycopg.Error)
    streams_outside = True

    def __init__(self, *, server_side: bool) -> None:
        configure()
        self.model = item_model()
        self.options: dict[str, Any] = {"server_side_binding": True, "prepare_threshold": 2} if server_side else {}
        self._count = 0
        self._lock = threading.Lock()

    def connect(self, url: str, *, application_name: str = "drivers", **options: Any) -> Session:
        with self._lock:
            self._count += 1
            alias = f"c{self._count}"
        asked = {"application_name": application_name, **self.options, **options}
        return DjangoSession(alias, entry(url, **asked), self.model)

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        given = {name: value for name, value in settings.items() if name != "timezone"}
        session = self.connect(url, options=" ".join(f"-c {name}={value}" for name, value in given.items()))
        session.query(f"set timezone to '{settings['timezone']}'")
        return session

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        checks = {"sslmode": "require"} if ca is None else {"sslmode": "verify-full", "sslrootcert": ca}
        return self.connect(url, **checks, **options)

    def sqlstate(self, error: BaseException) -> str | None:
        return getattr(error, "sqlstate", None) or getattr(error.__cause__, "sqlstate", None)

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        """Persistent connections, one a thread; each turn is a request."""

        def client(number: int) -> list[Any]:
            handler = ConnectionHandler({"default": entry(url, **self.options)})
            answers = []
            for turn in range(turns):
                connection = handler["default"]
                with connection.cursor() as cursor:
                    cursor.execute("select %s::int4", [number * 100 + turn])
                    answers.append(cursor.fetchone())
                connection.close_if_unusable_or_obsolete()
            handler["default"].close()
            return answers

        with ThreadPoolExecutor(clients) as threads:
            return list(threads.map(client, range(clients)))

    def pooled_after_loss(self, url: str) -> list[Any]:
        """Requests on a persistent connection with CONN_HEALTH_CHECKS."""
        connection = ConnectionHandler({"default": entry(url, **self.options)})["default"]
        seen: list[Any] = []
        for sql in ("select 1", "select pg_terminate_backend(pg_backend_pid())", "select 2", "select 3"):
            connection.close_if_unusable_or_obsolete()
            connection.health_check_enabled = True
            connection.health_check_done = False
            try:
                with connection.cursor() as cursor:
                    cursor.execute(sql)
                    seen.append(cursor.fetchone())
            except self.errors as error:
                seen.append(self.sqlstate(error))
        connection.close()
        return seen


if __name__ == "__main__":
    main(Django(server_side=sys.argv[1] == "server-side"))
