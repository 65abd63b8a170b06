"""The settings of a node: one frozen model per section of `pgtenant.toml`, each field with its explanation.

`configs/pgtenant.toml` is made from these models, so what a field's description says here is what operators read.  A
value is taken from the environment (`PGTENANT_POOL__POOL_SIZE=50`), else from the file, else the default is in
force.  Times are seconds; 0 switches a time limit off where the description says so.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, model_validator

ENV_PREFIX: Final = "PGTENANT_"
"""Variables `PGTENANT_<SECTION>__<NAME>` override the file."""

REGISTRY_VARIABLE: Final = "PGTENANT_REGISTRY"
"""The registry's URL, for a node as for the commands that change it."""

_PLAIN_NAME: Final = re.compile(r"[\w.@-]{1,63}")

Setting = tuple[str, str]
"""A setting's section and name."""

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
# Models are strict, so that a string is no number and a number no switch; these are written as strings and lists.
File = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Verifiers = dict[Annotated[str, Field(min_length=1, max_length=63)], SecretStr]


class SettingsError(Exception):
    """The settings cannot be used; the text says where and why, `hint` what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class ListenSettings(_Section):
    """Where clients connect, and what a login is held to."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; * is every address of this machine.")
    port: Port = Field(default=6432, description="Port for PostgreSQL clients; 0 takes any free one.")
    backlog: Count = Field(default=1024, description="Connections that may wait in the system's queue to be accepted.")
    accepts_per_turn: Count = Field(default=8, description="Connections accepted in one turn of the event loop.")
    max_logins: Count = Field(default=10_000, description="Logins under way at once; more wait in the backlog.")
    max_clients: Count = Field(default=10_000, description="Clients connected at once, over all tenants.")
    login_timeout: Seconds = Field(default=60.0, gt=0, description="Seconds within which a login must be complete.")
    startup_max_bytes: int = Field(
        default=10_000,
        ge=256,
        le=10_000,
        description="Bytes that a startup packet may have before the client is known.",
    )
    tls_mode: Literal["off", "allow", "require", "verify-ca", "verify-full"] = Field(
        default="off",
        description="TLS with clients: off, allow (the client decides), require, verify-ca (and a client certificate "
        "that tls_client_ca has signed) or verify-full (which also names the login).",
    )
    tls_cert: File | None = Field(default=None, description="PEM file with this proxy's certificate and its chain.")
    tls_key: File | None = Field(default=None, description="PEM file with the certificate's private key.")
    tls_certs: Names = Field(
        default=(),
        description="Further certificates for clients that ask for one of their host names (SNI): FILE with "
        "certificate and key, or CERT:KEY.",
    )
    tls_client_ca: File | None = Field(
        default=None, description="PEM file with the authorities whose client certificates are believed."
    )
    tls_client_crl: File | None = Field(
        default=None, description="PEM file with the revocation list of each authority in tls_client_ca."
    )
    tls_min_version: Literal["1.2", "1.3"] = Field(default="1.2", description="Oldest version of TLS with clients.")
    proxy_protocol: Literal["off", "require"] = Field(
        default="off",
        description="Whether load balancers tell the client's address (PROXY protocol, version 1 or 2); require "
        "refuses connections without it.",
    )
    proxy_networks: Names = Field(
        default=(), description='Networks of the load balancers, which alone may connect then: "10.0.0.0/8".'
    )
    allow_cleartext_password: bool = Field(
        default=False,
        description="Let logins with the method `password` send it without TLS; for trusted networks only.",
    )
    trust: bool = Field(
        default=False, description="Let every known login in without any proof; for tests on one machine only."
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ListenSettings:
        if self.tls_mode != "off" and (self.tls_cert is None or self.tls_key is None):
            raise ValueError(f'tls_mode = "{self.tls_mode}" needs tls_cert and tls_key')
        if self.tls_mode in {"verify-ca", "verify-full"} and self.tls_client_ca is None:
            raise ValueError(f'tls_mode = "{self.tls_mode}" needs tls_client_ca')
        if self.tls_client_crl is not None and self.tls_client_ca is None:
            raise ValueError("tls_client_crl needs tls_client_ca")
        return self

    @property
    def trusted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of the load balancers; raises ValueError for what is no network."""
        return tuple(ip_network(network) for network in self.proxy_networks)

    @model_validator(mode="after")
    def _load_balancers_are_known(self) -> ListenSettings:
        try:
            networks = self.trusted_networks
        except ValueError as error:
            raise ValueError(f"proxy_networks: {error}") from None
        if self.proxy_protocol == "require" and not networks:
            raise ValueError('proxy_protocol = "require" needs proxy_networks')
        return self


class HttpSettings(_Section):
    """The HTTP endpoint: /metrics, /healthz, /readyz, /reload."""

    enabled: bool = Field(default=True, description="Whether to serve HTTP at all.")
    host: str = Field(default="127.0.0.1", description="Address of the HTTP endpoint.")
    port: Port = Field(default=6480, description="Port of the HTTP endpoint; 0 takes any free one.")
    admin_token: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="Bearer token that POST /reload asks for; without one it is refused. Prefer admin_token_file.",
    )
    admin_token_file: File | None = Field(default=None, description="File whose first line is the admin token.")


class ConsoleSettings(_Section):
    """The console: SHOW with any PostgreSQL client; off while it has no users."""

    database: str = Field(
        default="pgtenant",
        min_length=1,
        max_length=63,
        description="Database name that its users connect to, on the port of all clients; no tenant may be called so.",
    )
    admins: Verifiers = Field(
        default={},
        description="Users who may look and RELOAD, each with a verifier as `pgtenant secrets verifier` prints it: "
        '{ ann = "SCRAM-SHA-256$..." }.',
    )
    stats: Verifiers = Field(default={}, description="Users who may only look, in the same way.")
    max_sessions: Count = Field(default=16, description="Sessions at once; they do not count as clients.")

    @model_validator(mode="after")
    def _users_are_distinct(self) -> ConsoleSettings:
        both = sorted(self.admins.keys() & self.stats.keys())
        if both:
            raise ValueError(f'user "{both[0]}" is both among admins and among stats')
        return self


class PoolSettings(_Section):
    """How many backends there may be, and how long they live; tenants may have limits of their own."""

    pool_size: Count = Field(default=20, description="Backends of one tenant at most.")
    max_prepared_statements: int = Field(
        default=200,
        ge=0,
        le=100_000,
        description="Statements prepared in one backend at most for the clients that share it; 0: they pin.",
    )
    min_pool_size: int = Field(
        default=0, ge=0, description="Backends of an active tenant that are kept open when idle."
    )
    max_clients: Count = Field(default=1_000, description="Clients of one tenant at most.")
    max_waiting: int = Field(default=1_000, ge=0, description="Clients of one tenant that may wait for a backend.")
    max_backends: Count = Field(default=1_000, description="Backends of this node at most, over all servers.")
    max_connecting: Count = Field(default=8, description="Backends being opened at once on one server.")
    queue_wait_timeout: Seconds = Field(
        default=120.0, description="Seconds a client waits for a backend; 0 is for ever."
    )
    cross_tenant_wait: Seconds = Field(
        default=0.1, description="Seconds after which the oldest waiter of any tenant wins at a server's cap."
    )
    server_idle_timeout: Seconds = Field(
        default=600.0, description="Seconds until an idle backend is closed; 0 is never."
    )
    server_lifetime: Seconds = Field(
        default=3_600.0, description="Seconds after which a backend is replaced; 0 is never."
    )
    lifetime_jitter: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of server_lifetime by which lifetimes differ, so that not all end at once.",
    )
    query_timeout: Seconds = Field(
        default=0.0, description="Seconds after which a request is cancelled on its server; 0 is never."
    )
    transaction_timeout: Seconds = Field(
        default=0.0, description="Seconds that a transaction may last before its session is ended; 0 is no limit."
    )
    idle_transaction_timeout: Seconds = Field(
        default=0.0,
        description="Seconds that a client may leave its server waiting within a transaction; 0 is no limit.",
    )
    client_idle_timeout: Seconds = Field(
        default=0.0, description="Seconds that a client may do nothing between transactions; 0 is no limit."
    )
    connect_timeout: Seconds = Field(default=15.0, gt=0, description="Seconds that opening a backend may take.")
    retry_first: Seconds = Field(
        default=0.2, gt=0, description="Seconds before a server that failed is tried again; doubles."
    )
    retry_most: Seconds = Field(default=15.0, gt=0, description="Seconds that doubling ends at.")
    linger: Seconds = Field(
        default=5.0, description="Seconds after which a backend that does not close counts as lingering."
    )
    cancel_wait: Seconds = Field(default=10.0, gt=0, description="Seconds that a cancel request to a server may take.")
    max_cancels: Count = Field(default=32, description="Cancel requests under way at once on one server.")

    @model_validator(mode="after")
    def _caps_fit(self) -> PoolSettings:
        if self.pool_size > self.max_backends:
            raise ValueError(f"pool_size ({self.pool_size}) is above max_backends ({self.max_backends})")
        if self.min_pool_size > self.pool_size:
            raise ValueError(f"min_pool_size ({self.min_pool_size}) is above pool_size ({self.pool_size})")
        if self.retry_first > self.retry_most:
            raise ValueError(f"retry_first ({self.retry_first:g}) is above retry_most ({self.retry_most:g})")
        return self


class AuthSettings(_Section):
    """How clients prove who they are, and what becomes of those who cannot."""

    verifiers: Literal["registry", "server"] = Field(
        default="registry",
        description="Where verifiers are of tenants that do not say: in the registry alone, or, for users who have no "
        "login there, on the tenant's own server, if it has an auth role.",
    )
    verifier_ttl: Seconds = Field(
        default=10.0, description="Seconds for which a server's verifier is used without asking it again."
    )
    unknown_ttl: Seconds = Field(
        default=5.0, description="Seconds for which a role is remembered as one that the server does not let in."
    )
    verifier_timeout: Seconds = Field(
        default=5.0, gt=0, description="Seconds that asking a server for a verifier may take."
    )
    idle_timeout: Seconds = Field(
        default=30.0, gt=0, description="Seconds after which the connection for asking a server is closed."
    )
    cached_verifiers: Count = Field(default=20_000, description="Verifiers of servers remembered at most.")
    cached_keys: Count = Field(
        default=10_000, description="Keys of clients remembered at most, in memory only, for logging in as their role."
    )
    channel_binding: bool = Field(
        default=True,
        description="Whether clients over TLS are offered SCRAM-SHA-256-PLUS, which binds a login to its connection.",
    )
    failure_delay: Seconds = Field(
        default=0.1,
        description="Seconds that an attempt waits after some failures of the same login from the same address; "
        "doubles with each; 0 is never.",
    )
    failure_delay_most: Seconds = Field(default=5.0, description="Seconds that doubling ends at.")
    failure_memory: Seconds = Field(
        default=300.0, description="Seconds after the last failure until all are forgotten."
    )

    @model_validator(mode="after")
    def _delays_fit(self) -> AuthSettings:
        if self.failure_delay > self.failure_delay_most:
            raise ValueError(
                f"failure_delay ({self.failure_delay:g}) is above failure_delay_most ({self.failure_delay_most:g})"
            )
        return self


class RoutingSettings(_Section):
    """How a connection names its tenant."""

    order: tuple[Literal["sni", "options", "user", "database"], ...] = Field(
        default=("sni", "options", "user", "database"),
        strict=False,
        min_length=1,
        description="Selectors that count, the deciding one first.",
    )
    sni_patterns: Names = Field(default=(), description='Host names that name a tenant: "{tenant}.db.example.com".')
    option_names: Names = Field(
        default=("tenant", "pgtenant.tenant"),
        description='Startup options that name a tenant: options="-c tenant=acme".',
    )
    user_separator: str = Field(
        default=".", max_length=8, description='What divides user and tenant in "app.acme"; empty for none.'
    )
    database_patterns: Names = Field(default=(), description='Database names that name a tenant: "db_{tenant}".')
    physical_databases: bool = Field(
        default=True, description="Let a database's name on its server stand for the tenant where only one has it."
    )
    reveal_tenants: bool = Field(
        default=False, description="Tell strangers that a tenant is unknown or suspended, before they have logged in."
    )
    shared_tenant: str | None = Field(
        default=None,
        description="Slug of the tenant whose database serves tenants that are PENDING, having none of their own.",
    )
    cached_routes: Count = Field(default=100_000, description="Tenants remembered at most.")
    cached_logins: Count = Field(default=100_000, description="Logins remembered at most.")
    unknown_ttl: Seconds = Field(default=5.0, description="Seconds for which an unknown name is remembered as unknown.")
    lookup_timeout: Seconds = Field(default=2.0, gt=0, description="Seconds after which the registry counts as down.")
    snapshot: File | None = Field(
        default=None,
        description="File that remembers routes for a start while the registry is down; sealed with the key ring.",
    )


class RegistrySettings(_Section):
    """Where servers, tenants and logins are kept."""

    url: SecretStr = Field(
        default=SecretStr("sqlite:///pgtenant.db"),
        description="sqlite:///FILE, or postgresql://user@host/database for all nodes to share.",
    )
    poll_interval: Seconds = Field(default=0.5, gt=0, le=60, description="Seconds between two looks for changes.")


class RelaySettings(_Section):
    """The event loop."""

    budget_ms: float = Field(
        default=1.5,
        gt=0,
        le=100,
        description="Milliseconds of relay work after which logins and timers have their turn.",
    )


class LogSettings(_Section):
    """What is logged, to standard error."""

    format: Literal["console", "json"] = Field(default="console", description="console for people, json for machines.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )


class ShutdownSettings(_Section):
    """The end of a node, on SIGTERM or Ctrl-C."""

    grace: Seconds = Field(default=30.0, description="Seconds that transactions in flight have to finish.")


class NodeSettings(_Section):
    """One process among others."""

    id: int = Field(default=1, ge=0, le=126, description="Number of this node, part of its clients' cancel keys.")


class Settings(_Section):
    """All of `pgtenant.toml`."""

    listen: ListenSettings = ListenSettings()
    http: HttpSettings = HttpSettings()
    console: ConsoleSettings = ConsoleSettings()
    auth: AuthSettings = AuthSettings()
    pool: PoolSettings = PoolSettings()
    routing: RoutingSettings = RoutingSettings()
    registry: RegistrySettings = RegistrySettings()
    relay: RelaySettings = RelaySettings()
    log: LogSettings = LogSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    node: NodeSettings = NodeSettings()


def load_settings(path: Path | None, env: Mapping[str, str] = os.environ) -> Settings:
    """Read the file, if there is one, and the environment; raises SettingsError."""
    data = {} if path is None else _read(path)
    found = _from_environment(env)
    for setting, variable in found.items():
        section, name = setting
        values = data.setdefault(section, {})
        if isinstance(values, dict):
            values[name] = _parsed(setting, env[variable])
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise _explained(error, "the settings" if path is None else str(path), found) from None


def admin_token(settings: Settings) -> str | None:
    """The admin token, from the settings or its file; raises SettingsError when the file has none."""
    http = settings.http
    if http.admin_token is not None:
        return http.admin_token.get_secret_value()
    if http.admin_token_file is None:
        return None
    try:
        token = http.admin_token_file.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(
            f"http.admin_token_file {http.admin_token_file} cannot be read: {reason}",
            "Check that the file exists and that this user may read it.",
        ) from None
    if not token:
        raise SettingsError(
            f"http.admin_token_file {http.admin_token_file} has no token in its first line",
            "Write a long random word into it, or leave admin_token_file out to switch reloading over HTTP off.",
        )
    return token


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"settings file {path} cannot be read: {error.strerror}",
            "Give the right path with --config, or leave it out to run with the defaults.",
        ) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"settings file {path} is not TOML: {error}",
            "Compare it with configs/pgtenant.toml, which has every setting.",
        ) from None


def _from_environment(env: Mapping[str, str]) -> dict[Setting, str]:
    """Find the settings among the variables; returns the variable of each."""
    found: dict[Setting, str] = {}
    if env.get(REGISTRY_VARIABLE):
        found["registry", "url"] = REGISTRY_VARIABLE
    for variable in env:
        section, divider, name = variable.removeprefix(ENV_PREFIX).lower().partition("__")
        if not variable.startswith(ENV_PREFIX) or not divider:
            continue
        if section not in Settings.model_fields:
            raise SettingsError(f"environment variable {variable}: {_no_such((section,))}", _names_like((section,)))
        found[section, name] = variable
    return found


def _parsed(setting: Setting, text: str) -> object:
    """Read a variable as its setting's kind of value, lists with commas; what is no such value is refused later.

    Tables are lists of `name=value`.
    """
    section, name = setting
    field = _model_of(section).model_fields.get(name)
    if field is None:
        return text
    default = field.default
    if isinstance(default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(default, dict):
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        # What is no name may be a secret that was put in its place, and errors tell names.
        named = all(sign and _PLAIN_NAME.fullmatch(name.strip()) for name, sign, _ in pairs)
        return {key.strip(): value.strip() for key, _, value in pairs} if named else text
    if not isinstance(default, int | float):
        return text
    try:
        return TypeAdapter(type(default)).validate_strings(text.strip())
    except ValidationError:
        return text


def _explained(error: ValidationError, origin: str, variables: Mapping[Setting, str]) -> SettingsError:
    """Say in one sentence what is wrong with the first setting that is."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = tuple(str(part) for part in first["loc"])
    variable = variables.get((where[0], where[1])) if len(where) > 1 else None
    source = origin if variable is None else f"environment variable {variable}"
    if first["type"] == "extra_forbidden":
        return SettingsError(f"{source}: {_no_such(where)}", _names_like(where))
    if first["type"] == "model_type":
        return SettingsError(f"{source}: {where[0]} is a section", f"Write [{where[0]}] and its settings below it.")
    more = error.error_count() - 1
    also = f" (and {more} more)" if more else ""
    return SettingsError(
        f"{source}: {'.'.join(where)}: {first['msg'].removeprefix('Value error, ')}{also}",
        "configs/pgtenant.toml explains every setting; environment variables PGTENANT_<SECTION>__<NAME> override it.",
    )


def _no_such(where: tuple[str, ...]) -> str:
    return f"there is no setting {'.'.join(where)}"


def _names_like(where: tuple[str, ...]) -> str:
    names = sorted(Settings.model_fields if len(where) == 1 else _model_of(where[0]).model_fields)
    close = difflib.get_close_matches(where[-1], names, n=1)
    return f"Did you mean {close[0]}?" if close else f"It may be one of: {', '.join(names)}."


def _model_of(section: str) -> type[BaseModel]:
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model
