"""What a change makes of a server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from registry.contract import ChannelBinding, TlsMode
from registry.domain.models import KEEP, Server, ServerChange, chosen
from registry.domain.names import check_addresses, check_identifier, check_server_name
from registry.domain.server_tls import check_ca, check_certificate, check_tls
from registry.errors import Conflict, Invalid

MAX_CONNECTIONS: Final = 262_143
"""The most that PostgreSQL accepts as max_connections."""

MAX_QUERY_CHARS: Final = 4_096


class Placement(Enum):
    """Whether a tenant that comes to a server is held to what the server says, or an administrator has insisted."""

    CHECKED = "checked"
    FORCED = "forced"


@dataclass(frozen=True, slots=True)
class ServerOutcome:
    """The server after the change, and what that makes obsolete.

    `moved`: all backends on it; `role_changed`: those that logged in with its default role.
    """

    server: Server
    moved: bool
    role_changed: bool


def change_server(before: Server, change: ServerChange, *, role_password_changed: bool) -> ServerOutcome:
    """Apply a change; raises Invalid."""
    after = replace(
        before,
        name=check_server_name(before.name),
        addresses=check_addresses(chosen(change.addresses, before.addresses)),
        tls_mode=chosen(change.tls_mode, before.tls_mode),
        tls_ca=check_ca(chosen(change.tls_ca, before.tls_ca)),
        tls_cert=check_certificate(chosen(change.tls_cert, before.tls_cert)),
        tls_negotiation=chosen(change.tls_negotiation, before.tls_negotiation),
        tls_min_version=chosen(change.tls_min_version, before.tls_min_version),
        protocol=chosen(change.protocol, before.protocol),
        has_tls_key=before.has_tls_key if change.tls_key is KEEP else change.tls_key is not None,
        admin_user=_check_user("admin", chosen(change.admin_user, before.admin_user)),
        role_user=_check_user("role", chosen(change.role_user, before.role_user)),
        auth_user=_check_user("auth_role", chosen(change.auth_user, before.auth_user)),
        auth_database=_check_user("auth_database", chosen(change.auth_database, before.auth_database)),
        auth_query=_check_query(chosen(change.auth_query, before.auth_query)),
        channel_binding=chosen(change.channel_binding, before.channel_binding),
        max_connections=chosen(change.max_connections, before.max_connections),
        reserve=chosen(change.reserve, before.reserve),
        draining=chosen(change.draining, before.draining),
        health=chosen(change.health, before.health),
        has_admin_password=before.has_admin_password
        if change.admin_password is KEEP
        else change.admin_password is not None,
        has_role_password=before.has_role_password
        if change.role_password is KEEP
        else change.role_password is not None,
        has_auth_password=before.has_auth_password
        if change.auth_password is KEEP
        else change.auth_password is not None,
    )
    if after.has_admin_password and after.admin_user is None:
        raise Invalid("admin", "an admin password without an admin user", "name the user, or take the password away")
    if after.has_role_password and after.role_user is None:
        raise Invalid("role", "a role's password without a role", "name the role, or take the password away")
    check_tls(after)
    _check_auth(after)
    _check_capacity(after)
    moved = _way_to(before) != _way_to(after)
    return ServerOutcome(after, moved, role_password_changed or before.role_user != after.role_user)


def _way_to(server: Server) -> tuple[object, ...]:
    """What the connections to a server were made with."""
    return (
        server.addresses,
        server.tls_mode,
        server.tls_ca,
        server.tls_cert,
        server.tls_negotiation,
        server.tls_min_version,
        server.protocol,
    )


def check_removal(server: Server, tenants: int) -> None:
    """Refuse to remove a server that has tenants; raises Conflict."""
    if tenants:
        raise Conflict(
            f"server {server.name!r} has {tenants} tenant{'' if tenants == 1 else 's'}",
            f"`pgtenant tenant list --server {server.name}` shows them; point them elsewhere or remove them first",
        )


def check_placement(server: Server) -> None:
    """Refuse a tenant that would come to a server which takes none; raises Conflict."""
    if server.draining:
        raise Conflict(
            f"server {server.name!r} is draining: it takes no new tenants",
            f"choose another server; `pgtenant server undrain {server.name}` ends the draining",
        )


def _check_user(field: str, user: str | None) -> str | None:
    return None if user is None else check_identifier(field, user)


def _check_query(query: str | None) -> str | None:
    if query is not None and (len(query) > MAX_QUERY_CHARS or "\0" in query or "$1" not in query):
        raise Invalid(
            "auth_query",
            "this query cannot ask for a verifier",
            f"at most {MAX_QUERY_CHARS:,} characters, with $1 in the place of the role's name",
        )
    return query


def _check_auth(server: Server) -> None:
    if server.auth_user is None and (server.has_auth_password or server.auth_database or server.auth_query):
        raise Invalid(
            "auth_role",
            "a password, database or query for asking the server for verifiers, but no role that asks",
            "name the role, or take the others away",
        )
    if server.channel_binding is ChannelBinding.REQUIRE and server.tls_mode in {TlsMode.DISABLE, TlsMode.PREFER}:
        raise Invalid(
            "channel_binding",
            f"channel binding is required, but TLS is only {server.tls_mode.value!r}",
            "choose the TLS mode require, verify-ca or verify-full",
        )


def _check_capacity(server: Server) -> None:
    if not 1 <= server.max_connections <= MAX_CONNECTIONS:
        raise Invalid(
            "max_connections", f"max_connections is {server.max_connections}", f"it must be 1 to {MAX_CONNECTIONS:,}"
        )
    if not 0 <= server.reserve < server.max_connections - (server.auth_user is not None):
        raise Invalid(
            "reserve",
            f"a reserve of {server.reserve} leaves nothing of {server.max_connections} connections"
            if server.reserve >= 0
            else f"reserve is {server.reserve}",
            "the reserve must be at least 0 and less than max_connections; asking for verifiers takes one more",
        )
