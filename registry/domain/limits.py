"""Rules for a tenant's limits."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Final

from registry.contract import Limits
from registry.errors import Invalid

MAX_COUNT: Final = 1_000_000
MAX_SECONDS: Final = 30 * 86_400

COUNTS: Final = {
    "pool_size": (1, MAX_COUNT),
    "min_pool_size": (0, MAX_COUNT),
    "max_clients": (1, MAX_COUNT),
    "max_waiting": (0, MAX_COUNT),
}
TIMES: Final = (
    "queue_wait_timeout",
    "server_idle_timeout",
    "server_lifetime",
    "query_timeout",
    "transaction_timeout",
    "idle_transaction_timeout",
    "client_idle_timeout",
    "login_timeout",
    "connect_timeout",
)
NEVER_OFF: Final = frozenset({"login_timeout", "connect_timeout"})
"""Without these limits a silent peer would be waited for as long as it likes."""
NO_LIMIT: Final = "weight"
"""What the contract and the tables have a place for, and no node makes anything of."""
LIMIT_NAMES: Final = tuple(field.name for field in fields(Limits) if field.name != NO_LIMIT)
"""The limits that can be set."""


def check_limits(limits: Limits) -> Limits:
    """Return limits that are within bounds; raises Invalid naming the first that is not."""
    values: dict[str, int | float | None] = asdict(limits)
    for name, (least, most) in COUNTS.items():
        value = values[name]
        if value is not None and not least <= value <= most:
            raise Invalid(name, f"{name} is {value}", f"it must be {least:,} to {most:,}")
    for name in TIMES:
        seconds = values[name]
        if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
            raise Invalid(name, f"{name} is {seconds}", f"seconds, 0 (no limit) to {MAX_SECONDS:,}")
        if seconds == 0 and name in NEVER_OFF:
            raise Invalid(name, f"{name} is 0", f"seconds, more than 0, to {MAX_SECONDS:,}: it cannot be switched off")
    if limits.min_pool_size is not None and limits.pool_size is not None and limits.min_pool_size > limits.pool_size:
        raise Invalid(
            "min_pool_size",
            f"min_pool_size {limits.min_pool_size} is above pool_size {limits.pool_size}",
            "lower the one or raise the other",
        )
    return limits
