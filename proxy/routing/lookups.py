"""Questions to the registry: cached, one in flight per key, and never answered from before a change.

A waiter that is cancelled does not cancel the query that others wait for.  An answer that the feed has overtaken
is thrown away and asked for again.  Where the registry cannot be asked, what is remembered stays in force, however
old; what is not remembered is *uncertain*, which is not the same as absent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Generic, TypeVar, cast

from proxy.routing.cache import Entry, RouteCache
from proxy.routing.names import MAX_NAME_CHARS
from registry.contract import Login, Lookup, RegistryReader, RegistryUnavailable, Route

T = TypeVar("T")

ATTEMPTS: Final = 8
"""How often an overtaken answer is asked for again, before the newest is used once and not remembered."""

RETRY_AFTER: Final = 1.0
"""Seconds after a failure during which remembered answers are used without asking, then once more each."""

NO_TENANT: Final = 0
"""A tenant id that no tenant has: asking for its logins finds the logins for all tenants only."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What is known; `certain` is False where the registry could not be asked and nothing was remembered."""

    value: T
    certain: bool = True


class Look(Enum):
    """Where an answer comes from: from memory while it is fresh, or from the registry, whatever is remembered.

    The second is for strangers: what is remembered depends on what exists, and a clock would tell them.
    """

    REMEMBERED = auto()
    ANEW = auto()


class Health:
    """Whether the registry answers, when it last did not, and the newest version that it showed."""

    __slots__ = ("_clock", "failed_at", "newest", "reason", "up")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.up = True
        self.reason: str | None = None
        self.failed_at = float("-inf")
        self.newest = 0

    def answered(self, version: int) -> None:
        self.up = True
        self.reason = None
        self.newest = max(self.newest, version)

    def failed(self, error: RegistryUnavailable) -> None:
        self.up = False
        self.reason = str(error) or "the registry does not answer"
        self.failed_at = self._clock()

    def down_just_now(self) -> bool:
        """Whether asking is likely to fail, so that what is remembered is better used without waiting."""
        return not self.up and self._clock() - self.failed_at < RETRY_AFTER


