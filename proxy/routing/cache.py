"""What a node remembers of the registry: bounded, and exact about which answers a change has overtaken.

Free of I/O.  Every answer is kept with the registry version in whose snapshot it was read.  A change does not
search for what it touches; it raises the *floor* of its key, and an answer read below a floor of one of its keys
is stale: an answer that arrives later is thrown away, one that is kept is asked for again before it is used, and
stays in force where the registry cannot be asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from registry.contract import ChangeKind, Login, Lookup, Route, RouteChange

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_FLOORS: Final = 4096
"""Floors kept one by one; beyond it the oldest becomes the floor of everything, which only costs a new look-up."""

_LOOKS: Final = 64

FloorKey: TypeAlias = tuple[ChangeKind, int | None]
LoginKey: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """A remembered answer, the version it was read at, and the time (seconds of the node's clock)."""

    value: V
    version: int
    asked_at: float


class Lru(Generic[K, V]):
    """A dictionary of at most `limit` items that drops the one not used for longest.

    Items for which `keep` answers true are not dropped, even where that means exceeding the limit.
    """

    __slots__ = ("_items", "_keep", "_limit")

    def __init__(self, limit: int, keep: Callable[[K], bool] | None = None) -> None:
        self._items: OrderedDict[K, V] = OrderedDict()
        self._keep = keep
        self._limit = max(1, limit)

    def resize(self, limit: int) -> None:
        """Hold another number of items from now on; what is too much goes bit by bit as others come."""
        self._limit = max(1, limit)

    def get(self, key: K) -> V | None:
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        # Looking at a few only: with more kept items than the limit, each put would else walk through all of them.
        for _ in range(_LOOKS):
            if len(self._items) <= self._limit:
                return
            oldest = next(iter(self._items))
            if self._keep is not None and self._keep(oldest):
                self._items.move_to_end(oldest)
            else:
                del self._items[oldest]

    def drop(self, key: K) -> None:
        self._items.pop(key, None)

    def items(self) -> Iterator[tuple[K, V]]:
        """All items, the least recently used first."""
        return iter(self._items.items())

    def clear(self) -> None:
        self._items.clear()

    def __len__(self) -> int:
        return len(self._items)


class Shelf(Generic[K, V]):
    """Answers to one kind of question; the empty ones apart, so that asking for nonsense drops nothing useful."""

    __slots__ = ("known", "unknown")

    def __init__(self, limit: int, unknown_limit: int) -> None:
        self.known: Lru[K, Entry[V]] = Lru(limit)
        self.unknown: Lru[K, Entry[V]] = Lru(unknown_limit)

    def get(self, key: K) -> Entry[V] | None:
        return self.known.get(key) or self.unknown.get(key)

    def put(self, key: K, entry: Entry[V], *, empty: bool) -> None:
        (self.known if empty else self.unknown).drop(key)
        (self.unknown if empty else self.known).put(key, entry)

    def resize(self, limit: int, unknown_limit: int) -> None:
        """See `Lru.resize`."""
        self.known.resize(limit)
        self.unknown.resize(unknown_limit)

    def clear(self) -> None:
        self.known.clear()
        self.unknown.clear()

    def __len__(self) -> int:
        return len(self.known) + len(self.unknown)


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much is remembered, in entries, and for how long, in seconds.

    `ttl` counts only while the feed of changes is not followed; with the feed, answers hold until they change.
    `negative_ttl` counts always.
    """

    tenants: int = 10_000
    logins: int = 20_000
    unknown: int = 10_000
    ttl: float = 5.0
    negative_ttl: float = 5.0


class RouteCache:
    """Routes by id, name and database, and logins; see the module's page for when an answer is fresh.

    `pinned` tells which tenants may not be dropped; `moved` is called with a tenant's id when its route has become
    another or is gone.  `mutations` counts what a snapshot taken earlier would not have.
    """

    def __init__(
        self,
        limits: CacheLimits,
        *,
        pinned: Callable[[int], bool],
        moved: Callable[[int], None],
    ) -> None:
        self.limits = limits
        self.version = 0
        self.live = False
        self.mutations = 0
        self._moved = moved
        self._routes: Lru[int, Entry[Route]] = Lru(limits.tenants, pinned)
        self._names: Shelf[str, int | None] = Shelf(2 * limits.tenants, limits.unknown)
        self._databases: Shelf[str, tuple[int, ...]] = Shelf(limits.tenants, limits.unknown)
        self._logins: Shelf[LoginKey, Login | None] = Shelf(limits.logins, limits.unknown)
        self._floors: OrderedDict[FloorKey, int] = OrderedDict()
        self._floor = 0
        self._tenants_floor = 0
        self._changed = 0
        self._doubted_at = float("-inf")

    def resize(self, limits: CacheLimits) -> None:
        """Remember other numbers of answers, for other times, from now on."""
        self.limits = limits
        self._routes.resize(limits.tenants)
        self._names.resize(2 * limits.tenants, limits.unknown)
        self._databases.resize(limits.tenants, limits.unknown)
        self._logins.resize(limits.logins, limits.unknown)

    # What is remembered.

    def route(self, tenant_id: int) -> Entry[Route] | None:
        return self._routes.get(tenant_id)

    def by_name(self, name: str) -> Entry[Route | None] | None:
        """The tenant of this slug or alias; None: not remembered (any more)."""
        known = self._names.get(name)
        if known is None:
            return None
        if known.value is None:
            return Entry(None, known.version, known.asked_at)
        entry = self._routes.get(known.value)
        if entry is None or name not in (entry.value.slug, *entry.value.aliases):
            return None
        return Entry(entry.value, entry.version, entry.asked_at)

    def by_database(self, database: str) -> Entry[tuple[Route, ...]] | None:
        """The tenants on this database; None: not remembered, or not all of them."""
        known = self._databases.get(database)
        if known is None:
            return None
        routes = [entry.value for tenant_id in known.value if (entry := self._routes.get(tenant_id)) is not None]
        if len(routes) < len(known.value) or any(route.database_name != database for route in routes):
            return None
        return Entry(tuple(routes), known.version, known.asked_at)

    def login(self, user: str, tenant_id: int) -> Entry[Login | None] | None:
        return self._logins.get((user, tenant_id))

    # Whether it may be used without asking again.

    def route_is_fresh(self, entry: Entry[Route], now: float) -> bool:
        return not self._passed(entry.version, *_route_keys(entry.value)) and self._in_time(entry, now)

    def name_is_fresh(self, entry: Entry[Route | None], now: float) -> bool:
        if entry.value is None:
            return self._absence_is_fresh(entry, now)
        return not self._passed(entry.version, *_route_keys(entry.value)) and self._in_time(entry, now)

    def database_is_fresh(self, entry: Entry[tuple[Route, ...]], now: float) -> bool:
        if not entry.value:
            return self._absence_is_fresh(entry, now)
        if entry.version < self._tenants_floor or not self._in_time(entry, now):
            return False
        return all(self._remembered_is_fresh(route.tenant_id, now) for route in entry.value)

    def login_is_fresh(self, entry: Entry[Login | None], tenant_id: int, now: float) -> bool:
        if entry.value is None:
            return self._absence_is_fresh(entry, now)
        return not self._passed(entry.version, *_login_keys(tenant_id)) and self._in_time(entry, now)

    # Learning.  Each answers False for what the feed has overtaken: it is thrown away, the caller asks again.

    def learn_route(self, tenant_id: int, answer: Lookup[Route | None], now: float) -> bool:
        if self._passed(answer.version, (ChangeKind.TENANT, tenant_id), *_route_keys(answer.value)):
            return False
        if answer.value is None:
            self._forget_route(tenant_id)
        else:
            self._put_route(answer.value, answer.version, now)
        return True

    def learn_name(self, name: str, answer: Lookup[Route | None], now: float) -> bool:
        route = answer.value
        if self._passed(answer.version, *_route_keys(route)):
            return False
        if route is None and answer.version < self._tenants_floor:
            return False
        if route is not None:
            self._put_route(route, answer.version, now)
        tenant_id = None if route is None else route.tenant_id
        self._names.put(name, Entry(tenant_id, answer.version, now), empty=route is None)
        return True

    def learn_database(self, database: str, answer: Lookup[Sequence[Route]], now: float) -> bool:
        keys = [key for route in answer.value for key in _route_keys(route)]
        if answer.version < self._tenants_floor or self._passed(answer.version, *keys):
            return False
        for route in answer.value:
            self._put_route(route, answer.version, now)
        ids = tuple(route.tenant_id for route in answer.value)
        old = self._databases.get(database)
        self.mutations += old is None or old.value != ids
        self._databases.put(database, Entry(ids, answer.version, now), empty=not ids)
        return True

    def learn_login(self, key: LoginKey, answer: Lookup[Login | None], now: float) -> bool:
        if self._passed(answer.version, *_login_keys(key[1])):
            return False
        old = self._logins.get(key)
        self.mutations += old is None or old.value != answer.value
        self._logins.put(key, Entry(answer.value, answer.version, now), empty=answer.value is None)
        return True

    # The feed.

    def apply(self, change: RouteChange) -> None:
        """Raise the floor of what the change touched; what is remembered of it is stale from now on."""
        if change.kind is ChangeKind.EVERYTHING:
            self._floor = self._tenants_floor = change.version
            self._floors.clear()
        else:
            key = (change.kind, change.key)
            self._floors[key] = max(change.version, self._floors.get(key, 0))
            self._floors.move_to_end(key)
            if change.kind is ChangeKind.TENANT:
                self._tenants_floor = max(self._tenants_floor, change.version)
            while len(self._floors) > MAX_FLOORS:
                self._floor = max(self._floor, self._floors.popitem(last=False)[1])
        self._changed = change.version
        self.version = change.version

    def restart(self, version: int) -> None:
        """Begin again at an older version, as after a restore of the registry; everything remembered is stale."""
        for shelf in (self._names, self._databases, self._logins):
            shelf.clear()
        kept = [(tenant_id, entry.value) for tenant_id, entry in self._routes.items()]
        for tenant_id, route in kept:
            self._routes.put(tenant_id, Entry(route, -1, float("-inf")))
        self._floors.clear()
        self._floor = self._tenants_floor = self._changed = self.version = version

    def doubt(self, now: float) -> None:
        """Take all answers from before now for stale: asked again, the registry may say more with the same version."""
        self._doubted_at = now
        self.mutations += 1

    # For the snapshot.

    def remembered(self) -> tuple[list[Route], list[tuple[str, tuple[int, ...]]], list[tuple[LoginKey, Login]]]:
        """Routes, databases and logins that are known, the least recently used first."""
        routes = [entry.value for _, entry in self._routes.items()]
        databases = [(name, entry.value) for name, entry in self._databases.known.items()]
        logins = [(key, entry.value) for key, entry in self._logins.known.items() if entry.value is not None]
        return routes, databases, logins

    def restore(
        self,
        routes: Sequence[Route],
        databases: Sequence[tuple[str, tuple[int, ...]]],
        logins: Sequence[tuple[LoginKey, Login]],
    ) -> None:
        """Take over what an earlier run remembered: stale, but in force until the registry answers."""
        never = float("-inf")
        for route in routes:
            self._routes.put(route.tenant_id, Entry(route, -1, never))
            for name in (route.slug, *route.aliases):
                self._names.put(name, Entry(route.tenant_id, -1, never), empty=False)
        for database, ids in databases:
            self._databases.put(database, Entry(ids, -1, never), empty=not ids)
        for key, login in logins:
            self._logins.put(key, Entry(login, -1, never), empty=False)

    def sizes(self) -> dict[str, int]:
        """How many entries of each kind are remembered."""
        return {
            "routes": len(self._routes),
            "names": len(self._names),
            "databases": len(self._databases),
            "logins": len(self._logins),
        }

    def _put_route(self, route: Route, version: int, now: float) -> None:
        old = self._routes.get(route.tenant_id)
        if old is not None and old.version > version:
            return
        self._routes.put(route.tenant_id, Entry(route, version, now))
        if old is None or old.value != route:
            self.mutations += 1
            self._moved(route.tenant_id)

    def _forget_route(self, tenant_id: int) -> None:
        self._routes.drop(tenant_id)
        self.mutations += 1
        self._moved(tenant_id)

    def _remembered_is_fresh(self, tenant_id: int, now: float) -> bool:
        entry = self._routes.get(tenant_id)
        return entry is not None and self.route_is_fresh(entry, now)

    def _absence_is_fresh(self, entry: Entry[V], now: float) -> bool:
        return entry.version >= max(self._changed, self._floor) and now - entry.asked_at < self.limits.negative_ttl

    def _in_time(self, entry: Entry[V], now: float) -> bool:
        if entry.version < 0 or entry.asked_at < self._doubted_at:
            return False
        return self.live or now - entry.asked_at < self.limits.ttl

    def _passed(self, version: int, *keys: FloorKey) -> bool:
        if version < self._floor:
            return True
        floors = self._floors
        return any(version < floors.get(key, 0) for key in keys)


def _route_keys(route: Route | None) -> tuple[FloorKey, ...]:
    keys: list[FloorKey] = [(ChangeKind.TENANT, None), (ChangeKind.SERVER, None)]
    if route is not None:
        keys.append((ChangeKind.TENANT, route.tenant_id))
        if route.server is not None:
            keys.append((ChangeKind.SERVER, route.server.server_id))
    return tuple(keys)


def _login_keys(tenant_id: int) -> tuple[FloorKey, ...]:
    return (ChangeKind.LOGIN, None), (ChangeKind.LOGIN, tenant_id)
