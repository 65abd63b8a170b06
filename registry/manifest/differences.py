"""What a manifest makes of the registry, in words for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from registry.contract import Address, Limits
from registry.domain.models import LoginRecord, Server, Tenant
from registry.domain.names import format_address

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


def compare(
    action: Action, after: Record, before: Record | None = None, replaced: Iterable[str] = ()
) -> Difference | None:
    """How two records of one object differ, None where they do not; `replaced`: the columns of new secrets."""
    changes = [] if action is Action.REMOVE else list(_fields(before, after))
    changes += [_secret_change(column, is_new=before is None) for column in replaced]
    if isinstance(after, LoginRecord) and isinstance(before, LoginRecord) and before.verifier != after.verifier:
        changes.append(FieldChange("password", SECRET, NEW_SECRET))
    if action is Action.CHANGE and not changes:
        return None
    kind = {Server: "server", Tenant: "tenant", LoginRecord: "login"}[type(after)]
    return Difference(action, kind, label(after), tuple(changes))


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
