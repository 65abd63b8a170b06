"""From TOML to what shall be: servers, tenants and logins, with every rule that needs no registry."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from registry.contract import (
    AuthMethod,
    ChannelBinding,
    Limits,
    PoolMode,
    ProtocolVersion,
    ReplicationAccess,
    ResetPolicy,
    SessionStatePolicy,
    TlsMode,
    TlsNegotiation,
    TlsVersion,
    VerifierSource,
)
from registry.domain.limits import COUNTS, NO_LIMIT, TIMES
from registry.domain.models import KEEP, Keep, LoginChange, ServerChange, TenantChange
from registry.domain.names import DEFAULT_PORT, parse_address
from registry.errors import Invalid
from registry.manifest.tables import ManifestError, SecretSpec, Source, Table

KINDS: Final = ("server", "tenant", "login")


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """A `[[server]]`."""

    table: Table
    name: str
    change: ServerChange
    admin_password: SecretSpec
    role_password: SecretSpec
    auth_password: SecretSpec
    tls_key: SecretSpec


@dataclass(frozen=True, slots=True)
class TenantEntry:
    """A `[[tenant]]`; `suspended` None leaves that as it is."""

    table: Table
    slug: str
    change: TenantChange
    role_password: SecretSpec
    suspended: bool | None


@dataclass(frozen=True, slots=True)
class LoginEntry:
    """A `[[login]]`; `tenant` None: for all tenants."""

    table: Table
    user: str
    tenant: str | None
    change: LoginChange
    password: SecretSpec
    role_password: SecretSpec

    @property
    def key(self) -> tuple[str, str]:
        """What tells logins apart."""
        return self.tenant or "", self.user


@dataclass(frozen=True, slots=True)
class Manifest:
    """What shall be; whatever a file leaves out has its default."""

    servers: Sequence[ServerEntry]
    tenants: Sequence[TenantEntry]
    logins: Sequence[LoginEntry]

    def warnings(self) -> list[str]:
        """What is worth saying about the file, after it was applied too."""
        entries: tuple[ServerEntry | TenantEntry | LoginEntry, ...] = (*self.servers, *self.tenants, *self.logins)
        return list(dict.fromkeys(warning for entry in entries for warning in entry.table.warnings))


def load_manifest(path: Path, environment: Mapping[str, str] = os.environ) -> Manifest:
    """Read a manifest from a file; raises ManifestError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read: {error.strerror}", "give the path of a manifest, a TOML file"
        ) from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path} is not UTF-8 text", "a manifest is a TOML file, saved as UTF-8") from None
    return parse_manifest(text, name=str(path), directory=path.parent, environment=environment)


def parse_manifest(
    text: str,
    *,
    name: str = "manifest",
    directory: Path = Path(),
    environment: Mapping[str, str] = os.environ,
) -> Manifest:
    """Read a manifest; raises ManifestError with line, key and hint."""
    source = Source(name, text, directory, environment)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise source.error(None, f"not TOML: {error}", "mend it there; configs/tenants.toml is an example") from None
    for key in document:
        if key not in KINDS:
            raise source.error(None, f"unknown table {key!r}", f"known: {', '.join(f'[[{kind}]]' for kind in KINDS)}")
    servers = [_server(table) for table in _tables(source, "server", document)]
    tenants = [_tenant(table) for table in _tables(source, "tenant", document)]
    logins = [_login(table) for table in _tables(source, "login", document)]
    _unique([(entry.table, "name", entry.name) for entry in servers])
    _unique([(entry.table, "slug", entry.slug) for entry in tenants])
    _unique([(entry.table, "user", entry.key) for entry in logins])
    return Manifest(servers, tenants, logins)


def _tables(source: Source, kind: str, document: Mapping[str, Any]) -> list[Table]:
    values = document.get(kind, [])
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise source.error(None, f"{kind} must be tables", f"write [[{kind}]], with two brackets")
    return [Table(source, kind, number, value) for number, value in enumerate(values)]


