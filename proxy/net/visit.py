"""One login under way: what is known of it so far, and its time limit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from proxy.routing.resolution import Resolution


@dataclass(slots=True)
class Visit:
    """One login under way: what the log says of it, as far as that is known yet, and its time limit in seconds."""

    address: str
    started: float
    limit: float
    deadline: asyncio.Timeout | None = None
    user: str | None = None
    tenant: str | None = None

    @property
    def host(self) -> str:
        """The address without its port."""
        return self.address.rpartition(":")[0]


def keep_to_own_limit(visit: Visit, resolution: Resolution) -> None:
    """Hold a login to its tenant's own limit: not before its proof, else strangers could tell tenants by the time."""
    own = resolution.route.limits.login_timeout if resolution.route is not None else None
    when = visit.deadline.when() if visit.deadline is not None else None
    if own is None or visit.deadline is None or when is None:
        return
    visit.deadline.reschedule(when - visit.limit + own)
    visit.limit = own
