"""Making the registry what a manifest says: one transaction, and nothing where nothing differs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final

from registry.contract import Address, Limits, Secret, TenantState
from registry.domain.models import KEEP, Keep, LoginRecord, Server, Tenant, TenantChange
from registry.domain.names import format_address
from registry.domain.servers import Placement, check_placement
from registry.domain.states import resting_state
from registry.domain.tenants import change_tenant
from registry.errors import Invalid, RegistryError
from registry.manifest.parse import LoginEntry, Manifest, ServerEntry, TenantEntry
from registry.manifest.tables import ManifestError, SecretSpec, Table, settled
from registry.operations import logins, servers, tenants
from registry.service import RegistryService
from registry.store.transaction import Transaction

Record = Server | Tenant | LoginRecord

_NAMES: Final = {
    "addresses": "hosts",
    "tls_mode": "tls",
    "admin_user": "admin",
    "role_user": "role",
    "auth_user": "auth_role",
    "database_name": "database",
}
SECRET: Final = "(secret)"
NEW_SECRET: Final = "(changed)"

_SILENT: Final = frozenset(
    {
        "server_id",
        "tenant_id",
        "login_id",
        "generation",
        "has_admin_password",
        "has_role_password",
        "has_auth_password",
        "has_tls_key",
        "health",
        "verifier",
    }
)
_IDENTITY: Final = {Server: {"name"}, Tenant: {"slug"}, LoginRecord: {"user", "tenant"}}


class Action(StrEnum):
    """What becomes of an object."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One key before and after; of a secret only that it changes."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What a manifest makes of one object."""

    action: Action
    kind: str
    name: str
    fields: tuple[FieldChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done, or would be; no differences: the registry is as it was, its version too."""

    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


async def apply_manifest(
    service: RegistryService, manifest: Manifest, *, prune: bool = False, dry_run: bool = False
) -> Applied:
    """Bring the registry in line with a manifest; `prune` removes what it does not name.

    A dry run does the same and takes it back.  Raises ManifestError with file and line, and changes nothing then.
    """
    async with service.transaction(commit=not dry_run) as tx:
        run = _Run(tx, manifest, rehearsal=dry_run)
        if prune:
            await run.prune_tenants_and_logins()
        await run.put_servers()
        await run.put_tenants()
        await run.put_logins()
        if prune:
            await run.prune_servers()
    return Applied(tuple(run.differences), tuple(manifest.warnings()))


