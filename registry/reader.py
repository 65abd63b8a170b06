"""What nodes ask of the registry: each answer with the version in whose snapshot it was read.

A look-up is one statement, which sees one snapshot on SQLite and on PostgreSQL alike; the clock's only row stands
first in it and is joined to what was found, or to nothing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

import sqlalchemy as sa

from registry.contract import (
    Credentials,
    Login,
    Lookup,
    RegistryUnavailable,
    Route,
    RouteChange,
    Secret,
    ServerInfo,
)
from registry.errors import RegistryError, SecretError
from registry.feed import follow
from registry.operations import keys
from registry.operations.logins import md5_context
from registry.operations.servers import auth_query_of
from registry.secrets import Vault
from registry.store.database import Database
from registry.store.rows import login_of, secret_context, server_info, server_of, tenant_of
from registry.store.tables import clock, login_md5, logins, servers, tenant_names, tenants

log = logging.getLogger(__name__)

AT_MOST = 2
"""How many rows are enough to see that a name is ambiguous."""


class StoredReader:
    """Implements `registry.contract.RegistryReader`; `interval` is the feed's, in seconds."""

    def __init__(self, database: Database, vault: Vault, *, interval: float) -> None:
        self._database = database
        self._vault = vault
        self._interval = interval
        self._mock_secret: bytes | None = None

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
            version: int = (await self._database.fetch(sa.select(clock.c.v)))[0].v
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
        found = _grouped(rows, tenants)
        return Lookup(rows[0].v, tuple(self._route(several) for several in found))

    def _route(self, rows: list[sa.Row[Any]]) -> Route:
        server_row = _Part(rows[0], servers)
        aliases = [row._mapping[tenant_names.c.name] for row in rows if row._mapping[tenant_names.c.is_slug] is False]
        tenant = tenant_of(_Part(rows[0], tenants), server_row.name, aliases)
        server = None if server_row.id is None else self._server(server_row)
        return Route(
            tenant_id=tenant.tenant_id,
            slug=tenant.slug,
            state=tenant.state,
            server=server,
            database_name=tenant.database_name,
            role=self._role(_Part(rows[0], tenants)) or (self._role(server_row) if server is not None else None),
            generation=tenant.generation,
            aliases=tenant.aliases,
            pool_mode=tenant.pool_mode,
            reset=tenant.reset,
            session_state=tenant.session_state,
            limits=tenant.limits,
            verifiers=tenant.verifiers,
            networks=tuple(ip_network(network) for network in tenant.networks),
        )

    def _server(self, part: _Part) -> ServerInfo:
        record = server_of(part)
        key = self._open(part.tls_key, secret_context(servers.name, part.id, "tls_key"))
        return server_info(record, auth_query_of(part, self._open), key)

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
        return Lookup(rows[0].v, tuple(self._login(several) for several in _grouped(rows, logins)))

    def _login(self, rows: list[sa.Row[Any]]) -> Login:
        part = _Part(rows[0], logins)
        record = login_of(part, None, ())
        hashes = []
        for row in rows:
            spelling = row._mapping[login_md5.c.spelling]
            if spelling is not None:
                context = md5_context(record.login_id, spelling)
                stored = self._open(row._mapping[login_md5.c.hash], context)
                if stored is not None:
                    hashes.append((spelling, stored))
        return Login(
            login_id=record.login_id,
            user=record.user,
            tenant_id=record.tenant_id,
            verifier=record.verifier,
            methods=record.methods,
            certificate=record.certificate,
            md5=tuple(sorted(hashes, key=lambda pair: pair[0])),
            role=self._role(part),
            replication=record.replication,
        )

    def _role(self, part: _Part) -> Credentials | None:
        if part.role_user is None:
            return None
        context = secret_context(part.table.name, part.id, "role_password")
        return Credentials(part.role_user, self._open(part.role_password, context))

    def _open(self, sealed: bytes | None, context: str) -> Secret | None:
        """Open a secret; one that cannot be opened counts as missing, which harms nobody but its tenant."""
        try:
            return self._vault.open(sealed, context)
        except SecretError as error:
            log.error("%s (%s)", error.message, error.hint)
            return None


class _Part:
    """The columns of one table in a row that joins several."""

    def __init__(self, row: sa.Row[Any], table: sa.Table) -> None:
        self.table = table
        self._mapping = row._mapping

    def __getattr__(self, name: str) -> Any:
        return self._mapping[self.table.c[name]]


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
