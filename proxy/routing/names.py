"""Names: how a connection spells its tenant (host name, options, user suffix, database name).

Pure: nothing here knows which tenants exist.  `read` turns what a client sent into *statements*, each with its
source and the tenant names that it may mean; the resolver asks the registry about them.

Three rules keep the selectors apart from ordinary names:

- A user name that holds the separator has two readings, the whole name (`jane.doe`) and name and suffix (`jane` of
  tenant `doe`, split at the last separator).  Where another selector names a tenant that has a login of the whole
  name, the whole name wins and there is no suffix; otherwise the suffix is believed.
- A database that equals the user name is what drivers send when none was given.  It counts only where nothing else
  names a tenant.
- The selectors of `NameRules.order` that are left out are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from proxy.errors import CONTRADICTORY_SELECTORS, INVALID_OPTIONS, USER_MISSING, Failure
from proxy.wire.errors import StartupOptionError
from proxy.wire.options import parse_startup_options
from proxy.wire.startup import ReplicationMode, StartupMessage

MAX_NAME_CHARS: Final = 128
"""Longest name that is asked for: neither slugs nor PostgreSQL's identifiers (63 bytes) come near it."""

NO_DATABASE: Final = "replication"
"""What clients of physical replication, which is connected to no database, send in the place of its name."""

PLACEHOLDER: Final = "{tenant}"


class Source(StrEnum):
    """A selector: the part of a connection that may name a tenant."""

    SNI = "sni"
    OPTIONS = "options"
    USER = "user"
    DATABASE = "database"

    @property
    def phrase(self) -> str:
        """The selector and its verb, as in `the options say "acme"`."""
        return _PHRASES[self]


_PHRASES: Final = {
    Source.SNI: "the host name says",
    Source.OPTIONS: "the options say",
    Source.USER: "the user name says",
    Source.DATABASE: "the database name says",
}


class Pattern:
    """A spelling of tenants such as `db_{tenant}` or `{tenant}.db.example.com`.

    The placeholder stands for one name of letters, digits, `-` and `_`.  Raises ValueError unless the text holds it
    exactly once and something beside it.
    """

    __slots__ = ("_regex", "text")

    def __init__(self, text: str, *, ignore_case: bool = False) -> None:
        if text.count(PLACEHOLDER) != 1 or text == PLACEHOLDER:
            raise ValueError(f"a pattern holds {PLACEHOLDER} once, and something beside it: {text!r}")
        before, after = text.split(PLACEHOLDER)
        flags = re.ASCII | (re.IGNORECASE if ignore_case else 0)
        self.text = text
        self._regex = re.compile(f"{re.escape(before)}([A-Za-z0-9_-]+){re.escape(after)}", flags)

    def match(self, value: str) -> str | None:
        """The name at the placeholder's place, or None where the value is not of this pattern."""
        found = self._regex.fullmatch(value)
        return found.group(1) if found else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self._regex == other._regex

    def __hash__(self) -> int:
        return hash(self._regex)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


@dataclass(frozen=True, slots=True)
class NameRules:
    """Which selectors count, in the order of their precedence, and how each spells a tenant.

    `sni_patterns` empty: host names say nothing.  `user_separator` empty: user names have no suffix.
    `physical_databases` lets the name of a database on its server stand for the tenant, where only one tenant has
    a database of that name.
    """

    order: tuple[Source, ...] = (Source.SNI, Source.OPTIONS, Source.USER, Source.DATABASE)
    sni_patterns: tuple[Pattern, ...] = ()
    option_names: tuple[str, ...] = ("tenant", "pgtenant.tenant")
    user_separator: str = "."
    database_patterns: tuple[Pattern, ...] = ()
    physical_databases: bool = True


def name_rules(
    *,
    order: Sequence[str] = tuple(Source),
    sni_patterns: Sequence[str] = (),
    option_names: Sequence[str] = ("tenant", "pgtenant.tenant"),
    user_separator: str = ".",
    database_patterns: Sequence[str] = (),
    physical_databases: bool = True,
) -> NameRules:
    """Build rules from plain settings; raises ValueError for an unknown or repeated selector or a bad pattern."""
    sources = tuple(Source(name) for name in order)
    if len(set(sources)) != len(sources):
        raise ValueError("a selector may stand in the order once")
    return NameRules(
        order=sources,
        sni_patterns=tuple(Pattern(text, ignore_case=True) for text in sni_patterns),
        option_names=tuple(name.replace("-", "_") for name in option_names),
        user_separator=user_separator,
        database_patterns=tuple(Pattern(text) for text in database_patterns),
        physical_databases=physical_databases,
    )


