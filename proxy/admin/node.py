"""What the console may see of its node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from proxy.net.client_link import ClientLink
from proxy.pool.ledger import NodeLedger
from proxy.pool.tenancy import Tenancy
from proxy.routing.resolver import Resolver
from proxy.settings import Reloaded, Settings
from proxy.version import BuildInfo


class ReadyCheck(Protocol):
    """One condition for being ready, as `/readyz` tells them."""

    @property
    def name(self) -> str: ...

    @property
    def ok(self) -> bool: ...

    @property
    def detail(self) -> str: ...


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as its console sees it.

    `clients` are the linked ones by their numbers.  `settings` are those in
    force, `readiness` is asked at each look.  `reload` reads everything anew, in the name of a user, and raises
    ReloadFailed.  `clock` is monotonic, `wall` the time of day, both in
    seconds; `started` is by `clock`.
    """

    settings: Callable[[], Settings]
    build: BuildInfo
    clients: Mapping[int, ClientLink]
    ledger: NodeLedger
    tenancy: Tenancy
    resolver: Resolver
    readiness: Callable[[], Sequence[ReadyCheck]]
    reload: Callable[[str], Awaitable[Reloaded]]
    clock: Callable[[], float]
    wall: Callable[[], float]
    started: float

    def moment(self) -> Moment:
        """Now, for one table."""
        return Moment(self.clock(), self.wall())


@dataclass(frozen=True, slots=True)
class Moment:
    """The time at which a table is made, by both clocks, in seconds."""

    now: float
    wall: float

    def since(self, then: float) -> float:
        """Seconds from a time of the monotonic clock until now."""
        return round(max(0.0, self.now - then), 3)

    def day(self, then: float) -> str:
        """A time of the monotonic clock as people write it, in UTC."""
        return datetime.fromtimestamp(self.wall - self.now + then, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