class SingleFlight:
    """Runs one coroutine per key at a time; all that ask meanwhile get its result.

    `close()` cancels what runs; callers await it before the loop ends.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what the coroutine for this key returns, or raise what it raises."""
        return await asyncio.shield(self.launch(key, start))

    def launch(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Start the coroutine for this key, or find it running; its failure may be left unread."""
        running = self._tasks.get(key)
        if running is None:
            running = asyncio.create_task(start())
            self._tasks[key] = running
            running.add_done_callback(lambda task: self._finished(key, task))
        return cast("asyncio.Task[T]", running)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._tasks)

    def _finished(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled():
            task.exception()  # Every waiter may have been cancelled: mark it as seen.


class Lookups:
    """The questions of the resolver.  `timeout` (seconds) makes a registry that hangs one that is down."""

    def __init__(
        self,
        reader: RegistryReader,
        cache: RouteCache,
        *,
        clock: Callable[[], float],
        health: Health,
        timeout: float = 2.0,
        concurrency: int = 32,
    ) -> None:
        self._reader = reader
        self._cache = cache
        self._clock = clock
        self._health = health
        self.timeout = timeout
        self._slots = asyncio.Semaphore(concurrency)
        self._flights = SingleFlight()
        self._secret: bytes | None = None
        self.queries = 0
        self.overtaken = 0
        self.remembered = 0

    async def by_name(self, name: str, look: Look = Look.REMEMBERED) -> Answer[Route | None]:
        """Find the tenant with this slug or alias."""
        if not _askable(name):
            return Answer(None)
        cache, now = self._cache, self._clock()
        entry = cache.by_name(name)
        return await self._answer(
            ("name", name),
            entry,
            look is Look.REMEMBERED and entry is not None and cache.name_is_fresh(entry, now),
            None,
            lambda: self._reader.route_by_name(name),
            lambda answer: cache.learn_name(name, answer, self._clock()),
        )

    async def by_database(self, database: str, look: Look = Look.REMEMBERED) -> Answer[tuple[Route, ...]]:
        """Find the tenants on this physical database: none, one, or two of several."""
        if not _askable(database):
            return Answer(())
        cache, now = self._cache, self._clock()
        entry = cache.by_database(database)

        async def ask() -> Lookup[tuple[Route, ...]]:
            found = await self._reader.routes_by_database(database)
            return Lookup(found.version, tuple(found.value))

        return await self._answer(
            ("database", database),
            entry,
            look is Look.REMEMBERED and entry is not None and cache.database_is_fresh(entry, now),
            (),
            ask,
            lambda answer: cache.learn_database(database, answer, self._clock()),
        )

    async def login(
        self, user: str, tenant_id: int, spelled: str = "", look: Look = Look.REMEMBERED
    ) -> Answer[Login | None]:
        """Find the login of this name that may connect as the tenant.

        `spelled` is how the tenant was named.  For NO_TENANT each spelling is asked for and remembered by itself, as it
        is for tenants that exist: else a stranger could tell them by the time.
        """
        if not _askable(user):
            return Answer(None)
        cache, now = self._cache, self._clock()
        name = f"{user}\0{spelled}" if tenant_id == NO_TENANT else user
        entry = cache.login(name, tenant_id)
        return await self._answer(
            ("login", name, tenant_id),
            entry,
            look is Look.REMEMBERED and entry is not None and cache.login_is_fresh(entry, tenant_id, now),
            None,
            lambda: self._reader.login(user, tenant_id),
            lambda answer: cache.learn_login((name, tenant_id), answer, self._clock()),
        )

    async def refresh(self, tenant_id: int) -> None:
        """Ask for a tenant's route anew unless it is fresh; raises RegistryUnavailable and changes nothing then."""
        entry = self._cache.route(tenant_id)
        if entry is not None and self._cache.route_is_fresh(entry, self._clock()):
            return
        await self._flights.run(
            ("id", tenant_id),
            lambda: self._ask(
                lambda: self._reader.route_by_id(tenant_id),
                lambda answer: self._cache.learn_route(tenant_id, answer, self._clock()),
            ),
        )

    async def mock_secret(self) -> bytes | None:
        """The secret behind the salts of unknown users; None while it is not known and cannot be asked for."""
        if self._secret is None:
            try:
                self._secret = await self._flights.run("mock secret", self._ask_secret)
            except RegistryUnavailable:
                return None
        return self._secret

    def take_secret(self, secret: bytes | None) -> None:
        """Use the secret of a snapshot until the registry tells it."""
        self._secret = self._secret or secret

    @property
    def secret(self) -> bytes | None:
        return self._secret

    async def close(self) -> None:
        """Cancel what is in flight."""
        await self._flights.close()

    async def _answer(
        self,
        key: Hashable,
        entry: Entry[T] | None,
        fresh: bool,
        absent: T,
        ask: Callable[[], Awaitable[Lookup[T]]],
        learn: Callable[[Lookup[T]], bool],
    ) -> Answer[T]:
        if entry is not None and fresh:
            return Answer(entry.value)

        def start() -> Coroutine[Any, Any, T]:
            return self._ask(ask, learn)

        if entry is not None and self._health.down_just_now():
            self.remembered += 1
            return Answer(entry.value, certain=bool(entry.value))
        if entry is not None and entry.value and not self._health.up:
            # Known, and the registry was down a moment ago: find out in the background whether it still is.
            _ = self._flights.launch(key, start)
            self.remembered += 1
            return Answer(entry.value)
        try:
            return Answer(await self._flights.run(key, start))
        except RegistryUnavailable:
            self.remembered += 1
            return Answer(absent if entry is None else entry.value, certain=entry is not None and bool(entry.value))

    async def _ask(self, ask: Callable[[], Awaitable[Lookup[T]]], learn: Callable[[Lookup[T]], bool]) -> T:
        attempt = 1
        while True:
            answer = await self._query(ask)
            self._health.answered(answer.version)
            if learn(answer) or attempt == ATTEMPTS:
                return answer.value
            self.overtaken += 1
            attempt += 1

    async def _ask_secret(self) -> bytes:
        secret = await self._query(self._reader.mock_secret)
        self._health.answered(0)
        return secret

    async def _query(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask once, within the time limit; every failure to reach the registry is RegistryUnavailable."""
        try:
            async with self._slots, asyncio.timeout(self.timeout):
                self.queries += 1
                return await ask()
        except TimeoutError:
            error = RegistryUnavailable(f"the registry did not answer within {self.timeout:g} s")
            self._health.failed(error)
            raise error from None
        except RegistryUnavailable as error:
            self._health.failed(error)
            raise


def _askable(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME_CHARS and "\0" not in name
