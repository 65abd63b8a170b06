"""Routes and logins as JSON, for the snapshot on disk.  The result holds passwords: it is sealed before it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from ipaddress import ip_network
from typing import Any, TypeAlias, TypeVar

from registry.contract import (
    Address,
    AuthMethod,
    AuthQuery,
    ChannelBinding,
    Credentials,
    Limits,
    Login,
    PoolMode,
    ProtocolVersion,
    ReplicationAccess,
    ResetPolicy,
    Route,
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

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")


def encode_route(route: Route) -> Json:
    """Turn a route into JSON-ready values, its role's password included."""
    return {
        "tenant_id": route.tenant_id,
        "slug": route.slug,
        "state": route.state.value,
        "server": None if route.server is None else _encode_server(route.server),
        "database_name": route.database_name,
        "role": _encode_credentials(route.role),
        "generation": route.generation,
        "aliases": list(route.aliases),
        "pool_mode": route.pool_mode.value,
        "reset": route.reset.value,
        "session_state": route.session_state.value,
        "verifiers": None if route.verifiers is None else route.verifiers.value,
        "networks": [str(network) for network in route.networks],
        "shared": route.shared,
        "limits": {one.name: getattr(route.limits, one.name) for one in fields(Limits)},
    }


def decode_route(data: Mapping[str, Any]) -> Route:
    """Read a route back; raises ValueError, KeyError or TypeError for anything else."""
    return Route(
        tenant_id=_typed(data["tenant_id"], int),
        slug=_typed(data["slug"], str),
        state=TenantState(data["state"]),
        server=_optional(data["server"], _decode_server),
        database_name=_optional(data["database_name"], _text),
        role=_optional(data["role"], _decode_credentials),
        generation=_typed(data["generation"], int),
        aliases=tuple(_text(one) for one in data["aliases"]),
        pool_mode=PoolMode(data["pool_mode"]),
        reset=ResetPolicy(data["reset"]),
        session_state=SessionStatePolicy(data["session_state"]),
        verifiers=_optional(data["verifiers"], VerifierSource),
        networks=tuple(ip_network(_text(network)) for network in data["networks"]),
        # A snapshot of the previous version knows of nobody who has said so.
        shared=_typed(data.get("shared", False), bool),
        limits=_decode_limits(data["limits"]),
    )


def encode_login(login: Login) -> Json:
    """Turn a login into JSON-ready values, its verifier and hashes included.

    Raises ValueError for one that is a server's role: what a server has told is kept in memory only.
    """
    if login.source is not VerifierSource.REGISTRY:
        raise ValueError("a server's verifiers are not kept on disk")
    return {
        "login_id": login.login_id,
        "user": login.user,
        "tenant_id": login.tenant_id,
        "verifier": login.verifier,
        "methods": sorted(method.value for method in login.methods),
        "md5": [[user, secret.reveal()] for user, secret in login.md5],
        "role": _encode_credentials(login.role),
        "certificate": login.certificate,
        "replication": login.replication.value,
    }


def decode_login(data: Mapping[str, Any]) -> Login:
    """Read a login back; raises ValueError, KeyError or TypeError for anything else."""
    return Login(
        login_id=_typed(data["login_id"], int),
        user=_text(data["user"]),
        tenant_id=_optional(data["tenant_id"], _whole),
        verifier=_text(data["verifier"]),
        methods=frozenset(AuthMethod(method) for method in data["methods"]),
        md5=tuple((_text(user), Secret(_text(secret))) for user, secret in data["md5"]),
        certificate=_optional(data["certificate"], _text),
        role=_optional(data["role"], _decode_credentials),
        replication=ReplicationAccess(data["replication"]),
    )


def _encode_server(server: ServerInfo) -> Json:
    return {
        "server_id": server.server_id,
        "name": server.name,
        "addresses": [[one.host, one.port] for one in server.addresses],
        "max_connections": server.max_connections,
        "tls_mode": server.tls_mode.value,
        "tls_ca": server.tls_ca,
        "draining": server.draining,
        "health": server.health.value,
        "channel_binding": server.channel_binding.value,
        "auth": None if server.auth is None else _encode_auth(server.auth),
        "tls_cert": server.tls_cert,
        "tls_key": None if server.tls_key is None else server.tls_key.reveal(),
        "tls_negotiation": server.tls_negotiation.value,
        "tls_min_version": server.tls_min_version.value,
        "protocol": server.protocol.value,
    }


def _decode_server(data: Mapping[str, Any]) -> ServerInfo:
    return ServerInfo(
        server_id=_whole(data["server_id"]),
        name=_text(data["name"]),
        addresses=tuple(Address(_text(host), _whole(port)) for host, port in data["addresses"]),
        max_connections=_whole(data["max_connections"]),
        tls_mode=TlsMode(data["tls_mode"]),
        tls_ca=_optional(data["tls_ca"], _text),
        draining=_typed(data["draining"], bool),
        health=ServerHealth(data["health"]),
        channel_binding=ChannelBinding(data["channel_binding"]),
        auth=_optional(data["auth"], _decode_auth),
        tls_cert=_optional(data["tls_cert"], _text),
        tls_key=_optional(data["tls_key"], lambda key: Secret(_text(key))),
        tls_negotiation=TlsNegotiation(data["tls_negotiation"]),
        tls_min_version=TlsVersion(data["tls_min_version"]),
        protocol=ProtocolVersion(data["protocol"]),
    )


def _encode_auth(auth: AuthQuery) -> Json:
    return {"role": _encode_credentials(auth.credentials), "database": auth.database, "query": auth.query}


def _decode_auth(data: Mapping[str, Any]) -> AuthQuery:
    return AuthQuery(_decode_credentials(data["role"]), _text(data["database"]), _text(data["query"]))


def _encode_credentials(credentials: Credentials | None) -> Sequence[str | None] | None:
    if credentials is None:
        return None
    return [credentials.user, None if credentials.password is None else credentials.password.reveal()]


def _decode_credentials(data: Sequence[Any]) -> Credentials:
    user, password = data
    return Credentials(_text(user), None if password is None else Secret(_text(password)))


def _decode_limits(data: Mapping[str, Any]) -> Limits:
    for value in data.values():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError("a limit is a number")
    return Limits(**data)


def _optional(value: Any, decode: Callable[[Any], T]) -> T | None:
    return None if value is None else decode(value)


def _typed(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected")
    return value


def _text(value: Any) -> str:
    return _typed(value, str)


def _whole(value: Any) -> int:
    return _typed(value, int)
