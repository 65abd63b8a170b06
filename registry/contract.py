"""The meeting point of data plane and control plane: what a node may know of the registry.

Everything here is immutable and free of I/O.  The proxy imports this module and nothing else of `registry`
(its composition root and its command line excepted); the registry never imports the proxy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

T_co = TypeVar("T_co", covariant=True)

Network: TypeAlias = IPv4Network | IPv6Network

DEFAULT_AUTH_QUERY: Final = (
    "SELECT rolpassword,"
    " CASE WHEN pg_catalog.isfinite(rolvaliduntil)"
    " THEN EXTRACT(epoch FROM rolvaliduntil - pg_catalog.clock_timestamp()) END"
    " FROM pg_catalog.pg_authid"
    " WHERE rolname = $1 AND rolcanlogin AND NOT rolsuper AND rolpassword IS NOT NULL"
    " AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.clock_timestamp())"
)
"""Asks `pg_authid`, which takes a superuser.  Superusers are left out: they have no business in a pool of tenants."""


class TenantState(StrEnum):
    """Where a tenant stands; only READY is served, from its own database or, where it says so, from the shared one."""

    PENDING = "PENDING"
    CREATING = "CREATING"
    READY = "READY"
    ERROR = "ERROR"
    SUSPENDED = "SUSPENDED"
    MOVING = "MOVING"
    DROPPING = "DROPPING"


class PoolMode(StrEnum):
    """When a client gives its backend back: after each transaction, session or statement."""

    TRANSACTION = "transaction"
    SESSION = "session"
    STATEMENT = "statement"


class ResetPolicy(StrEnum):
    """When a backend gets DISCARD ALL before another client has it: only when known to be dirty, or always."""

    AUTO = "auto"
    ALWAYS = "always"


class SessionStatePolicy(StrEnum):
    """What becomes of a client in transaction mode that leaves state in its session which cannot follow it.

    It keeps its backend, or is refused with an error, or nothing happens and the state stays with the backend.
    """

    PIN = "pin"
    REJECT = "reject"
    ALLOW = "allow"


class TlsMode(StrEnum):
    """How a connection to a server uses TLS; the meanings are those of libpq's `sslmode`."""

    DISABLE = "disable"
    PREFER = "prefer"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


class TlsNegotiation(StrEnum):
    """How TLS with a server begins: asked for as ever, or at once (PostgreSQL 17 and newer); as `sslnegotiation`."""

    POSTGRES = "postgres"
    DIRECT = "direct"


class TlsVersion(StrEnum):
    """Versions of TLS, of which one is the oldest that is spoken."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


class ProtocolVersion(StrEnum):
    """The newest version of PostgreSQL's protocol that a server is asked for; one that knows only 3.0 says so."""

    V3_0 = "3.0"
    V3_2 = "3.2"


class ServerHealth(StrEnum):
    """What the last health checks said of a server."""

    UNKNOWN = "UNKNOWN"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"


class ReplicationAccess(StrEnum):
    """What a login may replicate: nothing, its tenant's database (logical), or the whole server, all tenants on it."""

    NONE = "none"
    DATABASE = "database"
    SERVER = "server"


class AuthMethod(StrEnum):
    """How a login may prove itself to the proxy."""

    SCRAM = "scram-sha-256"
    PASSWORD = "password"
    MD5 = "md5"
    CERT = "cert"


class VerifierSource(StrEnum):
    """Where the verifiers of a tenant's users are: in the registry alone, or on the tenant's server as well."""

    REGISTRY = "registry"
    SERVER = "server"


