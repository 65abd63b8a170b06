"""Writing the registry as a manifest, without its secrets: they become references to environment variables."""

from __future__ import annotations

import re
from typing import Any

import tomlkit
from tomlkit.items import Table as TomlTable

from registry.contract import (
    AuthMethod,
    ChannelBinding,
    PoolMode,
    ProtocolVersion,
    ReplicationAccess,
    ResetPolicy,
    SessionStatePolicy,
    TenantState,
    TlsMode,
    TlsNegotiation,
    TlsVersion,
)
from registry.domain.limits import LIMIT_NAMES
from registry.domain.logins import usual_spellings
from registry.domain.models import LoginRecord, Server, Tenant
from registry.domain.names import format_address
from registry.service import RegistryService

HEAD = (
    "What the registry holds, as `pgtenant registry apply` reads it.  Passwords are not in here: set the variables",
    "that the keys in _env name; where one is not set, the registry keeps the password it has.",
)


async def export_manifest(service: RegistryService) -> str:
    """Write what the registry holds; applying that to it changes nothing.  Raises RegistryUnavailable."""
    contents = await service.contents()
    document, variables = tomlkit.document(), _Variables()
    for line in HEAD:
        document.add(tomlkit.comment(line))
    all_servers = [one.record for one in contents.servers.values()]
    all_tenants = [one.record for one in contents.tenants.values()]
    all_logins = [one.record for one in contents.logins.values()]
    by_slug = {tenant.slug: tenant for tenant in all_tenants}
    for kind, tables in (
        ("server", [_server(server, variables) for server in all_servers]),
        ("tenant", [_tenant(tenant, variables) for tenant in all_tenants]),
        ("login", [_login(login, by_slug.get(login.tenant or ""), variables) for login in all_logins]),
    ):
        array = tomlkit.aot()
        for table in tables:
            array.append(table)
        if tables:
            document.add(kind, array)
    return tomlkit.dumps(document)


class _Variables:
    """Names for environment variables, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def name(self, *parts: str) -> str:
        """A name made of these parts; another one where two objects would have the same."""
        name = wanted = re.sub(r"[^A-Z0-9]+", "_", "_".join(parts).upper())
        number = 1
        while name in self._given:
            number += 1
            name = f"{wanted}_{number}"
        self._given.add(name)
        return name


def _server(server: Server, variables: _Variables) -> TomlTable:
    table = tomlkit.table()
    table.add("name", server.name)
    table.add("hosts", [format_address(address) for address in server.addresses])
    _add(table, "tls", server.tls_mode.value, TlsMode.PREFER.value)
    for key, pem in (("tls_ca", server.tls_ca), ("tls_cert", server.tls_cert)):
        if pem is not None:
            table.add(key, tomlkit.string(pem, multiline="\n" in pem))
    if server.has_tls_key:
        table.add("tls_key_env", variables.name("server", server.name, "tls_key"))
    _add(table, "tls_negotiation", server.tls_negotiation.value, TlsNegotiation.POSTGRES.value)
    _add(table, "tls_min_version", server.tls_min_version.value, TlsVersion.TLS_1_2.value)
    _add(table, "protocol", server.protocol.value, ProtocolVersion.V3_2.value)
    table.add("max_connections", server.max_connections)
    table.add("reserve", server.reserve)
    _add(table, "admin", server.admin_user, None)
    if server.has_admin_password:
        table.add("admin_password_env", variables.name("server", server.name, "admin_password"))
    _add(table, "role", server.role_user, None)
    if server.has_role_password:
        table.add("role_password_env", variables.name("server", server.name, "role_password"))
    _add(table, "auth_role", server.auth_user, None)
    if server.has_auth_password:
        table.add("auth_password_env", variables.name("server", server.name, "auth_password"))
    _add(table, "auth_database", server.auth_database, None)
    _add(table, "auth_query", server.auth_query, None)
    _add(table, "channel_binding", server.channel_binding.value, ChannelBinding.PREFER.value)
    _add(table, "draining", server.draining, default=False)
    return table


def _tenant(tenant: Tenant, variables: _Variables) -> TomlTable:
    table = tomlkit.table()
    table.add("slug", tenant.slug)
    _add(table, "aliases", list(tenant.aliases), [])
    _add(table, "server", tenant.server, None)
    _add(table, "database", tenant.database_name, None)
    _add(table, "role", tenant.role_user, None)
    if tenant.has_role_password:
        table.add("role_password_env", variables.name("tenant", tenant.slug, "role_password"))
    _add(table, "pool_mode", tenant.pool_mode.value, PoolMode.TRANSACTION.value)
    _add(table, "reset", tenant.reset.value, ResetPolicy.AUTO.value)
    _add(table, "session_state", tenant.session_state.value, SessionStatePolicy.PIN.value)
    if tenant.verifiers is not None:
        table.add("verifiers", tenant.verifiers.value)
    _add(table, "networks", list(tenant.networks), [])
    limits = tomlkit.inline_table()
    for name in LIMIT_NAMES:
        value = getattr(tenant.limits, name)
        if value is not None:
            limits.append(name, value)
    if limits:
        table.add("limits", limits)
    _add(table, "shared", tenant.shared, default=False)
    _add(table, "suspended", tenant.state is TenantState.SUSPENDED, default=False)
    return table


def _login(login: LoginRecord, tenant: Tenant | None, variables: _Variables) -> TomlTable:
    table = tomlkit.table()
    table.add("user", login.user)
    _add(table, "all_tenants", login.tenant is None, default=False)
    _add(table, "tenant", login.tenant, None)
    table.add("verifier", login.verifier)
    owner = login.tenant or "all"
    if login.methods != {AuthMethod.SCRAM}:
        table.add("methods", sorted(method.value for method in login.methods))
    _add(table, "certificate", login.certificate, None)
    if login.md5_spellings:
        table.add("password_env", variables.name("login", owner, login.user, "password"))
        if set(login.md5_spellings) != set(usual_spellings(login.user, tenant)):
            table.add("md5_spellings", list(login.md5_spellings))
    _add(table, "role", login.role_user, None)
    if login.has_role_password:
        table.add("role_password_env", variables.name("login", owner, login.user, "role_password"))
    _add(table, "replication", login.replication.value, ReplicationAccess.NONE.value)
    return table


def _add(table: TomlTable, key: str, value: Any, default: Any) -> None:
    if value != default:
        table.add(key, value)
