"""What the parts of a node are told, made from its settings."""

from __future__ import annotations

from pathlib import Path

from proxy.admin.console import ConsoleRules, ConsoleUser, Right
from proxy.auth import ScramVerifier, Slowdown, VerifierError
from proxy.net.admission import Admission, Admissions
from proxy.net.auth_query import AskSettings
from proxy.net.client_handshake import AuthPolicy, GreetPolicy
from proxy.net.client_tls import CertificateFiles, ClientTls, ClientTlsConfig, ClientTlsMode
from proxy.net.descriptors import Shares
from proxy.net.dialer import DialSettings
from proxy.net.front_door import DoorSettings
from proxy.net.places import UNBOUNDED, PlaceLimits
from proxy.net.real_address import ProxyPolicy
from proxy.net.tls import TLS_VERSIONS
from proxy.observability.http import MAX_CONNECTIONS, MAX_REFUSALS
from proxy.pool.tenancy import Defaults
from proxy.routing.cache import CacheLimits
from proxy.routing.names import NameRules, name_rules
from proxy.routing.resolver import ResolverConfig
from proxy.routing.server_logins import ServerLoginLimits
from proxy.settings import Settings, SettingsError
from registry.contract import TlsVersion, VerifierSource


def client_tls(settings: Settings) -> ClientTls | None:
    """TLS with clients, None where it is off; raises TlsConfigError."""
    listen = settings.listen
    if listen.tls_mode == "off" or listen.tls_cert is None or listen.tls_key is None:
        return None
    config = ClientTlsConfig(
        CertificateFiles(listen.tls_cert, listen.tls_key),
        tuple(_certificate_files(one) for one in listen.tls_certs),
        ClientTlsMode(listen.tls_mode),
        listen.tls_client_ca,
        TLS_VERSIONS[TlsVersion(listen.tls_min_version)],
        listen.tls_client_crl,
    )
    return ClientTls(config)


def _certificate_files(text: str) -> CertificateFiles:
    """Read `FILE`, which has both, or `CERT:KEY`."""
    cert, divider, key = text.partition(":")
    return CertificateFiles(Path(cert), Path(key if divider else cert))


def rules_of(settings: Settings) -> NameRules:
    """How connections spell tenants; raises SettingsError for a pattern that cannot be used."""
    routing = settings.routing
    try:
        return name_rules(
            order=routing.order,
            sni_patterns=routing.sni_patterns,
            option_names=routing.option_names,
            user_separator=routing.user_separator,
            database_patterns=routing.database_patterns,
            physical_databases=routing.physical_databases,
        )
    except ValueError as error:
        raise SettingsError(
            f"routing: {error}",
            'A pattern has {tenant} once, as in "db_{tenant}"; a selector stands in the order once.',
        ) from None


def resolver_config(settings: Settings) -> ResolverConfig:
    """How the resolver remembers and what it tells strangers."""
    routing = settings.routing
    limits = CacheLimits(tenants=routing.cached_routes, logins=routing.cached_logins, negative_ttl=routing.unknown_ttl)
    return ResolverConfig(
        limits=limits,
        reveal_tenants=routing.reveal_tenants,
        shared_tenant=routing.shared_tenant,
        verifiers=VerifierSource(settings.auth.verifiers),
        lookup_timeout=routing.lookup_timeout,
    )


def server_login_limits(settings: Settings) -> ServerLoginLimits:
    """How long and how many verifiers of servers are remembered."""
    auth = settings.auth
    return ServerLoginLimits(auth.verifier_ttl, auth.unknown_ttl, auth.cached_verifiers)


def console_rules(settings: Settings) -> ConsoleRules | None:
    """Who may use the console, None where it is off; raises SettingsError for what is no verifier."""
    console = settings.console
    users: dict[str, ConsoleUser] = {}
    for right, setting, verifiers in ((Right.ORDER, "admins", console.admins), (Right.LOOK, "stats", console.stats)):
        for name, verifier in verifiers.items():
            try:
                users[name] = ConsoleUser(name, right, ScramVerifier.parse(verifier.get_secret_value()))
            except VerifierError as error:
                raise SettingsError(
                    f"console.{setting}.{name}: {error}",
                    "`pgtenant secrets verifier` makes one from a password; the password itself is not kept anywhere.",
                ) from None
    return ConsoleRules(console.database, users, console.max_sessions, console.idle_timeout) if users else None


