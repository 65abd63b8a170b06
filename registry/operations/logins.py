"""Logins: find, put, remove."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import AuthMethod, ChangeKind, Secret
from registry.domain.logins import change_login
from registry.domain.models import KEEP, Keep, LoginChange, LoginRecord, Tenant
from registry.errors import Conflict, Invalid, NotFound
from registry.operations.tenants import get_tenant
from registry.secrets import Vault
from registry.store.rows import login_of, login_values, secret_context
from registry.store.sealing import Sealed, reseal_row
from registry.store.tables import login_md5, logins, tenants
from registry.store.transaction import Transaction
from registry.verifiers import SALT_SIZE, build_verifier, check_password, check_verifier, fits, md5_hash

TABLE: Final = "logins"
CERT_ONLY: Final = frozenset({AuthMethod.CERT})
KEY_SIZE: Final = 32


async def all_logins(
    connection: AsyncConnection, *, tenant: str | None = None, all_tenants: bool = False
) -> list[LoginRecord]:
    """The logins by tenant and user, those for all tenants first; `all_tenants`: these only.  Raises NotFound."""
    condition: sa.ColumnElement[bool] = sa.true()
    if tenant is not None:
        condition = logins.c.tenant_id == (await get_tenant(connection, tenant)).tenant_id
    elif all_tenants:
        condition = logins.c.tenant_id.is_(None)
    return await _load(connection, condition)


async def find_login(connection: AsyncConnection, user: str, tenant: str | None) -> LoginRecord | None:
    """The login of this name of this tenant, or the one for all tenants; raises NotFound for an unknown tenant."""
    owner = None if tenant is None else await get_tenant(connection, tenant)
    found = await _load(connection, _is(user, owner))
    return found[0] if found else None


async def get_login(connection: AsyncConnection, user: str, tenant: str | None) -> LoginRecord:
    """The same; raises NotFound where there is none."""
    found = await find_login(connection, user, tenant)
    if found is None:
        raise NotFound(f"there is no login {_label(user, tenant)}", "`pgtenant login list` shows those there are")
    return found


async def add_login(tx: Transaction, user: str, tenant: str | None, change: LoginChange) -> LoginRecord:
    """Add a login with a password or a verifier; raises Conflict, Invalid, NotFound."""
    if await find_login(tx.connection, user, tenant) is not None:
        raise Conflict(
            f"there is a login {_label(user, tenant)} already", "`pgtenant login rotate` gives it a new password"
        )
    owner = None if tenant is None else await get_tenant(tx.connection, tenant)
    new = LoginRecord(
        login_id=0,
        user=user,
        tenant_id=None if owner is None else owner.tenant_id,
        tenant=None if owner is None else owner.slug,
        verifier="",
    )
    verifier = find_verifier(new, change, tx.random)
    values = login_values(change_login(new, change, verifier=verifier, tenant=owner).login)
    inserted = sa.insert(logins).values(values).returning(logins.c.id)
    new = replace(new, login_id=(await tx.connection.execute(inserted)).scalar_one())
    return await _write(tx, new, owner, change, verifier)


async def set_login(tx: Transaction, user: str, tenant: str | None, change: LoginChange) -> LoginRecord:
    """Change a login; the password that it has already makes no new version.  Raises NotFound, Invalid."""
    before = await get_login(tx.connection, user, tenant)
    owner = None if tenant is None else await get_tenant(tx.connection, tenant)
    return await _write(tx, before, owner, change, find_verifier(before, change, tx.random))


async def remove_login(tx: Transaction, user: str, tenant: str | None) -> LoginRecord:
    """Remove a login; clients that are connected with it stay.  Raises NotFound."""
    login = await get_login(tx.connection, user, tenant)
    await tx.connection.execute(sa.delete(logins).where(logins.c.id == login.login_id))
    tx.changed(ChangeKind.LOGIN, login.tenant_id)
    return login


def find_verifier(before: LoginRecord, change: LoginChange, random: Callable[[int], bytes]) -> str:
    """Return the verifier that a login has after a change; raises Invalid.  A password takes some 1 ms."""
    password = None if change.password is KEEP else check_password(change.password.reveal())
    if change.verifier is not KEEP:
        verifier = check_verifier(change.verifier)
        if password is not None and not fits(password, verifier):
            raise Invalid("verifier", "the verifier is not that of the password", "give one of them, or the right one")
        return verifier
    if password is None:
        if not before.verifier and change.methods == CERT_ONLY:
            # Nobody knows this password: without its certificate, the login looks like any whose password is wrong.
            return build_verifier(random(KEY_SIZE).hex(), random(SALT_SIZE))
        if not before.verifier:
            raise Invalid("password", f"login {before.user!r} has no password", "give a password or a verifier")
        return before.verifier
    if before.verifier and fits(password, before.verifier):
        return before.verifier
    return build_verifier(password, random(SALT_SIZE))


@dataclass(frozen=True, slots=True)
class ResolvedLogin:
    """A login after a change; `md5`: its sealed hashes by spelling, None where they stay as they are."""

    login: LoginRecord
    sealed: Sealed
    md5: Mapping[str, bytes | None] | None


def resolve_login(
    vault: Vault,
    before: LoginRecord,
    present: Mapping[str, bytes | None],
    change: LoginChange,
    *,
    verifier: str,
    owner: Tenant | None,
) -> ResolvedLogin:
    """Apply a change to a login whose sealed secrets are `present`; raises Invalid, SecretError.

    `verifier` is what `find_verifier` has found.
    """
    outcome = change_login(before, change, verifier=verifier, tenant=owner)
    sealed = reseal_row(vault, TABLE, before.login_id, {"role_password": change.role_password}, present)
    md5: Mapping[str, bytes | None] | None = None
    if outcome.md5_stale:
        md5 = _md5_hashes(vault, outcome.login, change.password)
    elif before.md5_spellings and not outcome.login.md5_spellings:
        md5 = {}
    return ResolvedLogin(outcome.login, sealed, md5)


def _md5_hashes(vault: Vault, login: LoginRecord, password: Secret | Keep) -> dict[str, bytes | None]:
    if isinstance(password, Keep):
        raise Invalid(
            "methods",
            f"md5 for login {login.user!r} needs its password, once",
            "give the password, or leave md5 out of the methods",
        )
    return {
        spelling: vault.seal(Secret(md5_hash(password.reveal(), spelling)), md5_context(login.login_id, spelling))
        for spelling in login.md5_spellings
    }


async def _write(
    tx: Transaction, before: LoginRecord, owner: Tenant | None, change: LoginChange, verifier: str
) -> LoginRecord:
    stored = sa.select(logins.c.role_password).where(logins.c.id == before.login_id)
    present = {"role_password": (await tx.connection.execute(stored)).scalar_one()}
    resolved = resolve_login(tx.vault, before, present, change, verifier=verifier, owner=owner)
    after = resolved.login
    if after == before and resolved.sealed.columns == present and resolved.md5 is None:
        return before
    values = {**login_values(after), **resolved.sealed.columns}
    await tx.connection.execute(sa.update(logins).where(logins.c.id == after.login_id).values(values))
    if resolved.md5 is not None:
        await tx.connection.execute(sa.delete(login_md5).where(login_md5.c.login_id == after.login_id))
        rows = [{"login_id": after.login_id, "spelling": one, "hash": value} for one, value in resolved.md5.items()]
        if rows:
            await tx.connection.execute(sa.insert(login_md5), rows)
    tx.changed(ChangeKind.LOGIN, after.tenant_id)
    return after


def md5_context(login_id: int, spelling: str) -> str:
    """The identity to which a sealed md5 hash is bound."""
    return secret_context("login_md5", login_id, spelling)


def _is(user: str, owner: Tenant | None) -> sa.ColumnElement[bool]:
    mine = logins.c.tenant_id.is_(None) if owner is None else logins.c.tenant_id == owner.tenant_id
    return sa.and_(logins.c.user_name == user, mine)


async def _load(connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> list[LoginRecord]:
    statement = (
        sa.select(logins, tenants.c.slug.label("tenant"), login_md5.c.spelling)
        .outerjoin(tenants, tenants.c.id == logins.c.tenant_id)
        .outerjoin(login_md5, login_md5.c.login_id == logins.c.id)
        .where(condition)
    )
    rows: dict[int, list[Any]] = {}
    for row in await connection.execute(statement):
        rows.setdefault(row.id, []).append(row)
    found = [
        login_of(several[0], several[0].tenant, [row.spelling for row in several if row.spelling is not None])
        for several in rows.values()
    ]
    return sorted(found, key=lambda login: (login.tenant or "", login.user))


def _label(user: str, tenant: str | None) -> str:
    return f"{user!r} for all tenants" if tenant is None else f"{user!r} of tenant {tenant!r}"
