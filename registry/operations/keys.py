"""The registry's own secret, and the change of the encryption key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from registry.operations.logins import md5_context
from registry.secrets import KeyRing, Vault
from registry.store.database import Database
from registry.store.rows import secret_context
from registry.store.tables import login_md5, logins, registry_secrets, servers, tenants
from registry.store.transaction import Transaction, changing

MOCK_SECRET: Final = "mock_secret"
MOCK_SECRET_SIZE: Final = 32
MOCK_CONTEXT: Final = f"registry_secrets/{MOCK_SECRET}"

_STORED: Final = sa.select(registry_secrets.c.value).where(registry_secrets.c.name == MOCK_SECRET)

SEALED_COLUMNS: Final = (
    (servers, "admin_password"),
    (servers, "role_password"),
    (servers, "auth_password"),
    (servers, "tls_key"),
    (tenants, "role_password"),
    (logins, "role_password"),
)


async def mock_secret(database: Database, vault: Vault, *, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """The secret behind the salts of unknown users, made where it is missing; raises SecretError."""
    found = _opened(vault, await database.fetch(_STORED))
    if found is not None:
        return found
    async with changing(database, vault) as tx:
        found = _opened(vault, (await tx.connection.execute(_STORED)).all())
        if found is not None:
            return found
        secret = random(MOCK_SECRET_SIZE)
        sealed = vault.ring.seal(secret, MOCK_CONTEXT)
        await tx.connection.execute(sa.insert(registry_secrets).values(name=MOCK_SECRET, value=sealed))
        return secret


async def check_mock_secret(database: Database, vault: Vault) -> None:
    """Raise SecretError where the key ring does not open that secret; where there is none, none is made."""
    _opened(vault, await database.fetch(_STORED))


async def check_secrets(database: Database, vault: Vault) -> None:
    """Try the key ring on the registry's secrets; raises SecretError, naming the secret, where it does not fit them.

    Of the secrets of each kind that one key has sealed the first is opened; a key that is not on the ring is found
    wherever it was used.
    """
    ring = vault.ring
    for table, column, context in _sealed_columns():
        sealed_with = [sa.func.substr(column, 1, len(one), type_=sa.LargeBinary) == one for one in ring.heads]
        for condition in (*sealed_with, sa.not_(sa.or_(*sealed_with))):
            statement = sa.select(table).where(column.is_not(None), condition).limit(1)
            for row in await database.fetch(statement):
                ring.open(row._mapping[column], context(row))


async def reseal_all(tx: Transaction) -> tuple[int, int]:
    """Seal with the first key what is sealed with another; returns how many were, and how many secrets there are.

    Nothing that nodes see changes, so there is no new version.  Raises SecretError, naming the secret, where one
    cannot be opened.
    """
    ring, done, total = tx.vault.ring, 0, 0
    for table, column in SEALED_COLUMNS:
        sealed = sa.select(table.c.id, table.c[column]).where(table.c[column].is_not(None))
        for row_id, value in (await tx.connection.execute(sealed)).all():
            total += 1
            fresh = _reseal(ring, value, secret_context(table.name, row_id, column))
            if fresh is not None:
                done += 1
                await tx.connection.execute(sa.update(table).where(table.c.id == row_id).values({column: fresh}))
    for row in (await tx.connection.execute(sa.select(login_md5))).all():
        total += 1
        fresh = _reseal(ring, row.hash, md5_context(row.login_id, row.spelling))
        if fresh is not None:
            done += 1
            this = sa.and_(login_md5.c.login_id == row.login_id, login_md5.c.spelling == row.spelling)
            await tx.connection.execute(sa.update(login_md5).where(this).values(hash=fresh))
    for row in (await tx.connection.execute(sa.select(registry_secrets))).all():
        total += 1
        fresh = _reseal(ring, row.value, f"registry_secrets/{row.name}")
        if fresh is not None:
            done += 1
            this = registry_secrets.c.name == row.name
            await tx.connection.execute(sa.update(registry_secrets).where(this).values(value=fresh))
    return done, total


def _sealed_columns() -> Iterator[tuple[sa.Table, sa.Column[Any], Callable[[sa.Row[Any]], str]]]:
    """Where sealed secrets are, and how the context of one is made from its row."""
    for table, name in SEALED_COLUMNS:
        yield table, table.c[name], partial(_context_in, table.name, name)
    yield login_md5, login_md5.c.hash, lambda row: md5_context(row.login_id, row.spelling)
    yield registry_secrets, registry_secrets.c.value, lambda row: f"registry_secrets/{row.name}"


def _context_in(table: str, column: str, row: sa.Row[Any]) -> str:
    return secret_context(table, row.id, column)


def _reseal(ring: KeyRing, sealed: bytes, context: str) -> bytes | None:
    opened = ring.open(sealed, context)
    return None if ring.is_current(sealed) else ring.seal(opened, context)


def _opened(vault: Vault, rows: Sequence[sa.Row[tuple[bytes]]]) -> bytes | None:
    return vault.ring.open(rows[0].value, MOCK_CONTEXT) if rows else None
