"""Settings of how a node is watched and run: HTTP, console, log, event loop, end."""

from __future__ import annotations

from typing import Literal

from pydantic import SecretStr, model_validator

from proxy.settings.fields import Count, File, Port, Seconds, Section, Verifiers, fixed, live


class HttpSettings(Section):
    """The HTTP endpoint: /metrics, /healthz, /readyz, /reload."""

    enabled: bool = fixed(default=True, description="Whether to serve HTTP at all.")
    host: str = fixed(default="127.0.0.1", description="Address of the HTTP endpoint.")
    port: Port = fixed(default=6480, description="Port of the HTTP endpoint; 0 takes any free one.")
    admin_token: SecretStr | None = live(
        default=None,
        min_length=1,
        description="Bearer token that POST /reload asks for; without one it is refused. Prefer admin_token_file.",
    )
    admin_token_file: File | None = live(default=None, description="File whose first line is the admin token.")
    metrics_tenants: Count = live(
        default=200, description="Tenants with series of their own on /metrics, the busiest; all others share one."
    )


class ConsoleSettings(Section):
    """The console: SHOW with any PostgreSQL client; off while it has no users."""

    database: str = live(
        default="pgtenant",
        min_length=1,
        max_length=63,
        description="Database name that its users connect to, on the port of all clients; no tenant may be called so.",
    )
    admins: Verifiers = live(
        default={},
        description="Users who may look and RELOAD, each with a verifier as `pgtenant secrets verifier` prints it: "
        '{ ann = "SCRAM-SHA-256$..." }.',
    )
    stats: Verifiers = live(default={}, description="Users who may only look, in the same way.")
    max_sessions: Count = live(
        default=16,
        description="Sessions at once; they do not count as clients. A quarter of them is kept for admins.",
    )
    idle_timeout: Seconds = live(
        default=3600.0, description="Seconds after which a session that asks nothing is ended; 0 is never."
    )

    @model_validator(mode="after")
    def _users_are_distinct(self) -> ConsoleSettings:
        both = sorted(self.admins.keys() & self.stats.keys())
        if both:
            raise ValueError(f'user "{both[0]}" is both among admins and among stats')
        return self


class RelaySettings(Section):
    """The event loop."""

    budget_ms: float = live(
        default=1.5,
        gt=0,
        le=100,
        description="Milliseconds of relay work after which logins and timers have their turn.",
    )


class LogSettings(Section):
    """What is logged, to standard error."""

    format: Literal["console", "json"] = live(default="console", description="console for people, json for machines.")
    level: Literal["debug", "info", "warning", "error"] = live(
        default="info", description="The least level that is logged."
    )
    lines_per_second: int = live(
        default=100,
        ge=0,
        le=1_000_000,
        description="Lines a second that are written of each event that clients can cause, such as client connected; "
        "the others are counted. 0: all are written, as an audit of connections needs.",
    )


class ShutdownSettings(Section):
    """The end of a node, on SIGTERM or Ctrl-C."""

    grace: Seconds = live(default=30.0, description="Seconds that transactions in flight have to finish.")


class NodeSettings(Section):
    """One process among others."""

    id: int = fixed(default=1, ge=0, le=126, description="Number of this node, part of its clients' cancel keys.")
