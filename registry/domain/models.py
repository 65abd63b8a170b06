"""Servers, tenants and logins as administrators see them, and the changes that can be asked for.

Passwords are not in here: a record says whether there is one.  In a change, KEEP leaves a field as it is (and
means the default where the object is new); None takes away what is optional.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

from registry.contract import (
    Address,
    AuthMethod,
    ChannelBinding,
    Limits,
    PoolMode,
    ProtocolVersion,
    ReplicationAccess,
    ResetPolicy,
    Secret,
    ServerHealth,
    SessionStatePolicy,
    TenantState,
    TlsMode,
    TlsNegotiation,
    TlsVersion,
    VerifierSource,
)


class Keep(Enum):
    """The type of KEEP."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP

T = TypeVar("T")


def chosen(value: T | Keep, default: T) -> T:
    """The value that is asked for, or what stands for KEEP."""
    return default if isinstance(value, Keep) else value


@dataclass(frozen=True, slots=True)
class Server:
    """A server; `max_connections` is its own limit, of which `reserve` are left to others.

    `auth_user` is the role that asks it for the verifiers of others; None: nobody does.
    """

    server_id: int
    name: str
    addresses: tuple[Address, ...]
    tls_mode: TlsMode = TlsMode.PREFER
    tls_ca: str | None = None
    tls_cert: str | None = None
    has_tls_key: bool = False
    tls_negotiation: TlsNegotiation = TlsNegotiation.POSTGRES
    tls_min_version: TlsVersion = TlsVersion.TLS_1_2
    protocol: ProtocolVersion = ProtocolVersion.V3_2
    admin_user: str | None = None
    has_admin_password: bool = False
    role_user: str | None = None
    has_role_password: bool = False
    auth_user: str | None = None
    has_auth_password: bool = False
    auth_database: str | None = None
    auth_query: str | None = None
    channel_binding: ChannelBinding = ChannelBinding.PREFER
    max_connections: int = 100
    reserve: int = 10
    draining: bool = False
    health: ServerHealth = ServerHealth.UNKNOWN


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; without a role of its own its backends log in with the default role of its server.

    `shared`: it has no database of its own and is served from the one that nodes know as the shared database.
    """

    tenant_id: int
    slug: str
    state: TenantState
    aliases: tuple[str, ...] = ()
    server_id: int | None = None
    server: str | None = None
    database_name: str | None = None
    role_user: str | None = None
    has_role_password: bool = False
    limits: Limits = field(default_factory=Limits)
    pool_mode: PoolMode = PoolMode.TRANSACTION
    reset: ResetPolicy = ResetPolicy.AUTO
    session_state: SessionStatePolicy = SessionStatePolicy.PIN
    verifiers: VerifierSource | None = None
    networks: tuple[str, ...] = ()
    generation: int = 1
    shared: bool = False


@dataclass(frozen=True, slots=True)
class LoginRecord:
    """A login; `tenant` None: it may connect as every tenant.  `md5_spellings`: the user names it may use with md5."""

    login_id: int
    user: str
    tenant_id: int | None
    tenant: str | None
    verifier: str = field(repr=False)
    methods: frozenset[AuthMethod] = frozenset({AuthMethod.SCRAM})
    certificate: str | None = None
    md5_spellings: tuple[str, ...] = ()
    role_user: str | None = None
    has_role_password: bool = False
    replication: ReplicationAccess = ReplicationAccess.NONE


@dataclass(frozen=True, slots=True)
class ServerChange:
    """What to make of a server."""

    addresses: tuple[Address, ...] | Keep = KEEP
    tls_mode: TlsMode | Keep = KEEP
    tls_ca: str | Keep | None = KEEP
    tls_cert: str | Keep | None = KEEP
    tls_key: Secret | Keep | None = KEEP
    tls_negotiation: TlsNegotiation | Keep = KEEP
    tls_min_version: TlsVersion | Keep = KEEP
    protocol: ProtocolVersion | Keep = KEEP
    admin_user: str | Keep | None = KEEP
    admin_password: Secret | Keep | None = KEEP
    role_user: str | Keep | None = KEEP
    role_password: Secret | Keep | None = KEEP
    auth_user: str | Keep | None = KEEP
    auth_password: Secret | Keep | None = KEEP
    auth_database: str | Keep | None = KEEP
    auth_query: str | Keep | None = KEEP
    channel_binding: ChannelBinding | Keep = KEEP
    max_connections: int | Keep = KEEP
    reserve: int | Keep = KEEP
    draining: bool | Keep = KEEP
    health: ServerHealth | Keep = KEEP


@dataclass(frozen=True, slots=True)
class TenantChange:
    """What to make of a tenant; `server` is the server's name.

    Without `state` a tenant that gets its database, or says that it is served from the shared one, becomes READY, and
    one that loses either PENDING.
    """

    state: TenantState | Keep = KEEP
    aliases: tuple[str, ...] | Keep = KEEP
    server: str | Keep | None = KEEP
    database_name: str | Keep | None = KEEP
    role_user: str | Keep | None = KEEP
    role_password: Secret | Keep | None = KEEP
    limits: Limits | Keep = KEEP
    pool_mode: PoolMode | Keep = KEEP
    reset: ResetPolicy | Keep = KEEP
    session_state: SessionStatePolicy | Keep = KEEP
    verifiers: VerifierSource | Keep | None = KEEP
    networks: tuple[str, ...] | Keep = KEEP
    shared: bool | Keep = KEEP


@dataclass(frozen=True, slots=True)
class LoginChange:
    """What to make of a login: a new password, or a verifier made elsewhere.

    md5 needs the password itself, once per spelling of the user name; `md5_spellings` KEEP stands for the usual
    ones: the user name, and the user name with the tenant's slug or alias behind a dot.
    """

    password: Secret | Keep = KEEP
    verifier: str | Keep = field(default=KEEP, repr=False)
    methods: frozenset[AuthMethod] | Keep = KEEP
    certificate: str | Keep | None = KEEP
    md5_spellings: tuple[str, ...] | Keep = KEEP
    role_user: str | Keep | None = KEEP
    role_password: Secret | Keep | None = KEEP
    replication: ReplicationAccess | Keep = KEEP
