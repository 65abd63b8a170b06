"""The registry as a whole: read it, and write what makes one state of it another.

Both take a few statements for any number of rows.  What is between them (hashing, sealing, every rule) happens while
nothing is locked; the version tells whether somebody else has changed the registry meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import ChangeKind
from registry.domain.models import LoginRecord, Server, Tenant
from registry.operations.servers import SECRETS
from registry.store.rows import login_of, login_values, server_of, server_values, tenant_of, tenant_values
from registry.store.tables import clock, login_md5, logins, servers, tenant_names, tenants
from registry.store.transaction import Transaction

R = TypeVar("R", Server, Tenant, LoginRecord)
Key = str | tuple[str, str]

_NO_HASHES: Final[Mapping[str, bytes | None]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Stored(Generic[R]):
    """One object with its sealed secrets by column; `new_md5`: sealed hashes that replace those of a login."""

    record: R
    sealed: Mapping[str, bytes | None]
    new_md5: Mapping[str, bytes | None] | None = field(default=None, compare=False)


@dataclass(slots=True)
class Contents:
    """All servers by name, tenants by slug, and logins by the tenant's slug (empty: all tenants) and user."""

    version: int
    servers: dict[str, Stored[Server]]
    tenants: dict[str, Stored[Tenant]]
    logins: dict[tuple[str, str], Stored[LoginRecord]]

    def copy(self) -> Contents:
        """The same objects, in dictionaries of its own."""
        return Contents(self.version, dict(self.servers), dict(self.tenants), dict(self.logins))


def nothing() -> Contents:
    """The contents of a registry that is not there yet."""
    return Contents(0, {}, {}, {})


async def read_version(connection: AsyncConnection) -> int:
    """The registry's version."""
    return int((await connection.execute(sa.select(clock.c.v))).scalar_one())


async def read_contents(connection: AsyncConnection) -> Contents:
    """Read all; what was read belongs together if the version is still the same afterwards."""
    version = await read_version(connection)
    found_servers = [
        Stored(server_of(row), {column: row._mapping[column] for column in SECRETS})
        for row in await connection.execute(sa.select(servers).order_by(servers.c.name))
    ]
    names = {one.record.server_id: one.record.name for one in found_servers}
    aliases = await _grouped(connection, tenant_names.c.tenant_id, tenant_names.c.name, ~tenant_names.c.is_slug)
    found_tenants = [
        Stored(
            tenant_of(row, None if row.server_id is None else names[row.server_id], aliases.get(row.id, ())),
            {"role_password": row.role_password},
        )
        for row in await connection.execute(sa.select(tenants).order_by(tenants.c.slug))
    ]
    slugs = {one.record.tenant_id: one.record.slug for one in found_tenants}
    spellings = await _grouped(connection, login_md5.c.login_id, login_md5.c.spelling, sa.true())
    found_logins = [
        Stored(
            login_of(row, None if row.tenant_id is None else slugs[row.tenant_id], spellings.get(row.id, ())),
            {"role_password": row.role_password},
        )
        for row in await connection.execute(sa.select(logins))
    ]
    found_logins.sort(key=lambda one: (one.record.tenant or "", one.record.user))
    return Contents(
        version,
        {one.record.name: one for one in found_servers},
        {one.record.slug: one for one in found_tenants},
        {(one.record.tenant or "", one.record.user): one for one in found_logins},
    )


async def _grouped(
    connection: AsyncConnection, key: sa.Column[int], value: sa.Column[str], condition: sa.ColumnElement[bool]
) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for one, text in await connection.execute(sa.select(key, value).where(condition)):
        groups.setdefault(one, []).append(text)
    return groups


@dataclass(slots=True)
class Writes:
    """Statements with the rows that each is for, in their order, and what the change log shall say."""

    statements: list[tuple[sa.Executable, list[dict[str, Any]]]]
    changes: list[tuple[ChangeKind, int | None]]

    async def run(self, tx: Transaction) -> None:
        """Write all rows."""
        for statement, rows in self.statements:
            await tx.connection.execute(statement, rows)
        for kind, key in self.changes:
            tx.changed(kind, key)


