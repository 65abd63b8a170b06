"""Settings of what clients meet: where they connect, and how they prove who they are."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal, TypeAlias

from pydantic import model_validator

from proxy.settings.fields import Count, File, Names, Port, Seconds, Section, fixed, live

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]


class ListenSettings(Section):
    """Where clients connect, and what a login is held to."""

    host: str = fixed(default="127.0.0.1", description="Address to listen on; * is every address of this machine.")
    port: Port = fixed(default=6432, description="Port for PostgreSQL clients; 0 takes any free one.")
    backlog: Count = live(default=1024, description="Connections that may wait in the system's queue to be accepted.")
    accepts_per_turn: Count = live(default=8, description="Connections accepted in one turn of the event loop.")
    max_logins: Count = live(default=10_000, description="Logins under way at once; more queue.")
    max_logins_per_address: Count = live(
        default=1_000,
        description="Of those, logins from one address (of IPv6: the first 64 bits), and never more than a quarter.",
    )
    max_queued_logins: Count = live(
        default=10_000,
        description="Connections that may queue for their login, half of them from one address; more are refused.",
    )
    max_tls_handshakes: Count = live(
        default=250, description="TLS handshakes under way at once, a quarter of them from one address; more queue."
    )
    trusted_networks: Names = live(
        default=(),
        description='Networks of application hosts that may have any number of logins under way: "10.1.0.0/16".',
    )
    max_clients: Count = live(default=10_000, description="Clients connected at once, over all tenants.")
    login_timeout: Seconds = live(default=60.0, gt=0, description="Seconds within which a login must be complete.")
    startup_max_bytes: int = live(
        default=10_000,
        ge=256,
        le=10_000,
        description="Bytes that a startup packet may have before the client is known.",
    )
    tls_mode: Literal["off", "allow", "require", "verify-ca", "verify-full"] = live(
        default="off",
        description="TLS with clients: off, allow (the client decides), require, verify-ca (and a client certificate "
        "that tls_client_ca has signed) or verify-full (which also names the login).",
    )
    tls_cert: File | None = live(default=None, description="PEM file with this proxy's certificate and its chain.")
    tls_key: File | None = live(default=None, description="PEM file with the certificate's private key.")
    tls_certs: Names = live(
        default=(),
        description="Further certificates for clients that ask for one of their host names (SNI): FILE with "
        "certificate and key, or CERT:KEY.",
    )
    tls_client_ca: File | None = live(
        default=None, description="PEM file with the authorities whose client certificates are believed."
    )
    tls_client_crl: File | None = live(
        default=None, description="PEM file with the revocation list of each authority in tls_client_ca."
    )
    tls_min_version: Literal["1.2", "1.3"] = live(default="1.2", description="Oldest version of TLS with clients.")
    proxy_protocol: Literal["off", "require"] = live(
        default="off",
        description="Whether load balancers tell the client's address (PROXY protocol, version 1 or 2); require "
        "refuses connections without it.",
    )
    proxy_networks: Names = live(
        default=(), description='Networks of the load balancers, which alone may connect then: "10.0.0.0/8".'
    )
    allow_cleartext_password: bool = live(
        default=False,
        description="Let logins with the method `password` send it without TLS; for trusted networks only.",
    )
    trust: bool = live(
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
    def load_balancers(self) -> Networks:
        """`proxy_networks`, read."""
        return _networks("proxy_networks", self.proxy_networks)

    @property
    def trusted(self) -> Networks:
        """`trusted_networks`, read."""
        return _networks("trusted_networks", self.trusted_networks)

    @model_validator(mode="after")
    def _networks_are_known(self) -> ListenSettings:
        networks, _ = self.load_balancers, self.trusted
        if self.proxy_protocol == "require" and not networks:
            raise ValueError('proxy_protocol = "require" needs proxy_networks')
        return self


def _networks(setting: str, texts: tuple[str, ...]) -> Networks:
    """Read networks; raises ValueError for what is none."""
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


class AuthSettings(Section):
    """How clients prove who they are, and what becomes of those who cannot."""

    verifiers: Literal["registry", "server"] = live(
        default="registry",
        description="Where verifiers are of tenants that do not say: in the registry alone, or, for users who have no "
        "login there, on the tenant's own server, if it has an auth role.",
    )
    verifier_ttl: Seconds = live(
        default=10.0, description="Seconds for which a server's verifier is used without asking it again."
    )
    unknown_ttl: Seconds = live(
        default=5.0, description="Seconds for which a role is remembered as one that the server does not let in."
    )
    verifier_timeout: Seconds = live(
        default=5.0, gt=0, description="Seconds that asking a server for a verifier may take."
    )
    idle_timeout: Seconds = live(
        default=30.0, gt=0, description="Seconds after which the connection for asking a server is closed."
    )
    cached_verifiers: Count = live(default=20_000, description="Verifiers of servers remembered at most.")
    cached_keys: Count = live(
        default=10_000, description="Keys of clients remembered at most, in memory only, for logging in as their role."
    )
    channel_binding: bool = live(
        default=True,
        description="Whether clients over TLS are offered SCRAM-SHA-256-PLUS, which binds a login to its connection.",
    )
    failure_delay: Seconds = live(
        default=0.1,
        description="Seconds that an attempt waits after some failures of the same login from the same address; "
        "doubles with each; 0 is never.",
    )
    failure_delay_most: Seconds = live(default=5.0, description="Seconds that doubling ends at.")
    failure_memory: Seconds = live(default=300.0, description="Seconds after the last failure until all are forgotten.")

    @model_validator(mode="after")
    def _delays_fit(self) -> AuthSettings:
        if self.failure_delay > self.failure_delay_most:
            raise ValueError(
                f"failure_delay ({self.failure_delay:g}) is above failure_delay_most ({self.failure_delay_most:g})"
            )
        return self
