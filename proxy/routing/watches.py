"""Watched tenants: those with a pool, whose routes are kept current and whose changes are told at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy.routing.cache import RouteCache
from proxy.routing.lookups import Lookups
from registry.contract import ChangeKind, RegistryUnavailable, Route, RouteChange

log = logging.getLogger(__name__)

CONCURRENT_REFRESHES: Final = 16
RETRY_PAUSE: Final = 0.5


@dataclass(frozen=True, slots=True)
class RouteUpdate:
    """A watched tenant's route has changed; `old` or `new` is None where there is none (the tenant is gone)."""

    tenant_id: int
    old: Route | None
    new: Route | None


Listener: TypeAlias = Callable[[RouteUpdate], None]


@dataclass(slots=True)
class _Watch:
    route: Route | None
    count: int = 1


class Watches:
    """Which tenants are watched, and the last route that the listeners know of each.

    `effective` puts the shared database into a route; `retries` tells whether a refresh that failed tries again by
    itself.
    """

    def __init__(
        self,
        cache: RouteCache,
        lookups: Lookups,
        *,
        effective: Callable[[Route], Route],
        retries: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self.listeners: list[Listener] = []
        self._cache = cache
        self._lookups = lookups
        self._effective = effective
        self._retries = retries
        self._clock = clock
        self._watched: dict[int, _Watch] = {}
        self._refreshing: dict[int, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(CONCURRENT_REFRESHES)

    def __contains__(self, tenant_id: int) -> bool:
        return tenant_id in self._watched

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, route: Route) -> None:
        watch = self._watched.get(route.tenant_id)
        if watch is not None:
            watch.count += 1
            return
        self._watched[route.tenant_id] = _Watch(route)
        entry = self._cache.route(route.tenant_id)
        if entry is not None:
            self.tell(route.tenant_id)
        if entry is None or not self._cache.route_is_fresh(entry, self._clock()):
            self.refresh(route.tenant_id)

    def remove(self, tenant_id: int) -> None:
        watch = self._watched[tenant_id]
        watch.count -= 1
        if watch.count == 0:
            del self._watched[tenant_id]

    def affected_by(self, change: RouteChange) -> list[int]:
        """The watched tenants whose routes may have changed."""
        if change.kind is ChangeKind.LOGIN:
            return []
        if change.kind is ChangeKind.EVERYTHING or change.key is None:
            return list(self._watched)
        if change.kind is ChangeKind.TENANT:
            return [change.key] if change.key in self._watched else []
        return [tenant_id for tenant_id in self._watched if self._server_of(tenant_id) == change.key]

    def tell(self, tenant_id: int) -> None:
        """Tell the listeners of this tenant's route, if it is watched and they know another."""
        watch = self._watched.get(tenant_id)
        if watch is None:
            return
        entry = self._cache.route(tenant_id)
        new = None if entry is None else self._effective(entry.value)
        if new == watch.route:
            return
        update = RouteUpdate(tenant_id, watch.route, new)
        watch.route = new
        for listener in self.listeners:
            try:
                listener(update)
            except Exception:
                log.exception("a listener failed at the change of tenant %d's route", tenant_id)

    def tell_all(self) -> None:
        for tenant_id in list(self._watched):
            self.tell(tenant_id)

    def refresh(self, tenant_id: int) -> None:
        """Ask for this tenant's route in the background, until the answer is fresh."""
        if tenant_id not in self._refreshing:
            self._refreshing[tenant_id] = asyncio.create_task(self._refresh(tenant_id))

    def refresh_stale(self) -> None:
        now = self._clock()
        for tenant_id in self._watched:
            entry = self._cache.route(tenant_id)
            if entry is None or not self._cache.route_is_fresh(entry, now):
                self.refresh(tenant_id)

    async def settled(self) -> None:
        """Wait until no route is being asked for in the background."""
        while self._refreshing:
            await asyncio.wait(list(self._refreshing.values()))

    async def close(self) -> None:
        tasks = list(self._refreshing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refresh(self, tenant_id: int) -> None:
        # Leaving the table and the last look at the cache happen without an await between: no change is missed.
        try:
            while True:
                try:
                    async with self._slots:
                        await self._lookups.refresh(tenant_id)
                except RegistryUnavailable as error:
                    log.debug("the route of tenant %d stays as it was: %s", tenant_id, error)
                    if not self._retries():
                        return
                    await asyncio.sleep(RETRY_PAUSE)
                entry = self._cache.route(tenant_id)
                if entry is None or self._cache.route_is_fresh(entry, self._clock()):
                    return
        except Exception:
            log.exception("asking for the route of tenant %d failed; it stays as it was", tenant_id)
        finally:
            del self._refreshing[tenant_id]

    def _server_of(self, tenant_id: int) -> int | None:
        entry = self._cache.route(tenant_id)
        if entry is None or entry.value.server is None:
            return None
        return entry.value.server.server_id