def difference(before: Contents, after: Contents) -> Writes:
    """What has to be written so that the registry holds `after` instead of `before`.

    What goes comes first, so that its names are free for what comes; servers go last, as tenants refer to them.
    """
    of_servers = _Rows(before.servers, after.servers, server_values)
    of_tenants = _Rows(before.tenants, after.tenants, tenant_values)
    of_logins = _Rows(before.logins, after.logins, login_values)
    renamed = [now.record for old, now in of_tenants.changed if old.record.aliases != now.record.aliases]
    added = [one.record for one in of_tenants.new]
    hashed = [one for one in (*of_logins.new, *(now for _, now in of_logins.changed)) if one.new_md5 is not None]
    statements: list[tuple[sa.Executable, list[dict[str, Any]]]] = [
        (_delete(logins.c.id), of_logins.deleted()),
        (_delete(tenants.c.id), of_tenants.deleted()),
        (_update(servers), of_servers.updated()),
        (sa.insert(servers), of_servers.inserted()),
        (
            sa.delete(tenant_names).where(tenant_names.c.tenant_id == sa.bindparam("row"), ~tenant_names.c.is_slug),
            [{"row": one.tenant_id} for one in renamed],
        ),
        (_update(tenants), of_tenants.updated()),
        (sa.insert(tenants), of_tenants.inserted()),
        (sa.insert(tenant_names), [*_slugs(added), *_aliases(added), *_aliases(renamed)]),
        (_update(logins), of_logins.updated()),
        (sa.insert(logins), of_logins.inserted()),
        (_delete(login_md5.c.login_id), [{"row": _id(one)} for one in hashed]),
        (sa.insert(login_md5), [row for one in hashed for row in _hashes(one)]),
        (_delete(servers.c.id), of_servers.deleted()),
    ]
    changes = [
        *((ChangeKind.SERVER, _id(one)) for one in of_servers.touched()),
        *((ChangeKind.TENANT, _id(one)) for one in of_tenants.touched()),
        *((ChangeKind.LOGIN, one.record.tenant_id) for one in of_logins.touched()),
    ]
    return Writes([(statement, rows) for statement, rows in statements if rows], changes)


class _Rows(Generic[R]):
    """Of one table: what is gone, what is new, and what differs (before, after)."""

    def __init__(
        self,
        before: Mapping[Any, Stored[R]],
        after: Mapping[Any, Stored[R]],
        values: Callable[[R], dict[str, Any]],
    ) -> None:
        self.gone: list[Stored[R]] = [one for key, one in before.items() if key not in after]
        self.new: list[Stored[R]] = [one for key, one in after.items() if key not in before]
        self.changed: list[tuple[Stored[R], Stored[R]]] = [
            (before[key], one)
            for key, one in after.items()
            if key in before and (one != before[key] or one.new_md5 is not None)
        ]
        self._values: Callable[[R], dict[str, Any]] = values

    def deleted(self) -> list[dict[str, Any]]:
        return [{"row": _id(one)} for one in self.gone]

    def updated(self) -> list[dict[str, Any]]:
        return [{"row": _id(one), **self._values(one.record), **one.sealed} for _, one in self.changed]

    def inserted(self) -> list[dict[str, Any]]:
        return [{"id": _id(one), **self._values(one.record), **one.sealed} for one in self.new]

    def touched(self) -> Iterator[Stored[R]]:
        yield from self.gone
        yield from (now for _, now in self.changed)
        yield from self.new


def _id(stored: Stored[Any]) -> int:
    record = stored.record
    if isinstance(record, Server):
        return record.server_id
    return record.tenant_id if isinstance(record, Tenant) else int(record.login_id)


def _delete(column: sa.Column[int]) -> sa.Delete:
    return sa.delete(column.table).where(column == sa.bindparam("row"))


def _update(table: sa.Table) -> sa.Update:
    return sa.update(table).where(table.c.id == sa.bindparam("row"))


def _slugs(several: Iterable[Tenant]) -> Iterator[dict[str, Any]]:
    for one in several:
        yield {"name": one.slug, "tenant_id": one.tenant_id, "is_slug": True}


def _aliases(several: Iterable[Tenant]) -> Iterator[dict[str, Any]]:
    for one in several:
        for alias in one.aliases:
            yield {"name": alias, "tenant_id": one.tenant_id, "is_slug": False}


def _hashes(stored: Stored[LoginRecord]) -> Iterator[dict[str, Any]]:
    for spelling, value in (stored.new_md5 or _NO_HASHES).items():
        yield {"login_id": stored.record.login_id, "spelling": spelling, "hash": value}
