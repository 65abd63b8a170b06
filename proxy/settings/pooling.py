"""Settings of the backends: how many, for how long, and when a wait or a request is over."""

from __future__ import annotations

from pydantic import model_validator

from proxy.settings.fields import Count, Seconds, Section, live


class PoolSettings(Section):
    """How many backends there may be, and how long they live; tenants may have limits of their own."""

    pool_size: Count = live(default=20, description="Backends of one tenant at most.")
    max_prepared_statements: int = live(
        default=200,
        ge=0,
        le=100_000,
        description="Statements prepared in one backend at most for the clients that share it; 0: they pin.",
    )
    min_pool_size: int = live(default=0, ge=0, description="Backends of an active tenant that are kept open when idle.")
    max_clients: Count = live(default=1_000, description="Clients of one tenant at most.")
    max_waiting: int = live(default=1_000, ge=0, description="Clients of one tenant that may wait for a backend.")
    max_backends: Count = live(default=1_000, description="Backends of this node at most, over all servers.")
    max_connecting: Count = live(default=8, description="Backends being opened at once on one server.")
    queue_wait_timeout: Seconds = live(
        default=120.0, description="Seconds a client waits for a backend; 0 is for ever."
    )
    cross_tenant_wait: Seconds = live(
        default=0.1, description="Seconds after which the oldest waiter of any tenant wins at a server's cap."
    )
    server_idle_timeout: Seconds = live(
        default=600.0, description="Seconds until an idle backend is closed; 0 is never."
    )
    server_lifetime: Seconds = live(
        default=3_600.0, description="Seconds after which a backend is replaced; 0 is never."
    )
    lifetime_jitter: float = live(
        default=0.1,
        ge=0,
        le=1,
        description="Share of server_lifetime by which lifetimes differ, so that not all end at once.",
    )
    real_pids: bool = live(
        default=False,
        description="Session mode: link clients at login and tell them the process id of their own server.",
    )
    query_timeout: Seconds = live(
        default=0.0, description="Seconds after which a request is cancelled on its server; 0 is never."
    )
    transaction_timeout: Seconds = live(
        default=0.0, description="Seconds that a transaction may last before its session is ended; 0 is no limit."
    )
    idle_transaction_timeout: Seconds = live(
        default=0.0,
        description="Seconds that a client may leave its server waiting within a transaction; 0 is no limit.",
    )
    client_idle_timeout: Seconds = live(
        default=0.0, description="Seconds that a client may do nothing between transactions; 0 is no limit."
    )
    connect_timeout: Seconds = live(default=15.0, gt=0, description="Seconds that opening a backend may take.")
    retry_first: Seconds = live(
        default=0.2, gt=0, description="Seconds before a server that failed is tried again; doubles."
    )
    retry_most: Seconds = live(default=15.0, gt=0, description="Seconds that doubling ends at.")
    linger: Seconds = live(
        default=5.0, description="Seconds after which a backend that does not close counts as lingering."
    )
    cancel_wait: Seconds = live(default=10.0, gt=0, description="Seconds that a cancel request to a server may take.")
    max_cancels: Count = live(default=32, description="Cancel requests under way at once on one server.")

    @model_validator(mode="after")
    def _caps_fit(self) -> PoolSettings:
        if self.pool_size > self.max_backends:
            raise ValueError(f"pool_size ({self.pool_size}) is above max_backends ({self.max_backends})")
        if self.min_pool_size > self.pool_size:
            raise ValueError(f"min_pool_size ({self.min_pool_size}) is above pool_size ({self.pool_size})")
        if self.retry_first > self.retry_most:
            raise ValueError(f"retry_first ({self.retry_first:g}) is above retry_most ({self.retry_most:g})")
        return self
