"""Settings of the registry, and of how connections name their tenants."""

from __future__ import annotations

from typing import Literal

from pydantic import SecretStr

from proxy.settings.fields import Count, File, Names, Seconds, Section, fixed, live


class RoutingSettings(Section):
    """How a connection names its tenant."""

    order: tuple[Literal["sni", "options", "user", "database"], ...] = live(
        default=("sni", "options", "user", "database"),
        strict=False,
        min_length=1,
        description="Selectors that count, the deciding one first.",
    )
    sni_patterns: Names = live(default=(), description='Host names that name a tenant: "{tenant}.db.example.com".')
    option_names: Names = live(
        default=("tenant", "pgtenant.tenant"),
        description='Startup options that name a tenant: options="-c tenant=acme".',
    )
    user_separator: str = live(
        default=".", max_length=8, description='What divides user and tenant in "app.acme"; empty for none.'
    )
    database_patterns: Names = live(default=(), description='Database names that name a tenant: "db_{tenant}".')
    physical_databases: bool = live(
        default=True, description="Let a database's name on its server stand for the tenant where only one has it."
    )
    reveal_tenants: bool = live(
        default=False, description="Tell strangers that a tenant is unknown or suspended, before they have logged in."
    )
    shared_tenant: str | None = live(
        default=None,
        description="Slug of the tenant whose database serves those that say so, having none of their own (--shared).",
    )
    cached_routes: Count = live(default=100_000, description="Tenants remembered at most.")
    cached_logins: Count = live(default=100_000, description="Logins remembered at most.")
    unknown_ttl: Seconds = live(default=5.0, description="Seconds for which an unknown name is remembered as unknown.")
    lookup_timeout: Seconds = live(default=2.0, gt=0, description="Seconds after which the registry counts as down.")
    snapshot: File | None = fixed(
        default=None,
        description="File that remembers routes for a start while the registry is down; sealed with the key ring.",
    )


class RegistrySettings(Section):
    """Where servers, tenants and logins are kept."""

    url: SecretStr = fixed(
        default=SecretStr("sqlite:///pgtenant.db"),
        description="sqlite:///FILE, or postgresql://user@host/database for all nodes to share.",
    )
    encryption_keys_file: File | None = live(
        default=None,
        description="File with the keys that seal the registry's secrets, in the form of PGTENANT_ENCRYPTION_KEYS or a "
        "line each, first those that seal; others than its owner may not read it. The variable's keys count as well.",
    )
    poll_interval: Seconds = fixed(default=0.5, gt=0, le=60, description="Seconds between two looks for changes.")
