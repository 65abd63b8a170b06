"""Rows of the registry made into what nodes know: routes and logins, their secrets opened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any, Final, Generic, TypeAlias, TypeVar

import sqlalchemy as sa

from registry.contract import Credentials, Login, Route, Secret, ServerInfo
from registry.errors import SecretError
from registry.operations.logins import md5_context
from registry.operations.servers import SECRETS, auth_query_of
from registry.secrets import Vault
from registry.store.rows import login_of, secret_context, server_info, server_of, tenant_of
from registry.store.tables import login_md5, logins, servers, tenant_names, tenants

T = TypeVar("T")

log = logging.getLogger(__name__)

Rows: TypeAlias = list[sa.Row[Any]]
"""What is known of one tenant or login: a row for each of its names or hashes."""


MAX_TOLD: Final = 10_000
"""Secrets that cannot be opened of which it is remembered that the log has told of them."""


class EvenWork(Generic[T]):
    """Decodes rows, and where there are none does as much work on those of last time: a clock shall not tell which."""

    def __init__(self, decode: Callable[[Rows], T], pretend: Callable[[Rows], T]) -> None:
        self._decode = decode
        self._pretend = pretend
        self._last: Rows = []

    def __call__(self, found: Sequence[Rows]) -> tuple[T, ...]:
        if found:
            self._last = found[0]
        elif self._last:
            self._pretend(self._last)
        return tuple(self._decode(rows) for rows in found)


class Complaints:
    """Logs secrets that cannot be opened, each once: strangers who name its tenant could else fill the log with it."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, error: SecretError) -> None:
        if error.message in self._told:
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told.add(error.message)
        log.error("%s (%s)", error.message, error.hint)


class Decoder:
    """Makes routes and logins; `tell` is told of secrets that cannot be opened; without it the log is."""

    def __init__(self, vault: Vault, tell: Callable[[SecretError], None] | None = None) -> None:
        self._vault = vault
        self._tell = tell or Complaints()

    def route(self, rows: Rows) -> Route:
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
            shared=tenant.shared,
        )

    def _server(self, part: _Part) -> ServerInfo:
        record = server_of(part)
        key = self._open(part.tls_key, secret_context(servers.name, part.id, "tls_key"))
        return server_info(record, auth_query_of(record, {one: getattr(part, one) for one in SECRETS}, self._open), key)

    def login(self, rows: Rows) -> Login:
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
            self._tell(error)
            return None


class _Part:
    """The columns of one table in a row that joins several."""

    def __init__(self, row: sa.Row[Any], table: sa.Table) -> None:
        self.table = table
        self._mapping = row._mapping

    def __getattr__(self, name: str) -> Any:
        return self._mapping[self.table.c[name]]
