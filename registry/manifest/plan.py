"""From what the registry holds and a manifest to what the registry shall hold.  No I/O, no clock.

Source of every rule: `registry.domain` and the `resolve_*` functions of `registry.operations`, which single changes
go through as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from registry.contract import Secret, TenantState
from registry.domain.models import KEEP, Keep, LoginChange, LoginRecord, Server, Tenant
from registry.domain.names import check_slug
from registry.domain.servers import check_placement
from registry.domain.servers import check_removal as check_server_removal
from registry.domain.states import resting_state
from registry.domain.tenants import check_removal as check_tenant_removal
from registry.errors import Conflict, NotFound
from registry.manifest.differences import Action, Difference, Record, compare
from registry.manifest.parse import LoginEntry, Manifest, ServerEntry, TenantEntry
from registry.manifest.tables import ManifestError, SecretSpec, Table, blamed, wanted_secret
from registry.operations.contents import Contents, Stored
from registry.operations.logins import find_verifier, resolve_login
from registry.operations.servers import SECRETS, Outdated, resolve_server
from registry.operations.tenants import resolve_tenant
from registry.secrets import Vault


@dataclass(frozen=True, slots=True)
class NewIds:
    """Ids for the objects that a manifest adds."""

    servers: Iterator[int]
    tenants: Iterator[int]
    logins: Iterator[int]


@dataclass(frozen=True, slots=True)
class Plan:
    """The registry as it shall be, and how that differs from what it is."""

    after: Contents
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class PasswordJob:
    """A login whose verifier takes the work of a password hash; `key` names the result."""

    key: tuple[tuple[str, str], str]
    table: Table
    before: LoginRecord
    change: LoginChange

    def run(self, random: Callable[[int], bytes]) -> str:
        """Return the verifier; raises ManifestError.  Takes some 1 ms."""
        with blamed(self.table):
            return find_verifier(self.before, self.change, random)


def count_new(contents: Contents, manifest: Manifest) -> tuple[int, int, int]:
    """How many servers, tenants and logins the manifest adds."""
    return (
        sum(entry.name not in contents.servers for entry in manifest.servers),
        sum(entry.slug not in contents.tenants for entry in manifest.tenants),
        sum(entry.key not in contents.logins for entry in manifest.logins),
    )


def password_jobs(contents: Contents, manifest: Manifest, *, rehearsal: bool) -> list[PasswordJob]:
    """The logins of the manifest that take a password hash, to be made or to be compared with.

    One whose password is missing is left out; the planner refuses it in its turn.
    """
    jobs = []
    for entry in manifest.logins:
        stored = contents.logins.get(entry.key)
        try:
            change = _login_change(entry, stored, rehearsal=rehearsal)
        except ManifestError:
            continue
        if change.password is not KEEP or (stored is None and change.verifier is KEEP):
            before = _new_login(0, entry, None) if stored is None else stored.record
            jobs.append(PasswordJob((entry.key, before.verifier), entry.table, before, change))
    return jobs


class Planner:
    """Makes one plan.

    `verifiers` has a result for each of the `password_jobs`.  A rehearsal goes on where the value of a secret is
    missing.
    """

    def __init__(
        self,
        contents: Contents,
        manifest: Manifest,
        *,
        vault: Vault,
        verifiers: Mapping[tuple[tuple[str, str], str], str],
        ids: NewIds,
        random: Callable[[int], bytes],
        rehearsal: bool,
    ) -> None:
        self._manifest = manifest
        self._vault = vault
        self._verifiers = verifiers
        self._ids = ids
        self._random = random
        self._rehearsal = rehearsal
        self._after = contents.copy()
        self._names = {
            name: one.record.slug
            for one in contents.tenants.values()
            for name in (one.record.slug, *one.record.aliases)
        }
        # A server that the same file brings with its tenants, as an export does, has them already.
        self._drained = {name for name, one in contents.servers.items() if one.record.draining}
        self._differences: list[Difference] = []

    def plan(self, *, prune: bool) -> Plan:
        """Bring everything in line; `prune` removes what the manifest does not name.

        Raises ManifestError with file and line, and RegistryError for what cannot be removed.
        """
        if prune:
            self._prune_logins_and_tenants()
        for server in self._manifest.servers:
            with blamed(server.table):
                self._put_server(server)
        for tenant in self._manifest.tenants:
            self._free_aliases(tenant)
        for tenant in self._manifest.tenants:
            with blamed(tenant.table):
                self._put_tenant(tenant)
        for login in self._manifest.logins:
            with blamed(login.table):
                self._put_login(login)
        if prune:
            self._prune_servers()
        return Plan(self._after, tuple(self._differences))

    # Servers.

    def _put_server(self, entry: ServerEntry) -> None:
        stored = self._after.servers.get(entry.name)
        before = Server(next(self._ids.servers), entry.name, ()) if stored is None else stored.record
        present: Mapping[str, bytes | None] = dict.fromkeys(SECRETS) if stored is None else stored.sealed
        secrets: dict[str, Any] = {
            column: self._secret(getattr(entry, column), entry.table, present=present[column] is not None)
            for column in SECRETS
        }
        change = replace(entry.change, **secrets)
        resolved = resolve_server(self._vault, before, present, change, is_new=stored is None)
        self._after.servers[entry.name] = Stored(resolved.server, resolved.sealed.columns)
        self._note(stored, resolved.server, resolved.sealed.replaced)
        self._outdate(resolved.server, resolved.outdated)

    def _outdate(self, server: Server, outdated: Outdated) -> None:
        """Begin a new generation of the tenants there, or of those that use the server's default role."""
        if outdated is Outdated.NOBODY:
            return
        for slug, stored in self._after.tenants.items():
            tenant = stored.record
            concerned = outdated is Outdated.EVERYBODY or tenant.role_user is None
            if tenant.server_id == server.server_id and concerned:
                self._after.tenants[slug] = replace(stored, record=replace(tenant, generation=tenant.generation + 1))

    def _prune_servers(self) -> None:
        wanted = {entry.name for entry in self._manifest.servers}
        for name, stored in list(self._after.servers.items()):
            if name not in wanted:
                server = stored.record
                check_server_removal(
                    server, sum(one.record.server_id == server.server_id for one in self._after.tenants.values())
                )
                del self._after.servers[name]
                self._remove(server)

    # Tenants.

    def _free_aliases(self, entry: TenantEntry) -> None:
        """Take away what aliases shall go, before others that shall have them come."""
        stored = self._after.tenants.get(entry.slug)
        if stored is not None and not isinstance(entry.change.aliases, Keep):
            for alias in set(stored.record.aliases).difference(entry.change.aliases):
                del self._names[alias]

    def _put_tenant(self, entry: TenantEntry) -> None:
        stored = self._after.tenants.get(entry.slug)
        if stored is None:
            self._check_is_free(entry.slug)
            before = Tenant(next(self._ids.tenants), check_slug(entry.slug), TenantState.PENDING)
        else:
            before = stored.record
        present: Mapping[str, bytes | None] = {"role_password": None} if stored is None else stored.sealed
        password = self._secret(entry.role_password, entry.table, present=before.has_role_password)
        change = replace(entry.change, role_password=password)
        if entry.suspended:
            change = replace(change, state=TenantState.SUSPENDED)
        elif entry.suspended is False and before.state is TenantState.SUSPENDED:
            has_place = change.database_name is not None or change.shared is True
            change = replace(change, state=resting_state(has_place=has_place))
        server_id = before.server_id
        if not isinstance(change.server, Keep):
            server_id = None if change.server is None else self._place(before, change.server).server_id
        after, sealed = resolve_tenant(self._vault, before, present, change, server_id=server_id, is_new=stored is None)
        self._rename(after)
        self._after.tenants[entry.slug] = Stored(after, sealed.columns)
        self._note(stored, after, sealed.replaced)

    def _place(self, tenant: Tenant, name: str) -> Server:
        stored = self._after.servers.get(name)
        if stored is None:
            raise NotFound(f"there is no server {name!r}", "`pgtenant server list` shows those there are")
        if name in self._drained and tenant.server != name:
            check_placement(stored.record)
        return stored.record

    def _check_is_free(self, slug: str) -> None:
        owner = self._names.get(slug)
        if owner is not None:
            raise Conflict(
                f"tenant {owner!r} has the alias {slug!r} already", "choose another slug, or change that tenant"
            )

    def _rename(self, tenant: Tenant) -> None:
        for alias in tenant.aliases:
            owner = self._names.get(alias, tenant.slug)
            if owner != tenant.slug:
                raise Conflict(f"the name {alias!r} is that of tenant {owner!r}", "choose another alias")
        self._names.update(dict.fromkeys((tenant.slug, *tenant.aliases), tenant.slug))

    # Logins.

    def _put_login(self, entry: LoginEntry) -> None:
        owner = None if entry.tenant is None else self._owner(entry, entry.tenant)
        stored = self._after.logins.get(entry.key)
        before = _new_login(next(self._ids.logins), entry, owner) if stored is None else stored.record
        present: Mapping[str, bytes | None] = {"role_password": None} if stored is None else stored.sealed
        change = _login_change(entry, stored, rehearsal=self._rehearsal)
        verifier = self._verifiers.get((entry.key, before.verifier))
        if verifier is None:
            verifier = find_verifier(before, change, self._random)
        resolved = resolve_login(self._vault, before, present, change, verifier=verifier, owner=owner)
        self._after.logins[entry.key] = Stored(resolved.login, resolved.sealed.columns, resolved.md5)
        self._note(stored, resolved.login, resolved.sealed.replaced)

    def _owner(self, entry: LoginEntry, name: str) -> Tenant:
        slug = self._names.get(name)
        if slug is None:
            raise NotFound(f"there is no tenant {name!r}", "`pgtenant tenant list` shows those there are")
        if slug != name:
            # By an alias the same login could stand in the file twice.
            raise entry.table.error("tenant", f"{name!r} is an alias of tenant {slug!r}", "name the tenant by its slug")
        return self._after.tenants[slug].record

    def _prune_logins_and_tenants(self) -> None:
        wanted_logins = {entry.key for entry in self._manifest.logins}
        for key, login in list(self._after.logins.items()):
            if key not in wanted_logins:
                del self._after.logins[key]
                self._remove(login.record)
        wanted = {entry.slug for entry in self._manifest.tenants}
        for slug, stored in list(self._after.tenants.items()):
            if slug not in wanted:
                check_tenant_removal(stored.record)
                del self._after.tenants[slug]
                for name in (slug, *stored.record.aliases):
                    del self._names[name]
                self._remove(stored.record)
        for key, login in list(self._after.logins.items()):
            # A login that the manifest keeps goes with its tenant; putting it finds that there is none.
            if login.record.tenant is not None and login.record.tenant not in self._after.tenants:
                del self._after.logins[key]

    # Both.

    def _secret(self, spec: SecretSpec, table: Table, *, present: bool) -> Secret | Keep | None:
        return wanted_secret(spec, table, present=present, rehearsal=self._rehearsal)

    def _note(
        self,
        stored: Stored[Server] | Stored[Tenant] | Stored[LoginRecord] | None,
        after: Record,
        replaced: tuple[str, ...],
    ) -> None:
        before = None if stored is None else stored.record
        found = compare(Action.ADD if before is None else Action.CHANGE, after, before, replaced)
        if found is not None:
            self._differences.append(found)

    def _remove(self, record: Record) -> None:
        found = compare(Action.REMOVE, record)
        assert found is not None, "a removal is a difference"
        self._differences.append(found)


def _login_change(entry: LoginEntry, stored: Stored[LoginRecord] | None, *, rehearsal: bool) -> LoginChange:
    has_one = stored is not None or entry.change.verifier is not KEEP
    password = wanted_secret(entry.password, entry.table, present=has_one, rehearsal=rehearsal)
    has_role_password = stored is not None and stored.record.has_role_password
    role_password = wanted_secret(entry.role_password, entry.table, present=has_role_password, rehearsal=rehearsal)
    return replace(entry.change, password=KEEP if password is None else password, role_password=role_password)


def _new_login(login_id: int, entry: LoginEntry, owner: Tenant | None) -> LoginRecord:
    return LoginRecord(
        login_id=login_id,
        user=entry.user,
        tenant_id=None if owner is None else owner.tenant_id,
        tenant=entry.tenant,
        verifier="",
    )