def _server(table: Table) -> ServerEntry:
    name = table.required("name")
    hosts, port = table.texts("hosts"), table.integer("port")
    host = table.text("host")
    if (host is None) == (hosts is None):
        raise table.error("host", "a server needs host or hosts", 'host = "db.example.com:5432", or hosts = [...]')
    try:
        addresses = tuple(parse_address(one, _or(port, DEFAULT_PORT)) for one in (hosts or (host or "",)))
    except Invalid as error:
        raise table.error("hosts" if host is None else "host", error.message, error.hint) from None
    change = ServerChange(
        addresses=addresses,
        tls_mode=table.choice("tls", TlsMode, TlsMode.PREFER),
        tls_ca=_pem(table, "tls_ca"),
        tls_cert=_pem(table, "tls_cert"),
        tls_negotiation=table.choice("tls_negotiation", TlsNegotiation, TlsNegotiation.POSTGRES),
        tls_min_version=table.choice("tls_min_version", TlsVersion, TlsVersion.TLS_1_2),
        protocol=table.choice("protocol", ProtocolVersion, ProtocolVersion.V3_2),
        admin_user=table.text("admin"),
        role_user=table.text("role"),
        auth_user=table.text("auth_role"),
        auth_database=table.text("auth_database"),
        auth_query=table.text("auth_query"),
        channel_binding=table.choice("channel_binding", ChannelBinding, ChannelBinding.PREFER),
        max_connections=_or(table.integer("max_connections"), 100),
        reserve=_or(table.integer("reserve"), 10),
        draining=_or_keep(table.boolean("draining")),
    )
    admin, role, auth = (table.secret(f"{whose}_password") for whose in ("admin", "role", "auth"))
    entry = ServerEntry(table, name, change, admin, role, auth, table.secret("tls_key"))
    table.finish()
    return entry


def _pem(table: Table, key: str) -> str | None:
    """PEM text, from the key itself or from the file that `<key>_file` names."""
    text, file = table.text(key), table.text(f"{key}_file")
    if text is not None and file is not None:
        raise table.error(key, f"both {key} and {key}_file", "keep one of them")
    return text if file is None else table.content(f"{key}_file", file)


def _tenant(table: Table) -> TenantEntry:
    slug = table.required("slug")
    limits = table.table("limits")
    if limits.has(NO_LIMIT):
        raise table.error(
            "limits",
            f"{NO_LIMIT} has no effect yet, and is not accepted",
            "take it out; pool_size limits a tenant's share of a server",
        )
    values: dict[str, Any] = {name: limits.integer(name) for name in COUNTS}
    values.update({name: limits.number(name) for name in TIMES})
    limits.finish()
    change = TenantChange(
        aliases=table.texts("aliases") or (),
        server=table.text("server"),
        database_name=table.text("database"),
        role_user=table.text("role"),
        limits=Limits(**values),
        pool_mode=table.choice("pool_mode", PoolMode, PoolMode.TRANSACTION),
        reset=table.choice("reset", ResetPolicy, ResetPolicy.AUTO),
        session_state=table.choice("session_state", SessionStatePolicy, SessionStatePolicy.PIN),
        verifiers=table.optional_choice("verifiers", VerifierSource),
        networks=table.texts("networks") or (),
        shared=table.boolean("shared") or False,
    )
    entry = TenantEntry(table, slug, change, table.secret("role_password"), table.boolean("suspended"))
    table.finish()
    return entry


def _login(table: Table) -> LoginEntry:
    user = table.required("user")
    tenant, everyone = table.text("tenant"), table.boolean("all_tenants")
    if (tenant is None) == (not everyone):
        raise table.error("tenant", "a login is of one tenant or of all", 'tenant = "slug", or all_tenants = true')
    methods = table.choices("methods", AuthMethod, (AuthMethod.SCRAM,))
    change = LoginChange(
        verifier=_or_keep(table.text("verifier")),
        methods=methods,
        certificate=table.text("certificate"),
        md5_spellings=_or_keep(table.texts("md5_spellings")),
        role_user=table.text("role"),
        replication=table.choice("replication", ReplicationAccess, ReplicationAccess.NONE),
    )
    password = table.secret("password")
    if password is None and change.verifier is KEEP and methods != {AuthMethod.CERT}:
        raise table.error(None, "no password", "give password_env, password_file or verifier")
    entry = LoginEntry(table, user, tenant, change, password, table.secret("role_password"))
    table.finish()
    return entry


def _unique(named: Sequence[tuple[Table, str, Hashable]]) -> None:
    seen = set()
    for table, key, name in named:
        if name in seen:
            raise table.error(key, "stands in the file twice", "keep one of them")
        seen.add(name)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _or_keep(value: Any) -> Any | Keep:
    return KEEP if value is None else value
