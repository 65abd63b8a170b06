"""Where a registry is: the URLs that name one, and how to show them without their secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from registry.errors import Invalid

SQLITE: Final = "sqlite"
POSTGRESQL: Final = "postgresql"
_FORMS: Final = "sqlite:///relative/registry.db, sqlite:////absolute/registry.db or postgresql://user@host/database"
_ESCAPED: Final = (
    "postgresql://user:password@host:port/database; in a password / is written %2F, ? %3F, # %23, @ %40, : %3A"
)
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_SHOWN_PARAMETERS: Final = frozenset({"host", "port", "sslmode", "target_session_attrs", "application_name"})


@dataclass(frozen=True, slots=True)
class Location:
    """A registry's place: a file, or a PostgreSQL database by the URL that libpq would take.

    `shown` may be logged; `url` may contain a password.
    """

    kind: str
    shown: str
    path: Path | None = None
    url: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.shown


def parse_location(url: str) -> Location:
    """Read a registry's URL; raises Invalid, which repeats no password."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        raise Invalid("registry", "the registry's URL has no scheme", _FORMS)
    if scheme == SQLITE:
        return _file(rest)
    if scheme in {POSTGRESQL, "postgres"}:
        return _server(f"{POSTGRESQL}://{rest}")
    raise Invalid("registry", f"the registry's URL begins with {_safe(scheme)}://", _FORMS)


def _file(rest: str) -> Location:
    path, question, _ = rest.partition("?")
    if not path.startswith("/") or question:
        raise Invalid("registry", "an SQLite URL is sqlite:/// and a path, nothing else", _FORMS)
    name = unquote(path[1:])
    if not name or name.endswith("/") or name == ":memory:" or "\0" in name:
        raise Invalid("registry", "an SQLite registry needs a file", "processes share it: it cannot be in memory")
    return Location(SQLITE, f"sqlite:///{name}", Path(name))


def _server(url: str) -> Location:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Invalid("registry", "the registry's URL cannot be read", _FORMS) from None
    user, at, hosts = parts.netloc.rpartition("@")
    # What follows a "/", "?" or "#" that stands unescaped in a password would be shown as a host or a database.
    stray = parts.fragment or "@" in user + parts.path or (not at and "@" in parts.query)
    if stray or not all(_is_host(host) for host in hosts.split(",")):
        raise Invalid("registry", "the registry's URL cannot be read", _ESCAPED)
    account = user.partition(":")[0]
    shown_query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name in _SHOWN_PARAMETERS])
    shown = f"{POSTGRESQL}://{account}{at}{hosts}{parts.path}{'?' if shown_query else ''}{shown_query}"
    return Location(POSTGRESQL, shown, url=url)


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    return match is not None and (match[1] is None or 1 <= int(match[1]) <= 65535)


def _safe(text: str) -> str:
    return repr(text) if re.fullmatch(r"[A-Za-z0-9+.-]{1,20}", text) else "something else"
