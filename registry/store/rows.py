"""From rows to the types of the domain and of the contract, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from registry.contract import (
    Address,
    AuthMethod,
    AuthQuery,
    ChannelBinding,
    Limits,
    PoolMode,
    ProtocolVersion,
    ReplicationAccess,
    ResetPolicy,
    Secret,
    ServerHealth,
    ServerInfo,
    SessionStatePolicy,
    TenantState,
    TlsMode,
    TlsNegotiation,
    TlsVersion,
    VerifierSource,
)
from registry.domain.limits import LIMIT_NAMES
from registry.domain.models import LoginRecord, Server, Tenant


def secret_context(table: str, row_id: int, column: str) -> str:
    """The identity to which a sealed secret is bound."""
    return f"{table}/{row_id}/{column}"


def server_of(row: Any) -> Server:
    """A row of `servers`, as administrators see it."""
    return Server(
        server_id=row.id,
        name=row.name,
        addresses=addresses_of(row.addresses),
        tls_mode=TlsMode(row.tls_mode),
        tls_ca=row.tls_ca,
        tls_cert=row.tls_cert,
        has_tls_key=row.tls_key is not None,
        tls_negotiation=TlsNegotiation(row.tls_negotiation),
        tls_min_version=TlsVersion(row.tls_min_version),
        protocol=ProtocolVersion(row.protocol),
        admin_user=row.admin_user,
        has_admin_password=row.admin_password is not None,
        role_user=row.role_user,
        has_role_password=row.role_password is not None,
        auth_user=row.auth_user,
        has_auth_password=row.auth_password is not None,
        auth_database=row.auth_database,
        auth_query=row.auth_query,
        channel_binding=ChannelBinding(row.channel_binding),
        max_connections=row.max_connections,
        reserve=row.reserve,
        draining=row.draining,
        health=ServerHealth(row.health),
    )


def server_values(server: Server) -> dict[str, Any]:
    """The columns of a server but for its id and secrets."""
    return {
        "name": server.name,
        "addresses": [[address.host, address.port] for address in server.addresses],
        "tls_mode": server.tls_mode.value,
        "tls_ca": server.tls_ca,
        "tls_cert": server.tls_cert,
        "tls_negotiation": server.tls_negotiation.value,
        "tls_min_version": server.tls_min_version.value,
        "protocol": server.protocol.value,
        "admin_user": server.admin_user,
        "role_user": server.role_user,
        "auth_user": server.auth_user,
        "auth_database": server.auth_database,
        "auth_query": server.auth_query,
        "channel_binding": server.channel_binding.value,
        "max_connections": server.max_connections,
        "reserve": server.reserve,
        "draining": server.draining,
        "health": server.health.value,
    }


def server_info(server: Server, auth: AuthQuery | None, tls_key: Secret | None) -> ServerInfo:
    """What a node is told of a server; `auth` with its password and `tls_key` opened."""
    return ServerInfo(
        server_id=server.server_id,
        name=server.name,
        addresses=server.addresses,
        max_connections=server.max_connections - server.reserve,
        tls_mode=server.tls_mode,
        tls_ca=server.tls_ca,
        draining=server.draining,
        health=server.health,
        channel_binding=server.channel_binding,
        auth=auth,
        tls_cert=server.tls_cert,
        tls_key=tls_key,
        tls_negotiation=server.tls_negotiation,
        tls_min_version=server.tls_min_version,
        protocol=server.protocol,
    )


def addresses_of(value: Iterable[tuple[str, int]]) -> tuple[Address, ...]:
    """The addresses as they stand in their column."""
    return tuple(Address(host, port) for host, port in value)


def limits_of(row: Any) -> Limits:
    """The limits of a row of `tenants`."""
    return Limits(**{name: getattr(row, name) for name in LIMIT_NAMES})


def tenant_of(row: Any, server: str | None, aliases: Iterable[str]) -> Tenant:
    """A row of `tenants`, with the name of its server."""
    return Tenant(
        tenant_id=row.id,
        slug=row.slug,
        state=TenantState(row.state),
        aliases=tuple(sorted(aliases)),
        server_id=row.server_id,
        server=server,
        database_name=row.database_name,
        role_user=row.role_user,
        has_role_password=row.role_password is not None,
        limits=limits_of(row),
        pool_mode=PoolMode(row.pool_mode),
        reset=ResetPolicy(row.reset),
        session_state=SessionStatePolicy(row.session_state),
        verifiers=None if row.verifiers is None else VerifierSource(row.verifiers),
        networks=tuple(row.networks),
        generation=row.generation,
        shared=row.shared,
    )


def tenant_values(tenant: Tenant) -> dict[str, Any]:
    """The columns of a tenant but for its id and secrets."""
    return {
        "slug": tenant.slug,
        "state": tenant.state.value,
        "server_id": tenant.server_id,
        "database_name": tenant.database_name,
        "role_user": tenant.role_user,
        **{name: getattr(tenant.limits, name) for name in LIMIT_NAMES},
        "pool_mode": tenant.pool_mode.value,
        "reset": tenant.reset.value,
        "session_state": tenant.session_state.value,
        "verifiers": None if tenant.verifiers is None else tenant.verifiers.value,
        "networks": list(tenant.networks),
        "generation": tenant.generation,
        "shared": tenant.shared,
    }


def methods_of(text: str) -> frozenset[AuthMethod]:
    """The methods as they stand in their column."""
    return frozenset(AuthMethod(name) for name in text.split(","))


def login_of(row: Any, tenant: str | None, spellings: Iterable[str]) -> LoginRecord:
    """A row of `logins`, with the slug of its tenant."""
    return LoginRecord(
        login_id=row.id,
        user=row.user_name,
        tenant_id=row.tenant_id,
        tenant=tenant,
        verifier=row.verifier,
        methods=methods_of(row.methods),
        certificate=row.certificate,
        md5_spellings=tuple(sorted(spellings)),
        role_user=row.role_user,
        has_role_password=row.role_password is not None,
        replication=ReplicationAccess(row.replication),
    )


def login_values(login: LoginRecord) -> dict[str, Any]:
    """The columns of a login but for its id and secrets."""
    return {
        "user_name": login.user,
        "tenant_id": login.tenant_id,
        "verifier": login.verifier,
        "methods": ",".join(sorted(method.value for method in login.methods)),
        "certificate": login.certificate,
        "role_user": login.role_user,
        "replication": login.replication.value,
    }