class _Run:
    def __init__(self, tx: Transaction, manifest: Manifest, *, rehearsal: bool) -> None:
        self._tx = tx
        self._rehearsal = rehearsal
        self._manifest = manifest
        self._slugs: set[str] = set()
        self._drained: set[str] = set()
        self.differences: list[Difference] = []

    async def prune_tenants_and_logins(self) -> None:
        wanted_logins = {entry.key for entry in self._manifest.logins}
        for login in await logins.all_logins(self._tx.connection):
            if (login.tenant or "", login.user) not in wanted_logins:
                await logins.remove_login(self._tx, login.user, login.tenant)
                self._note(Action.REMOVE, login)
        wanted = {entry.slug for entry in self._manifest.tenants}
        for tenant in await tenants.all_tenants(self._tx.connection):
            if tenant.slug not in wanted:
                await tenants.remove_tenant(self._tx, tenant.slug)
                self._note(Action.REMOVE, tenant)

    async def prune_servers(self) -> None:
        wanted = {entry.name for entry in self._manifest.servers}
        for server in await servers.all_servers(self._tx.connection):
            if server.name not in wanted:
                await servers.remove_server(self._tx, server.name)
                self._note(Action.REMOVE, server)

    async def put_servers(self) -> None:
        present = {server.name: server for server in await servers.all_servers(self._tx.connection)}
        # A server that the same file brings with its tenants, as an export does, has them already.
        self._drained = {server.name for server in present.values() if server.draining}
        for entry in self._manifest.servers:
            with _blamed(entry.table):
                await self._put_server(entry, present.get(entry.name))

    async def _put_server(self, entry: ServerEntry, before: Server | None) -> None:
        change = replace(
            entry.change,
            admin_password=self._settled(
                entry.admin_password, entry.table, present=before is not None and before.has_admin_password
            ),
            role_password=self._settled(
                entry.role_password, entry.table, present=before is not None and before.has_role_password
            ),
            auth_password=self._settled(
                entry.auth_password, entry.table, present=before is not None and before.has_auth_password
            ),
            tls_key=self._settled(entry.tls_key, entry.table, present=before is not None and before.has_tls_key),
        )
        if before is None:
            self._note(Action.ADD, await servers.add_server(self._tx, entry.name, change))
        else:
            self._note(Action.CHANGE, await servers.set_server(self._tx, entry.name, change), before)

    async def put_tenants(self) -> None:
        present = {tenant.slug: tenant for tenant in await tenants.all_tenants(self._tx.connection)}
        places = {server.name: server for server in await servers.all_servers(self._tx.connection)}
        await self._free_aliases(present)
        for entry in self._manifest.tenants:
            with _blamed(entry.table):
                await self._put_tenant(entry, present.get(entry.slug), places)

    async def _free_aliases(self, present: dict[str, Tenant]) -> None:
        """Take away what aliases shall go, before others that shall have them come."""
        for entry in self._manifest.tenants:
            before = present.get(entry.slug)
            if before is None or entry.change.aliases is KEEP:
                continue
            kept = tuple(alias for alias in before.aliases if alias in entry.change.aliases)
            if kept != before.aliases:
                with _blamed(entry.table):
                    await tenants.set_tenant(self._tx, entry.slug, TenantChange(aliases=kept))

    async def _put_tenant(self, entry: TenantEntry, before: Tenant | None, places: dict[str, Server]) -> None:
        password = self._settled(
            entry.role_password, entry.table, present=before is not None and before.has_role_password
        )
        change = replace(entry.change, role_password=password)
        if entry.suspended:
            change = replace(change, state=TenantState.SUSPENDED)
        elif entry.suspended is False and before is not None and before.state is TenantState.SUSPENDED:
            change = replace(change, state=resting_state(has_database=change.database_name is not None))
        place = places.get(change.server) if isinstance(change.server, str) else None
        if place is not None and place.name in self._drained and (before is None or before.server != place.name):
            check_placement(place)
        if before is None:
            self._note(Action.ADD, await tenants.add_tenant(self._tx, entry.slug, change, Placement.FORCED))
            return
        # Most tenants of a long file are as they shall be: that is found out without asking the database.
        if password is KEEP or (password is None and not before.has_role_password):
            server_id = None if place is None else place.server_id
            same = change_tenant(before, change, server_id=server_id, password_changed=False) == before
            if same:
                return
        after = await tenants.set_tenant(self._tx, entry.slug, change, Placement.FORCED)
        self._note(Action.CHANGE, after, before)

    async def put_logins(self) -> None:
        self._slugs = {tenant.slug for tenant in await tenants.all_tenants(self._tx.connection)}
        found = await logins.all_logins(self._tx.connection)
        present = {(login.tenant or "", login.user): login for login in found}
        for entry in self._manifest.logins:
            with _blamed(entry.table):
                await self._check_slug(entry)
                await self._put_login(entry, present.get(entry.key))

    async def _check_slug(self, entry: LoginEntry) -> None:
        """By an alias the same login could stand in the file twice."""
        if entry.tenant is not None and entry.tenant not in self._slugs:
            tenant = await tenants.get_tenant(self._tx.connection, entry.tenant)
            raise entry.table.error(
                "tenant", f"{entry.tenant!r} is an alias of tenant {tenant.slug!r}", "name the tenant by its slug"
            )

    async def _put_login(self, entry: LoginEntry, before: LoginRecord | None) -> None:
        has_one = before is not None or entry.change.verifier is not KEEP
        password = self._settled(entry.password, entry.table, present=has_one)
        role_password = self._settled(
            entry.role_password, entry.table, present=before is not None and before.has_role_password
        )
        change = replace(entry.change, password=KEEP if password is None else password, role_password=role_password)
        if before is None:
            self._note(Action.ADD, await logins.add_login(self._tx, entry.user, entry.tenant, change))
        else:
            after = await logins.set_login(self._tx, entry.user, entry.tenant, change)
            self._note(Action.CHANGE, after, before)

    def _settled(self, spec: SecretSpec, table: Table, *, present: bool) -> Secret | Keep | None:
        return settled(spec, table, present=present, rehearsal=self._rehearsal)

    def _note(self, action: Action, after: Record, before: Record | None = None) -> None:
        replaced = self._tx.take_replaced()
        changes = [] if action is Action.REMOVE else list(_fields(before, after))
        changes += [_secret_change(column, is_new=before is None) for column in replaced]
        if isinstance(after, LoginRecord) and isinstance(before, LoginRecord) and before.verifier != after.verifier:
            changes.append(FieldChange("password", SECRET, NEW_SECRET))
        if action is not Action.CHANGE or changes:
            kind = {Server: "server", Tenant: "tenant", LoginRecord: "login"}[type(after)]
            self.differences.append(Difference(action, kind, label(after), tuple(changes)))


def _secret_change(key: str, *, is_new: bool) -> FieldChange:
    return FieldChange(key, "", SECRET) if is_new else FieldChange(key, SECRET, NEW_SECRET)


def label(record: Record) -> str:
    """How a record is called in lists and messages."""
    if isinstance(record, Server):
        return record.name
    if isinstance(record, Tenant):
        return record.slug
    return f"{record.user} ({record.tenant or 'all tenants'})"


def _fields(before: Record | None, after: Record) -> Iterator[FieldChange]:
    hidden = _SILENT | _IDENTITY[type(after)]
    for one in fields(after):
        old, new = None if before is None else getattr(before, one.name), getattr(after, one.name)
        if one.name in hidden or old == new or (before is None and new in (None, (), False)):
            continue
        if isinstance(new, Limits):
            yield from _limits(old, new)
        else:
            yield FieldChange(_NAMES.get(one.name, one.name), "" if before is None else shown(old), shown(new))


def _limits(old: Limits | None, new: Limits) -> Iterator[FieldChange]:
    for one in fields(Limits):
        before, after = getattr(old or Limits(), one.name), getattr(new, one.name)
        if before != after:
            yield FieldChange(one.name, "" if old is None else shown(before), shown(after))


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Address):
        return format_address(value)
    if isinstance(value, tuple | frozenset | list):
        items = [shown(one) for one in value]
        return ", ".join(sorted(items) if isinstance(value, frozenset) else items) or "-"
    if isinstance(value, str) and "\n" in value:
        return f"{len(value.splitlines())} lines"
    return str(value)


@contextmanager
def _blamed(table: Table) -> Iterator[None]:
    """Name the file and line of what the registry refuses."""
    try:
        yield
    except ManifestError:
        raise
    except Invalid as error:
        raise table.error(error.field, error.message, error.hint) from None
    except RegistryError as error:
        raise table.error(None, error.message, error.hint) from None