class ChannelBinding(StrEnum):
    """Whether logins to a server are bound to its TLS connection; the meanings are those of libpq's."""

    DISABLE = "disable"
    PREFER = "prefer"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class Secret:
    """A password or key that never shows itself in a repr, a log line or a traceback.

    Call `reveal()` at the last moment, where the bytes go to the server.
    """

    _value: str = field(repr=False)

    def reveal(self) -> str:
        return self._value

    def __str__(self) -> str:
        return "********"

    def __bool__(self) -> bool:
        return bool(self._value)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The role and password with which a backend logs in; the password is None where the server asks for none."""

    user: str
    password: Secret | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """One host (name, IP address, or the directory of a Unix socket when it begins with `/`) and port."""

    host: str
    port: int = 5432


@dataclass(frozen=True, slots=True)
class AuthQuery:
    """How a server is asked for the verifiers of its roles: as whom, in which database, by which query.

    The query has the role's name as `$1` and gives one row at most: the verifier, NULL for a role that may not log in,
    and, if there is a second column, the seconds for which it is valid, NULL for ever.
    """

    credentials: Credentials
    database: str = "postgres"
    query: str = DEFAULT_AUTH_QUERY


@dataclass(frozen=True, slots=True)
class TlsTerms:
    """How TLS is spoken with a server; see `ServerInfo`."""

    mode: TlsMode
    ca: str | None
    cert: str | None
    key: Secret | None
    negotiation: TlsNegotiation
    min_version: TlsVersion


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A physical PostgreSQL server as a node sees it.

    `max_connections` is the most backends this deployment may hold on it (the server's own limit less its
    reserve).  `addresses` are tried in order.  `tls_ca` is PEM text, or None for the system's store.  `tls_cert` is the
    certificate, with its chain, that the server is shown, and `tls_key` its key, both PEM.  `auth` None: it is not
    asked for verifiers.
    """

    server_id: int
    name: str
    addresses: tuple[Address, ...]
    max_connections: int = 90
    tls_mode: TlsMode = TlsMode.PREFER
    tls_ca: str | None = None
    draining: bool = False
    health: ServerHealth = ServerHealth.UNKNOWN
    channel_binding: ChannelBinding = ChannelBinding.PREFER
    auth: AuthQuery | None = None
    tls_cert: str | None = None
    tls_key: Secret | None = None
    tls_negotiation: TlsNegotiation = TlsNegotiation.POSTGRES
    tls_min_version: TlsVersion = TlsVersion.TLS_1_2
    protocol: ProtocolVersion = ProtocolVersion.V3_2

    @property
    def tls(self) -> TlsTerms:
        """How TLS is spoken with it."""
        return TlsTerms(
            self.tls_mode, self.tls_ca, self.tls_cert, self.tls_key, self.tls_negotiation, self.tls_min_version
        )

    def leads_where(self, other: ServerInfo) -> bool:
        """Whether a connection made for this server is as good for the other one."""
        return (self.server_id, self.addresses, self.tls, self.channel_binding, self.protocol) == (
            other.server_id,
            other.addresses,
            other.tls,
            other.channel_binding,
            other.protocol,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """A tenant's own limits; None means the node's default.  Times are seconds, 0 switches a time limit off.

    Opening a backend (`connect_timeout`) and logging in (`login_timeout`) always have a limit.  `weight` is for shares
    of a full server, which nodes do not count yet; so nobody can set it.
    """

    pool_size: int | None = None
    min_pool_size: int | None = None
    max_clients: int | None = None
    max_waiting: int | None = None
    weight: int | None = None
    queue_wait_timeout: float | None = None
    server_idle_timeout: float | None = None
    server_lifetime: float | None = None
    query_timeout: float | None = None
    transaction_timeout: float | None = None
    idle_transaction_timeout: float | None = None
    client_idle_timeout: float | None = None
    login_timeout: float | None = None
    connect_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a tenant's clients go.

    `generation` grows with every change that makes open backends of this tenant obsolete (another server,
    database, role or password); backends of an older generation die when released.  `server` and
    `database_name` are None for a tenant that has no database of its own: one that is `PENDING`, and one that has said
    that it is served from the shared database (`shared`), whose place the node puts in.  `verifiers` None is the
    node's default.  `networks` are those that clients may come from; empty: from anywhere.
    """

    tenant_id: int
    slug: str
    state: TenantState
    server: ServerInfo | None
    database_name: str | None
    role: Credentials | None
    generation: int
    aliases: tuple[str, ...] = ()
    pool_mode: PoolMode = PoolMode.TRANSACTION
    reset: ResetPolicy = ResetPolicy.AUTO
    session_state: SessionStatePolicy = SessionStatePolicy.PIN
    limits: Limits = Limits()
    verifiers: VerifierSource | None = None
    networks: tuple[Network, ...] = ()
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and verifier that may connect as one tenant, or as all (`tenant_id` None: support staff).

    `verifier` is PostgreSQL's own text form, `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
    `md5` maps each permitted spelling of the user name to `md5<hex>`; empty unless the login opted in.
    `role` overrides the route's backend role.  `certificate` is what a client's certificate must say for the method
    `cert`: a common name, or `dn:` and the whole subject as RFC 4514 writes it; None: `USER.TENANT`, or `USER` for
    all tenants, as common name.
    `source` SERVER: the login is no entry of the registry but a role of the tenant's server, with the verifier there.
    """

    login_id: int
    user: str
    tenant_id: int | None
    verifier: str = field(repr=False)
    methods: frozenset[AuthMethod] = frozenset({AuthMethod.SCRAM})
    md5: tuple[tuple[str, Secret], ...] = ()
    role: Credentials | None = None
    certificate: str | None = None
    source: VerifierSource = VerifierSource.REGISTRY
    replication: ReplicationAccess = ReplicationAccess.NONE


@dataclass(frozen=True, slots=True)
class Lookup(Generic[T_co]):
    """The answer to one look-up and the registry version in whose snapshot it was read."""

    version: int
    value: T_co


class ChangeKind(StrEnum):
    """What a change touched; EVERYTHING tells the node to forget all that it cached."""

    TENANT = "tenant"
    SERVER = "server"
    LOGIN = "login"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class RouteChange:
    """One entry of the change log.

    `key` is the id of the tenant, server or tenant-of-the-login that changed (None: all, or a login for all
    tenants).
    """

    version: int
    kind: ChangeKind
    key: int | None = None


class RegistryUnavailable(Exception):
    """The registry cannot be reached now; what is cached stays in force."""


class RegistryReader(Protocol):
    """What a node asks of the registry.  Every method raises `RegistryUnavailable` when it cannot be reached."""

    async def route_by_name(self, name: str) -> Lookup[Route | None]:
        """Find the tenant with this slug or alias."""
        ...

    async def route_by_id(self, tenant_id: int) -> Lookup[Route | None]:
        """Find the tenant with this id."""
        ...

    async def routes_by_database(self, database_name: str) -> Lookup[Sequence[Route]]:
        """Find the tenants on this physical database name; at most two are returned, enough to see ambiguity."""
        ...

    async def login(self, user: str, tenant_id: int) -> Lookup[Login | None]:
        """Find the tenant's login of this name, else the all-tenants login of this name."""
        ...

    async def logins_by_user(self, user: str) -> Lookup[Sequence[Login]]:
        """Find the logins of this name over all tenants; at most two, enough to see ambiguity."""
        ...

    async def mock_secret(self) -> bytes:
        """The registry-wide secret (32 bytes) from which the salts of unknown users are derived."""
        ...

    async def version(self) -> int:
        """The newest version of the registry."""
        ...

    def changes(self, *, after: int | None = None) -> AsyncIterator[Sequence[RouteChange]]:
        """Follow the change log, batch by batch, forever.

        With `after` None the first batch is one EVERYTHING change at the current version, once listening has
        begun.  Raises `RegistryUnavailable` from the iterator when the registry is lost; the caller re-enters
        with the last version it has seen.
        """
        ...

    async def reload(self) -> int:
        """Re-read now what the registry's feed would find at its next poll; returns the version."""
        ...
