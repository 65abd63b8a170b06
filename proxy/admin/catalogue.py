"""What the console knows: its commands, and the columns of each table.

Drivers ask for the columns before anything is run, and `docs/console.md` lists them, so they stand here as data.
Names of PgBouncer's console are used wherever the thing is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final


class Kind(Enum):
    """A column's type: PostgreSQL's oid and size (-1: it varies)."""

    TEXT = (25, -1)
    INT = (20, 8)
    FLOAT = (701, 8)

    @property
    def oid(self) -> int:
        return self.value[0]

    @property
    def size(self) -> int:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; `meaning` is what the documentation says of it."""

    name: str
    kind: Kind
    meaning: str


@dataclass(frozen=True, slots=True)
class Topic:
    """What SHOW can be asked for.

    `parameters` are the names of what may follow, of which the first `required` must; they are in `usage` too.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    parameters: tuple[str, ...] = ()
    required: int = 0

    @property
    def usage(self) -> str:
        """How it is spelled: `SHOW CLIENTS [tenant]`."""
        return _usage(f"SHOW {self.name}", self.parameters, self.required)


@dataclass(frozen=True, slots=True)
class Order:
    """A command that changes something, for admins only."""

    verb: str
    meaning: str
    parameters: tuple[str, ...] = ()
    required: int = 0

    @property
    def usage(self) -> str:
        return _usage(self.verb, self.parameters, self.required)


def _usage(words: str, parameters: tuple[str, ...], required: int) -> str:
    shown = (name if number < required else f"[{name}]" for number, name in enumerate(parameters))
    return " ".join((words, *shown))


def _text(name: str, meaning: str) -> Column:
    return Column(name, Kind.TEXT, meaning)


def _int(name: str, meaning: str) -> Column:
    return Column(name, Kind.INT, meaning)


def _float(name: str, meaning: str) -> Column:
    return Column(name, Kind.FLOAT, meaning)


_CLIENTS: Final = Topic(
    "CLIENTS",
    "The clients that are logged in, and what keeps a pinned one on its backend.",
    (
        _text("tenant", "The tenant's slug."),
        _text("user", "The login's user name."),
        _text("addr", "The client's address; behind a load balancer, the one that the PROXY header tells."),
        _int("port", "The client's port."),
        _text(
            "state",
            "`active`: it has a backend; `waiting`: it queues for one; `idle`: it needs none now; `closing`: its "
            "session has ended and it has not closed yet.",
        ),
        _text("pinned", "Why it keeps its backend beyond the transaction, several reasons with commas; else empty."),
        _text("transaction", "`idle`, `open` or `failed`, as its backend last said; empty without a backend."),
        _int("backend", "The number of its backend, as in SHOW SERVERS."),
        _float("active_seconds", "How long it has had it: for the present transaction, or since it is pinned."),
        _float("wait_seconds", "How long it has been waiting for a backend."),
        _text("waits_for", "What it is waiting for."),
        _text("pool_mode", "`transaction`, `session` or `statement`; `replication` for a backend of its own."),
        _text("role", "The role of its pool's backends."),
        _text("server", "The name of its pool's server."),
        _text("database", "The database on that server."),
        _text("application_name", "What it called itself when it connected, or has since."),
        _text("connect_time", "When it connected, in UTC."),
        _text("tls", "`yes` or `no`."),
        _int(
            "id", "The process id that the client was told; with `real_pids` clients of two servers may have the same."
        ),
    ),
    ("tenant",),
)
_SERVERS: Final = Topic(
    "SERVERS",
    "The backends: connections to PostgreSQL servers. Each holds a slot until its server has closed it.",
    (
        _int("backend", "Its number."),
        _text("server", "The server's name."),
        _text("tenant", "The slug of the tenant whose pool it is in."),
        _text("database", "The database it is connected to."),
        _text("user", "The role it is logged in as."),
        _text(
            "state",
            "`connecting`, `idle`, `active`, `resetting` (DISCARD ALL), `cancelling` (a cancel request for it is still "
            "under way), `closing`, or `lingering`: told to close a while ago, and the server has not closed yet.",
        ),
        _float("state_seconds", "How long it has been in that state; for `active`, since a client last took it."),
        _int("pid", "The process id of the server's process."),
        _int("client", "The client that has it, by its id in SHOW CLIENTS."),
        _text("pinned", "Why that client keeps it."),
        _text("retiring", "`yes`: it is closed as soon as it is free, as its route or lifetime is over."),
        _text("connect_time", "When it was opened, in UTC."),
        _text("close_reason", "Why it is being closed."),
    ),
    ("tenant",),
)
_POOLS: Final = Topic(
    "POOLS",
    "The pools: the backends of a tenant and role.",
    (
        _text("tenant", "The tenant's slug."),
        _text("database", "The database on the server."),
        _text("user", "The role of its backends."),
        _text("server", "The server's name."),
        _text("pool_mode", "`transaction`, `session`, `statement` or `replication`."),
        _int("cl_active", "Clients that have a backend."),
        _int("cl_waiting", "Clients that wait for one."),
        _int("cl_pinned", "Of the active ones, those that keep it because of session state."),
        _int("sv_active", "Backends that a client has."),
        _int("sv_idle", "Backends that are free."),
        _int("sv_login", "Backends being opened."),
        _int("sv_resetting", "Backends on which DISCARD ALL is running."),
        _int("sv_cancelling", "Backends for which a cancel request is still under way."),
        _int("sv_closing", "Backends that are being closed, the lingering ones included."),
        _int("maxwait", "Seconds that the first waiter has been waiting, whole ones."),
        _int("maxwait_us", "The rest of that in microseconds."),
        _int("pool_size", "Backends that the tenant may have, in all its pools."),
        _int("min_pool_size", "Backends that are kept open."),
        _text("held_back", "Why its clients are refused now, as docs/errors.md names it; else empty."),
        _text("last_error", "What went wrong when a backend was last opened in vain."),
    ),
    ("tenant",),
)
_TENANTS: Final = Topic(
    "TENANTS",
    "The tenants that this node serves at present. Who has neither clients nor backends is forgotten after a minute.",
    (
        _text("tenant", "The slug."),
        _int("id", "Its number in the registry."),
        _text("state", "Its state in the registry, as far as this node knows."),
        _text("server", "Its server."),
        _text("database", "Its database there."),
        _int("generation", "The number of its route, which changes when it leads elsewhere."),
        _int("clients", "Its clients."),
        _int("max_clients", "How many it may have."),
        _int("waiting", "Those that wait for a backend."),
        _int("max_waiting", "How many may wait."),
        _int("backends", "The slots that it holds."),
        _int("pool_size", "How many it may hold."),
        _int("pinned", "Its clients that keep their backends."),
        _int("pools", "Its pools."),
    ),
    ("tenant",),
)
_COUNTERS: Final = (
    _int("total_xact_count", "Transactions (or single statements) that have ended."),
    _int("total_query_count", "Requests answered with ReadyForQuery."),
    _int("total_received", "Bytes received from clients."),
    _int("total_sent", "Bytes of backends sent to clients."),
    _int("total_xact_time", "Microseconds from taking a backend to giving it back, all transactions together."),
    _int("total_wait_time", "Microseconds that clients waited for a backend."),
    _int("total_prepared_again", "Statements prepared once more on a backend that did not have them."),
    _int("total_errors", "Errors told to clients, those of PostgreSQL included."),
)
_STATS: Final = Topic(
    "STATS",
    "What every tenant has done since the node started.",
    (_text("tenant", "The tenant's slug."), *_COUNTERS),
    ("tenant",),
)
_TOTALS: Final = Topic("TOTALS", "The same of all tenants together.", _COUNTERS)
_SLOTS: Final = Topic(
    "SLOTS",
    "The servers that tenants of this node are on, and the slots that it holds there.",
    (
        _text("server", "The server's name."),
        _int("slots", "Slots held."),
        _int("slots_max", "Slots that may be held."),
        _int("connecting", "Backends being opened."),
        _int("closing", "Backends that are being closed and do not linger yet."),
        _int("waiting", "Clients that wait for a backend there."),
        _int("connect_failures", "Backends that could not be opened."),
        _float("retry_seconds", "After a failure: seconds until it is tried again."),
        _text("last_error", "What went wrong last."),
    ),
)
_LISTS: Final = Topic(
    "LISTS",
    "How many there are of everything.",
    (_text("list", "What is counted."), _int("items", "How many.")),
)
_CONFIG: Final = Topic(
    "CONFIG",
    "The settings in force; secrets are not shown.",
    (
        _text("key", "Section and name."),
        _text("value", "Its value."),
        _text("default", "The default."),
    ),
)
_VERSION: Final = Topic("VERSION", "Which build this is.", (_text("version", "Version, relay and Python."),))
_ROUTE: Final = Topic(
    "ROUTE",
    "How a connection with this user name and database is understood, step by step, and where it leads.",
    (
        _text("step", "A selector (`sni`, `options`, `user`, `database`), or a part of the result."),
        _text("value", "What the connection says there."),
        _text("says", "What is read out of it."),
        _text("found", "The tenant it leads to."),
        _text("decides", "`yes` for the selector that decides."),
        _text("note", "How it was judged."),
    ),
    ("user", "database"),
    1,
)
_STATE: Final = Topic(
    "STATE",
    "How this node is: whether it is ready, for how long it has been running, which registry version is in force.",
    (_text("key", "What is told."), _text("value", "How it is.")),
)
_REGISTRY: Final = Topic(
    "REGISTRY",
    "How this node stands with the registry.",
    (_text("key", "What is told."), _text("value", "How it is.")),
)
_HELP: Final = Topic(
    "HELP", "All commands.", (_text("command", "How it is spelled."), _text("meaning", "What it does."))
)

TOPICS: Final[Mapping[str, Topic]] = MappingProxyType(
    {
        topic.name: topic
        for topic in (
            _CLIENTS,
            _SERVERS,
            _POOLS,
            _TENANTS,
            _STATS,
            _TOTALS,
            _SLOTS,
            _LISTS,
            _CONFIG,
            _VERSION,
            _ROUTE,
            _STATE,
            _REGISTRY,
            _HELP,
        )
    }
)
SYNONYMS: Final[Mapping[str, str]] = MappingProxyType({"BACKENDS": "SERVERS"})
ORDERS: Final[Mapping[str, Order]] = MappingProxyType(
    {
        "RELOAD": Order(
            "RELOAD",
            "Read settings, keys, certificates and the registry again now; admins only. Notices name the settings that "
            "changed, and those that need a restart.",
        )
    }
)
