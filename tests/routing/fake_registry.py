"""A registry in memory whose answers can be delayed between being read and being delivered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from proxy.auth import build_verifier
from registry.contract import (
    Address,
    ChangeKind,
    Credentials,
    Login,
    Lookup,
    RegistryUnavailable,
    Route,
    RouteChange,
    Secret,
    ServerInfo,
    TenantState,
)

T = TypeVar("T")

SERVER = ServerInfo(1, "eu1", (Address("10.0.0.1"),))
VERIFIER = build_verifier("secret", b"0123456789abcdef", iterations=1).text()


def make_route(tenant_id: int, slug: str, **changes: Any) -> Route:
    route = Route(
        tenant_id=tenant_id,
        slug=slug,
        state=TenantState.READY,
        server=SERVER,
        database_name=f"{slug}_data",
        role=Credentials(f"{slug}_role", Secret(f"{slug}-password")),
        generation=1,
    )
    return replace(route, **changes)


def make_login(login_id: int, user: str, tenant_id: int | None, **changes: Any) -> Login:
    return replace(Login(login_id, user, tenant_id, VERIFIER), **changes)


class FakeRegistry:
    """Implements RegistryReader; `down` and `hanging` make it fail, `hold()` parks the answers already read."""

    def __init__(self) -> None:
        self.routes: dict[int, Route] = {}
        self.logins: list[Login] = []
        self.now = 1
        self.log: list[RouteChange] = []
        self.asked: Counter[str] = Counter()
        self.down = False
        self.hanging = False
        self.secret = b"s" * 32
        self.followers = 0
        self._gate = asyncio.Event()
        self._gate.set()
        self._waiters: set[asyncio.Event] = set()
        self.parked = 0

    @property
    def queries(self) -> int:
        return self.asked.total()

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    # Changes.

    def put(self, route: Route) -> RouteChange:
        self.routes[route.tenant_id] = route
        return self._changed(ChangeKind.TENANT, route.tenant_id)

    def remove(self, tenant_id: int) -> RouteChange:
        del self.routes[tenant_id]
        return self._changed(ChangeKind.TENANT, tenant_id)

    def put_login(self, login: Login) -> RouteChange:
        self.logins = [one for one in self.logins if one.login_id != login.login_id] + [login]
        return self._changed(ChangeKind.LOGIN, login.tenant_id)

    def put_server(self, server: ServerInfo) -> RouteChange:
        for route in self.routes.values():
            if route.server is not None and route.server.server_id == server.server_id:
                self.routes[route.tenant_id] = replace(route, server=server)
        return self._changed(ChangeKind.SERVER, server.server_id)

    def lose_followers(self) -> None:
        """Make the running change feeds fail once they are next asked."""
        self.down = True
        self._grow()

    def come_back(self) -> None:
        self.down = False
        self._grow()

    def _changed(self, kind: ChangeKind, key: int | None) -> RouteChange:
        self.now += 1
        change = RouteChange(self.now, kind, key)
        self.log.append(change)
        self._grow()
        return change

    def _grow(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    # RegistryReader.

    async def route_by_name(self, name: str) -> Lookup[Route | None]:
        return await self._answer("name", lambda: self._named(name))

    async def route_by_id(self, tenant_id: int) -> Lookup[Route | None]:
        return await self._answer("id", lambda: self.routes.get(tenant_id))

    async def routes_by_database(self, database_name: str) -> Lookup[Sequence[Route]]:
        return await self._answer(
            "database", lambda: [one for one in self.routes.values() if one.database_name == database_name][:2]
        )

    async def login(self, user: str, tenant_id: int) -> Lookup[Login | None]:
        def find() -> Login | None:
            own = [one for one in self.logins if one.user == user and one.tenant_id == tenant_id]
            every = [one for one in self.logins if one.user == user and one.tenant_id is None]
            return next(iter(own + every), None)

        return await self._answer("login", find)

    async def logins_by_user(self, user: str) -> Lookup[Sequence[Login]]:
        return await self._answer("logins", lambda: [one for one in self.logins if one.user == user][:2])

    async def mock_secret(self) -> bytes:
        return (await self._answer("secret", lambda: self.secret)).value

    async def version(self) -> int:
        return (await self._answer("version", lambda: self.now)).value

    async def changes(self, *, after: int | None = None) -> AsyncIterator[Sequence[RouteChange]]:
        self._check()
        self.followers += 1
        try:
            seen = after
            if seen is None:
                seen = self.now
                yield [RouteChange(self.now, ChangeKind.EVERYTHING)]
            while True:
                batch = await self._batch(seen)
                seen = batch[-1].version
                yield batch
        finally:
            self.followers -= 1

    async def reload(self) -> int:
        return (await self._answer("reload", lambda: self.now)).value

    async def _batch(self, after: int) -> list[RouteChange]:
        grown = asyncio.Event()
        self._waiters.add(grown)
        try:
            while not self.down and not (self.log and self.log[-1].version > after):
                grown.clear()
                await grown.wait()
        finally:
            self._waiters.discard(grown)
        self._check()
        return [one for one in self.log if one.version > after]

    def _named(self, name: str) -> Route | None:
        return next((one for one in self.routes.values() if name in (one.slug, *one.aliases)), None)

    def _check(self) -> None:
        if self.down:
            raise RegistryUnavailable("the fake registry is down")

    async def _answer(self, kind: str, find: Callable[[], T]) -> Lookup[T]:
        self.asked[kind] += 1
        if self.hanging:
            await asyncio.Event().wait()
        self._check()
        answer = Lookup(self.now, find())
        if not self._gate.is_set():
            self.parked += 1
            try:
                await self._gate.wait()
            finally:
                self.parked -= 1
        else:
            await asyncio.sleep(0)
        return answer