@dataclass(frozen=True, slots=True)
class Selectors:
    """What a client sent that may name its tenant.

    `options` are all settings it asked for at startup, from `options` and from the startup packet itself.
    `database` None means that none was given; a driver may as well have put the user name there.
    """

    user: str
    database: str | None = None
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    sni: str | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """What one selector says: the tenant names it may mean, likeliest first, and the database it may mean."""

    source: Source
    value: str
    names: tuple[str, ...]
    database: str | None = None

    def __str__(self) -> str:
        return f'{self.source.phrase} "{_shown(self.names[0])}"'


@dataclass(frozen=True, slots=True)
class Silence:
    """A selector that says nothing, and why; told by `route explain`."""

    source: Source
    value: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """All that the names of one connection say.

    `statements` stand in the order of precedence.  `exact_user` is the whole user name; `user` the name without
    suffix where there is a statement from the user name, else the same.  `settings` are the options for the
    backend: without those that name the tenant.
    """

    user: str
    exact_user: str
    statements: tuple[Statement, ...]
    silences: tuple[Silence, ...]
    settings: tuple[tuple[str, str], ...] = field(repr=False)

    @property
    def spelled(self) -> str:
        """The tenant as it was spelled, whether or not there is one; empty where none is named."""
        return self.statements[0].names[-1] if self.statements else ""

    @property
    def has_suffix(self) -> bool:
        return self.user != self.exact_user

    def without_suffix(self) -> tuple[Statement, ...]:
        """The statements of the other selectors: what holds where the whole user name is a login's."""
        return tuple(statement for statement in self.statements if statement.source is not Source.USER)


def selectors_from_startup(startup: StartupMessage, sni: str | None, rules: NameRules) -> Selectors:
    """Take the selectors out of a StartupMessage and the host name of the TLS handshake.

    Raises Failure: USER_MISSING, or INVALID_OPTIONS where PostgreSQL would refuse the options as well.
    """
    if startup.user is None:
        raise Failure(USER_MISSING)
    bare = rules.option_names if Source.OPTIONS in rules.order else ()
    try:
        options = parse_startup_options(startup.options, bare)
    except StartupOptionError as error:
        raise Failure(INVALID_OPTIONS, reason=str(error)) from error
    return Selectors(
        user=startup.user,
        database=_database_of(startup),
        # PostgreSQL applies the packet's own settings after those in `options`.
        options=options + startup.settings,
        sni=sni or None,
    )


def _database_of(startup: StartupMessage) -> str | None:
    database = startup.get("database") or None
    if database != NO_DATABASE:
        return database
    try:
        return None if startup.replication is ReplicationMode.PHYSICAL else database
    except ValueError:
        return database


def read(selectors: Selectors, rules: NameRules) -> Reading:
    """Read the names of a connection.

    Raises Failure(CONTRADICTORY_SELECTORS) where options name two tenants, or options and host name do: that can
    be said without knowing which tenants exist.
    """
    user, suffix = _split_user(selectors.user, rules)
    tenants, settings = _split_options(selectors.options, rules)
    found: dict[Source, Statement | Silence] = {
        Source.SNI: _read_sni(selectors.sni, rules),
        Source.OPTIONS: _read_options(tenants),
        Source.USER: _read_user(selectors.user, suffix, rules),
    }
    others = [found[source] for source in rules.order if source is not Source.DATABASE]
    named = any(isinstance(one, Statement) for one in others)
    found[Source.DATABASE] = _read_database(selectors, rules, named=named)
    statements = tuple(one for source in rules.order if isinstance(one := found[source], Statement))
    silences = [one for source in rules.order if isinstance(one := found[source], Silence)]
    silences += [Silence(source, None, "this selector is off") for source in Source if source not in rules.order]
    _refuse_plain_contradiction(statements)
    return Reading(user, selectors.user, statements, tuple(silences), settings)