def ask_settings(settings: Settings) -> AskSettings:
    """How servers are asked for verifiers."""
    return AskSettings(settings.auth.verifier_timeout, settings.auth.idle_timeout)


def defaults_of(settings: Settings) -> Defaults:
    """The limits of tenants that have none of their own."""
    pool = settings.pool
    return Defaults(
        pool_size=pool.pool_size,
        min_pool_size=pool.min_pool_size,
        max_clients=pool.max_clients,
        max_waiting=pool.max_waiting,
        queue_wait_timeout=pool.queue_wait_timeout,
        server_idle_timeout=pool.server_idle_timeout,
        server_lifetime=pool.server_lifetime,
        query_timeout=pool.query_timeout,
        transaction_timeout=pool.transaction_timeout,
        idle_transaction_timeout=pool.idle_transaction_timeout,
        client_idle_timeout=pool.client_idle_timeout,
        connect_timeout=pool.connect_timeout,
    )


def dial_settings(settings: Settings) -> DialSettings:
    """How backends are opened."""
    pool = settings.pool
    return DialSettings(
        retry_first=pool.retry_first,
        retry_most=pool.retry_most,
        lifetime_jitter=pool.lifetime_jitter,
        cancel_wait=pool.cancel_wait,
        max_cancels=pool.max_cancels,
        # Without sharing they hold none; a client from before a reload that ended it still finds room for one.
        max_statements=max(1, pool.max_prepared_statements),
    )


def wanted_descriptors(settings: Settings) -> Shares:
    """The descriptors that a node would take if everything was as full as its settings allow."""
    listen = settings.listen
    http = MAX_CONNECTIONS + MAX_REFUSALS if settings.http.enabled else 0
    return Shares(
        clients=listen.max_clients,
        logins=listen.max_logins,
        queued=listen.max_queued_logins,
        backends=settings.pool.max_backends,
        aside=http + settings.console.max_sessions,
    )


def login_limits(settings: Settings, shares: Shares) -> PlaceLimits:
    """How many logins there may be under way."""
    return PlaceLimits(shares.logins, settings.listen.max_logins_per_address, shares.queued)


def handshake_limits(settings: Settings) -> PlaceLimits:
    """How many TLS handshakes there may be under way; all logins may wait for theirs."""
    most = settings.listen.max_tls_handshakes
    return PlaceLimits(most, most, queue=UNBOUNDED)


def admissions_of(settings: Settings, shares: Shares) -> Admissions:
    """What clients have to wait for."""
    trusted = settings.listen.trusted
    return Admissions(
        Admission("logins", login_limits(settings, shares), trusted=trusted),
        Admission("TLS handshakes", handshake_limits(settings), trusted=trusted),
    )


def door_settings(settings: Settings, tls: ClientTls | None, shares: Shares) -> DoorSettings:
    """What every login is held to."""
    listen, auth = settings.listen, settings.auth
    return DoorSettings(
        login_timeout=listen.login_timeout,
        max_clients=shares.clients,
        node_id=settings.node.id,
        greet=GreetPolicy(tls, listen.startup_max_bytes),
        auth=AuthPolicy(
            allow_cleartext=listen.allow_cleartext_password,
            trust=listen.trust,
            channel_binding=auth.channel_binding,
        ),
        slowdown=Slowdown(
            first=auth.failure_delay,
            # Somebody who has waited must still have the time to log in.
            most=min(auth.failure_delay_most, listen.login_timeout / 2),
            forget=auth.failure_memory,
        ),
        shares_statements=settings.pool.max_prepared_statements > 0,
        real_pids=settings.pool.real_pids,
        proxied=ProxyPolicy(listen.load_balancers) if listen.proxy_protocol == "require" else None,
    )
