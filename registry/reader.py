"""What nodes ask of the registry: each answer with the version in whose snapshot it was read.

A look-up is one statement, which sees one snapshot on SQLite and on PostgreSQL alike; the clock's only row stands
first in it and is joined to what was found, or to nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from registry.contract import (
    Login,
    Lookup,
    RegistryUnavailable,
    Route,
    RouteChange,
)
from registry.decoding import Decoder, EvenWork
from registry.errors import RegistryError
from registry.feed import follow
from registry.operations import keys
from registry.secrets import Vault
from registry.store.database import Database
from registry.store.tables import (
    change_log,
    clock,
    login_md5,
    logins,
    registry_secrets,
    servers,
    tenant_names,
    tenants,
)

_VERSION: Final = sa.select(clock.c.v).where(
    *(
        ~sa.exists(sa.select(*table.c).where(sa.false()))
        for table in (change_log, servers, tenants, tenant_names, logins, login_md5, registry_secrets)
    )
)
"""The version, of a registry that has all tables and columns: without them its nodes must not count it as there."""

AT_MOST = 2
"""How many rows are enough to see that a name is ambiguous."""


class StoredReader:
    """Implements `registry.contract.RegistryReader`; `interval` is the feed's, in seconds."""

    def __init__(self, database: Database, vault: Vault, *, interval: float) -> None:
        self._database = database
        self._vault = vault
        self._interval = interval
        self._mock_secret: bytes | None = None
        decoder, quiet = Decoder(vault), Decoder(vault, lambda _error: None)
        self._route_work = EvenWork(decoder.route, quiet.route)
        self._login_work = EvenWork(decoder.login, quiet.login)

    async def route_by_name(self, name: str) -> Lookup[Route | None]:
        named = sa.select(tenant_names.c.tenant_id).where(tenant_names.c.name == name).scalar_subquery()
        return _first(await self._routes(tenants.c.id == named, name))

    async def route_by_id(self, tenant_id: int) -> Lookup[Route | None]:
        return _first(await self._routes(tenants.c.id == tenant_id))

    async def routes_by_database(self, database_name: str) -> Lookup[Sequence[Route]]:
        some = (
            sa.select(tenants.c.id)
            .where(tenants.c.database_name == database_name)
            .order_by(tenants.c.id)
            .limit(AT_MOST)
            .scalar_subquery()
        )
        return await self._routes(tenants.c.id.in_(some), database_name)

    async def login(self, user: str, tenant_id: int) -> Lookup[Login | None]:
        mine = sa.or_(logins.c.tenant_id == tenant_id, logins.c.tenant_id.is_(None))
        found = await self._logins(sa.and_(logins.c.user_name == user, mine), user)
        own_first = sorted(found.value, key=lambda login: login.tenant_id is None)
        return Lookup(found.version, own_first[0] if own_first else None)

    async def logins_by_user(self, user: str) -> Lookup[Sequence[Login]]:
        some = (
            sa.select(logins.c.id)
            .where(logins.c.user_name == user)
            .order_by(logins.c.id)
            .limit(AT_MOST)
            .scalar_subquery()
        )
        return await self._logins(logins.c.id.in_(some), user)

    async def mock_secret(self) -> bytes:
        if self._mock_secret is None:
            with _only_unavailable():
                self._mock_secret = await keys.mock_secret(self._database, self._vault)
        return self._mock_secret

    async def version(self) -> int:
        with _only_unavailable():
            version: int = (await self._database.fetch(_VERSION))[0].v
            return version

    async def changes(self, *, after: int | None = None) -> AsyncGenerator[Sequence[RouteChange], None]:
        feed = follow(self._database, after, interval=self._interval)
        with _only_unavailable():
            try:
                async for batch in feed:
                    yield batch
            finally:
                await feed.aclose()

    async def reload(self) -> int:
        self._database.bell.ring()
        return await self.version()

    async def _routes(self, condition: sa.ColumnElement[bool], text: str = "") -> Lookup[Sequence[Route]]:
        if not _is_storable(text):
            return Lookup(await self.version(), ())
        statement = (
            sa.select(clock.c.v, tenants, servers, tenant_names.c.name, tenant_names.c.is_slug)
            .select_from(clock)
            .outerjoin(tenants, condition)
            .outerjoin(servers, servers.c.id == tenants.c.server_id)
            .outerjoin(tenant_names, tenant_names.c.tenant_id == tenants.c.id)
        )
        with _only_unavailable():
            rows = await self._database.fetch(statement)
        return Lookup(rows[0].v, self._route_work(_grouped(rows, tenants)))

    async def _logins(self, condition: sa.ColumnElement[bool], text: str) -> Lookup[Sequence[Login]]:
        if not _is_storable(text):
            return Lookup(await self.version(), ())
        statement = (
            sa.select(clock.c.v, logins, login_md5)
            .select_from(clock)
            .outerjoin(logins, condition)
            .outerjoin(login_md5, login_md5.c.login_id == logins.c.id)
        )
        with _only_unavailable():
            rows = await self._database.fetch(statement)
        return Lookup(rows[0].v, self._login_work(_grouped(rows, logins)))


def _grouped(rows: Sequence[sa.Row[Any]], table: sa.Table) -> list[list[sa.Row[Any]]]:
    """The rows by the id of what they are about, in the order of the ids."""
    groups: dict[int, list[sa.Row[Any]]] = {}
    for row in rows:
        row_id = row._mapping[table.c.id]
        if row_id is not None:
            groups.setdefault(row_id, []).append(row)
    return [groups[row_id] for row_id in sorted(groups)]


def _first(found: Lookup[Sequence[Route]]) -> Lookup[Route | None]:
    return Lookup(found.version, found.value[0] if found.value else None)


def _is_storable(text: str) -> bool:
    """Whether a database could hold this text at all; clients may send anything."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


@contextmanager
def _only_unavailable() -> Iterator[None]:
    """Nodes know one error only: to them a registry that cannot be used is one that is not there."""
    try:
        yield
    except RegistryError as error:
        raise RegistryUnavailable(f"{error.message}; {error.hint}") from None