def stem(user: str, rules: NameRules) -> str:
    """A user name without all that may be a tenant's: the same for every spelling of one login."""
    if Source.USER not in rules.order or not rules.user_separator:
        return user
    return user.partition(rules.user_separator)[0]


def disagreement(statements: Sequence[Statement]) -> tuple[Statement, Statement] | None:
    """The first two statements that do not look as if they meant one tenant, judged by their spelling alone.

    `acme` and a database `acme_db` look alike, `acme` and `shop` do not, although `shop` may be the very database
    of `acme`.  So a client that could not prove who it is can be told what may be wrong, and the answer depends on
    nothing that the registry knows.
    """
    if not statements:
        return None
    first, *others = statements
    return next(((first, other) for other in others if not _alike(first, other)), None)


def contradiction(first: Statement, second: Statement, *, hint: str | None = None) -> Failure:
    """The error for two selectors that name different tenants; the same whether these tenants exist or not."""
    return Failure(CONTRADICTORY_SELECTORS, hint=hint, first=first, second=second)


def _alike(first: Statement, second: Statement) -> bool:
    return any(one == other or one in other or other in one for one in first.names for other in second.names)


def _refuse_plain_contradiction(statements: Sequence[Statement]) -> None:
    by_source = {statement.source: statement for statement in statements}
    sni, options = by_source.get(Source.SNI), by_source.get(Source.OPTIONS)
    if sni is None or options is None or sni.names == options.names:
        return
    first, second = (one for one in statements if one.source in (Source.SNI, Source.OPTIONS))
    raise contradiction(first, second)


def _split_user(user: str, rules: NameRules) -> tuple[str, str | None]:
    if Source.USER in rules.order and rules.user_separator:
        name, separator, suffix = user.rpartition(rules.user_separator)
        if separator and name and suffix:
            return name, suffix
    return user, None


def _split_options(
    options: Sequence[tuple[str, str]], rules: NameRules
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    if Source.OPTIONS not in rules.order:
        return [], tuple(options)
    names = {name.lower() for name in rules.option_names}
    tenants = [value for name, value in options if name.lower() in names and value]
    return tenants, tuple(pair for pair in options if pair[0].lower() not in names)


def _read_sni(sni: str | None, rules: NameRules) -> Statement | Silence:
    if sni is None:
        return Silence(Source.SNI, None, "no TLS host name was sent")
    if not rules.sni_patterns:
        return Silence(Source.SNI, sni, "no pattern of host names is configured")
    host = sni.lower().rstrip(".")
    for pattern in rules.sni_patterns:
        name = pattern.match(host)
        if name is not None:
            return Statement(Source.SNI, sni, (name,))
    return Silence(Source.SNI, sni, "the host name is of no configured pattern")


def _read_options(tenants: Sequence[str]) -> Statement | Silence:
    if not tenants:
        return Silence(Source.OPTIONS, None, "the options name no tenant")
    first = Statement(Source.OPTIONS, tenants[0], (tenants[0],))
    for other in tenants[1:]:
        if other != tenants[0]:
            raise contradiction(first, Statement(Source.OPTIONS, other, (other,)))
    return first


def _read_user(user: str, suffix: str | None, rules: NameRules) -> Statement | Silence:
    if suffix is not None:
        return Statement(Source.USER, user, (suffix,))
    if not rules.user_separator:
        return Silence(Source.USER, user, "no separator is configured")
    return Silence(Source.USER, user, f'no suffix: no "{rules.user_separator}" between two names')


def _read_database(selectors: Selectors, rules: NameRules, *, named: bool) -> Statement | Silence:
    database = selectors.database or selectors.user
    if named and database == selectors.user:
        return Silence(
            Source.DATABASE, selectors.database, "it is only the user name, which drivers send when none is given"
        )
    spelled = (name for pattern in rules.database_patterns if (name := pattern.match(database)) is not None)
    names = tuple(dict.fromkeys((database, *spelled)))
    return Statement(Source.DATABASE, database, names, database if rules.physical_databases else None)


def _shown(text: str) -> str:
    return text if len(text) <= MAX_NAME_CHARS else text[:MAX_NAME_CHARS] + "..."
