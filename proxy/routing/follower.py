"""Following the registry's change log, for as long as the node runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import structlog

from proxy.routing.cache import RouteCache
from proxy.routing.lookups import Health
from registry.contract import ChangeKind, RegistryReader, RegistryUnavailable, RouteChange

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts: seconds, doubled from `first` to `last`, each shortened by up to half at random."""

    first: float = 0.1
    last: float = 2.0

    def pause(self, attempt: int, chance: float) -> float:
        """Seconds before the next attempt; `chance` is a random number from 0 to 1."""
        return min(self.last, self.first * 2.0 ** min(attempt, 16)) * (1.0 - chance / 2)


class Follower:
    """Applies the change log to the cache, batch by batch, and comes back whenever the registry does.

    `apply` is called with each change; `caught_up` when the cache is known to be current again.
    """

    def __init__(
        self,
        reader: RegistryReader,
        cache: RouteCache,
        health: Health,
        *,
        apply: Callable[[RouteChange], object],
        caught_up: Callable[[], None],
        clock: Callable[[], float],
        chance: Callable[[], float],
        timeout: float = 2.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._reader = reader
        self._cache = cache
        self._health = health
        self._apply = apply
        self._caught_up = caught_up
        self._clock = clock
        self._chance = chance
        self.timeout = timeout
        self._backoff = backoff or Backoff()
        self._advanced = asyncio.Condition()
        self._seen: int | None = None
        self._current_at = clock()
        self._target = 0
        self.running = False
        self.reconnects = 0

    async def run(self) -> None:
        """Follow until cancelled."""
        attempt = 0
        self.running = True
        try:
            while True:
                before = self._seen
                await self._follow_and_log()
                self._cache.live = False
                self.reconnects += 1
                attempt = 0 if self._seen != before else attempt + 1
                await asyncio.sleep(self._backoff.pause(attempt, self._chance()))
        finally:
            self._cache.live = False
            self.running = False

    async def reached(self, version: int) -> None:
        """Wait until the changes up to this version are applied."""
        async with self._advanced:
            await self._advanced.wait_for(lambda: self._cache.version >= version)

    def lag(self) -> float:
        """Seconds since the cache was last known to have every change that the registry has shown; 0: it has."""
        if self._cache.live and self._cache.version >= self._health.newest:
            self._current_at = self._clock()
            return 0.0
        return self._clock() - self._current_at

    async def _follow_and_log(self) -> None:
        """Follow until the registry is lost; says so once per loss."""
        was_up = self._health.up
        try:
            await self._follow()
            log.warning("the registry's feed of changes ended, following it anew")
        except RegistryUnavailable as error:
            self._health.failed(error)
            if was_up or self._cache.live:
                log.warning("registry lost", reason=str(error), hint="known tenants are served from memory")
        except Exception:
            log.exception("following the registry failed, it is tried again")

    async def _follow(self) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                version = await self._reader.version()
        except TimeoutError:
            raise RegistryUnavailable(f"the registry did not answer within {self.timeout:g} s") from None
        self._health.answered(version)
        if self._seen is not None and version < self._seen:
            log.warning("the registry went back to an older version", before=self._seen, version=version)
            self._cache.restart(version)
            self._health.newest = version
            self._seen = None
        self._target = version
        if self._seen is not None and self._seen >= version:
            self._now_live()
        batches = self._reader.changes(after=self._seen)
        try:
            async for batch in batches:
                await self._take(batch)
        finally:
            if isinstance(batches, AsyncGenerator):
                await batches.aclose()  # Now, and not when the collector finds it: it may hold a connection.

    async def _take(self, batch: Sequence[RouteChange]) -> None:
        for change in batch:
            self._apply(change)
            self._seen = change.version
        self._health.answered(self._cache.version)
        async with self._advanced:
            self._advanced.notify_all()
        if not self._cache.live and (
            self._cache.version >= self._target or any(one.kind is ChangeKind.EVERYTHING for one in batch)
        ):
            self._now_live()

    def _now_live(self) -> None:
        self._cache.live = True
        self._current_at = self._clock()
        log.info("following the registry", version=self._cache.version)
        self._caught_up()
