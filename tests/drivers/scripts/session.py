"""What the scenarios ask of a driver written in Python."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlsplit

Row = tuple[Any, ...]
Rows = list[Row]

PLACEHOLDER = re.compile(r"\$\d+")


class NotApplicable(Exception):
    """The driver has no such thing; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect: a URL, and the certificate authorities of the one that speaks TLS."""

    url: str
    tls_url: str
    ca: str
    wrong_ca: str

    @property
    def database(self) -> str:
        """The name of the database as the application knows it."""
        return urlsplit(self.url).path.removeprefix("/")

    def changed(self, *, password: str | None = None, database: str | None = None) -> str:
        """The URL with another password or another database."""
        parts = urlsplit(self.url)
        word = quote(parts.password or "" if password is None else password, safe="")
        path = parts.path if database is None else f"/{database}"
        return f"postgresql://{parts.username}:{word}@{parts.hostname}:{parts.port}{path}"


class Session(ABC):
    """One connection, outside of transactions unless `transaction()` is open.

    Parameters are written $1, $2 ... in order, each once.
    """

    @abstractmethod
    def query(self, sql: str, *values: Any) -> Rows:
        """The rows of a statement, in the driver's usual way; none for a statement without rows."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Any]:
        """A transaction, rolled back by an exception; inside of another one a savepoint."""

    def value(self, sql: str, *values: Any) -> Any:
        return self.query(sql, *values)[0][0]

    def script(self, sql: str) -> None:
        """Run several statements in one message."""
        raise NotApplicable("every statement is sent on its own")

    def prepare(self, sql: str) -> Callable[..., Rows]:
        """A statement with a name on the server."""
        raise NotApplicable("the driver never names a statement")

    def forget(self, prepared: Callable[..., Rows]) -> None:
        """Remove a named statement from the server."""
        raise NotApplicable("the driver removes no statement")

    def unnamed(self, sql: str, *values: Any) -> Rows:
        """The rows of a statement that gets no name, its values sent apart from it."""
        raise NotApplicable("the driver puts the values into the statement's text")

    def many(self, sql: str, rows: Sequence[Row]) -> Any:
        """One statement for many rows of values; what the driver tells of it."""
        raise NotApplicable("the driver has no batches")

    def together(self, statements: Sequence[tuple[str, Row]]) -> list[Rows]:
        """Several statements sent before the first answer is read."""
        raise NotApplicable("the driver has no pipeline")

    def stream(self, sql: str, size: int) -> Iterator[Row]:
        """Rows read through a cursor of the server, `size` at a time, inside a transaction."""
        raise NotApplicable("the driver has no server-side cursors")

    def held(self, sql: str, size: int) -> Iterator[Row]:
        """Rows read through a cursor that outlives its transaction."""
        raise NotApplicable("the driver declares no cursor with hold")

    def copy_in(self, sql: str, blocks: Iterable[bytes]) -> None:
        raise NotApplicable("the driver has no COPY")

    def copy_out(self, sql: str) -> bytes:
        raise NotApplicable("the driver has no COPY")

    def cancelled(self, sql: str) -> None:
        """Run a statement and cancel it by the driver's own means; raises what the driver raises."""
        raise NotApplicable("the driver cannot cancel")

    def listen(self, channel: str) -> None:
        raise NotApplicable("the driver gives no notifications")

    def unlisten(self, channel: str) -> None:
        self.query(f"unlisten {channel}")

    def notifications(self, seconds: float, wanted: int) -> list[tuple[str, str]]:
        """Channel and payload of what arrives, until there are `wanted` or the time is over."""
        raise NotApplicable("the driver gives no notifications")

    def notices(self) -> list[str]:
        """The texts of the notices so far, removed from the list."""
        raise NotApplicable("the driver gives no notices")

    def parameter(self, name: str) -> str | None:
        """What the server has reported."""
        raise NotApplicable("the driver does not show what the server reports")

    def pid(self) -> int:
        """The process number that was told at the login."""
        raise NotApplicable("the driver does not show it")

    def encrypted(self) -> bool:
        """Whether this connection uses TLS."""
        raise NotApplicable("the driver does not show it")

    def usable(self) -> bool:
        """Whether the driver takes the connection for open."""
        raise NotApplicable("the driver does not show it")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Driver(ABC):
    """A driver; `errors` are its exceptions."""

    errors: tuple[type[Exception], ...]
    streams_outside: bool = False
    """Whether it reads in portions outside of a transaction, too, with a cursor that is held."""

    @abstractmethod
    def connect(self, url: str, *, application_name: str = "", **options: Any) -> Session: ...

    @abstractmethod
    def sqlstate(self, error: BaseException) -> str | None: ...

    def connect_with_options(self, url: str, settings: dict[str, str]) -> Session:
        """Connect with settings among the startup parameters."""
        raise NotApplicable("the driver sends no settings at the start")

    def connect_tls(self, url: str, *, ca: str | None, **options: Any) -> Session:
        """Connect with TLS; with `ca` the certificate and its host name are checked."""
        raise NotApplicable("the driver has no TLS")

    def connect_tls_specially(self, url: str, ca: str, way: str) -> Session:
        """Connect with TLS in a `way` of libpq's: "channel binding", "direct"."""
        raise NotApplicable("only libpq has it")

    def pooled(self, url: str, clients: int, turns: int) -> list[Any]:
        """What `clients` tasks get that share a pool of the driver's own, in order; then the pool is closed."""
        raise NotApplicable("the driver has no pool")

    def pooled_after_loss(self, url: str) -> list[Any]:
        """What a pool does after its connection was cut."""
        raise NotApplicable("the pool does not look after lost connections")


def percent(sql: str) -> str:
    """The statement with %s in place of $1, $2 ..."""
    return PLACEHOLDER.sub("%s", sql.replace("%", "%%"))


def bounded(rows: Iterable[Row]) -> Rows:
    return [tuple(row) for row in rows]
