"""Races between questions and changes, and life without the registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from harness.waiting import eventually
from routing.fake_registry import SERVER, FakeRegistry, make_login, make_route

from proxy.errors import Failure
from proxy.routing.cache import CacheLimits
from proxy.routing.follower import Backoff
from proxy.routing.names import Selectors
from proxy.routing.resolver import Resolver, ResolverConfig
from proxy.routing.watches import RouteUpdate
from registry.contract import ChangeKind, Credentials, RegistryUnavailable, Route, RouteChange, Secret, TenantState

ACME = Selectors("app", "acme")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> FakeRegistry:
    fake = FakeRegistry()
    fake.put(make_route(1, "acme"))
    fake.put(make_route(2, "globex", server=replace(SERVER, server_id=2)))
    fake.put_login(make_login(1, "app", 1))
    fake.put_login(make_login(2, "app", 2))
    return fake


@pytest.fixture
async def resolver(registry: FakeRegistry, clock: Clock) -> AsyncIterator[Resolver]:
    config = ResolverConfig(
        limits=CacheLimits(tenants=8, logins=8, unknown=8), lookup_timeout=0.2, backoff=Backoff(0.001, 0.01)
    )
    made = Resolver(registry, config=config, clock=clock)
    yield made
    await made.close()


@asynccontextmanager
async def following(resolver: Resolver) -> AsyncIterator[None]:
    task = asyncio.create_task(resolver.follow())
    try:
        await eventually(lambda: resolver.status().live)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def route_of(resolver: Resolver, selectors: Selectors = ACME) -> Route:
    route = (await resolver.resolve(selectors)).route
    assert route is not None
    return route


async def test_known_answers_are_asked_for_once(registry: FakeRegistry, resolver: Resolver) -> None:
    async with following(resolver):
        await resolver.resolve(ACME)
        before = registry.queries
        for _ in range(5):
            await resolver.resolve(ACME)
        assert registry.queries == before


async def test_one_query_serves_all_that_ask_meanwhile(registry: FakeRegistry, resolver: Resolver) -> None:
    registry.hold()
    waiting = [asyncio.create_task(resolver.resolve(ACME)) for _ in range(20)]
    await eventually(lambda: registry.parked == 1)
    registry.release()
    results = await asyncio.gather(*waiting)
    assert {one.route.slug for one in results if one.route is not None} == {"acme"}
    assert max(registry.asked.values()) == 1


async def test_a_cancelled_waiter_does_not_cancel_the_query_of_others(
    registry: FakeRegistry, resolver: Resolver
) -> None:
    registry.hold()
    first = asyncio.create_task(resolver.resolve(ACME))
    await eventually(lambda: registry.parked == 1)
    second = asyncio.create_task(resolver.resolve(ACME))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    assert registry.parked == 1
    registry.release()
    assert (await second).route is not None
    assert registry.asked["name"] == 1


async def test_cancelled_at_every_await_leaves_the_resolver_usable(registry: FakeRegistry, resolver: Resolver) -> None:
    for turns in range(30):
        resolver.apply_change(RouteChange(registry.now, ChangeKind.EVERYTHING))
        task = asyncio.create_task(resolver.resolve(ACME))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (await resolver.resolve(ACME)).route == registry.routes[1]
    await eventually(lambda: len(resolver.lookups._flights) == 0)


async def test_a_change_while_the_answer_is_under_way_is_never_missed(
    registry: FakeRegistry, resolver: Resolver
) -> None:
    registry.hold()
    asking = asyncio.create_task(resolver.resolve(ACME))
    await eventually(lambda: registry.parked == 1)
    suspended = replace(registry.routes[1], state=TenantState.SUSPENDED)
    resolver.apply_change(registry.put(suspended))
    registry.release()
    assert (await asking).route == suspended
    assert resolver.status().overtaken == 1


async def test_an_unrelated_change_does_not_throw_an_answer_away(registry: FakeRegistry, resolver: Resolver) -> None:
    await resolver.lookups.by_name("acme")
    registry.hold()
    asking = asyncio.create_task(resolver.lookups.login("app", 1))
    await eventually(lambda: registry.parked == 1)
    resolver.apply_change(registry.put_login(make_login(2, "app", 2)))
    registry.release()
    assert (await asking).value is not None
    assert resolver.status().overtaken == 0


async def test_a_tenant_created_while_its_absence_was_under_way_is_found(
    registry: FakeRegistry, resolver: Resolver
) -> None:
    registry.hold()
    asking = asyncio.create_task(resolver.lookups.by_name("newco"))
    await eventually(lambda: registry.parked == 1)
    resolver.apply_change(registry.put(make_route(9, "newco")))
    registry.release()
    assert (await asking).value == registry.routes[9]


async def test_a_new_tenant_is_served_at_once_although_its_absence_was_remembered(
    registry: FakeRegistry, resolver: Resolver
) -> None:
    newco = Selectors("app", "newco")
    assert (await resolver.resolve(newco)).route is None
    registry.asked.clear()
    assert (await resolver.resolve(newco)).route is None
    assert registry.queries == 0
    resolver.apply_change(registry.put(make_route(9, "newco")))
    assert (await resolver.resolve(newco)).route == registry.routes[9]


async def test_absence_is_asked_for_again_after_a_while(
    registry: FakeRegistry, resolver: Resolver, clock: Clock
) -> None:
    async with following(resolver):
        await resolver.resolve(Selectors("app", "newco"))
        before = registry.queries
        clock.now += 6.0
        await resolver.resolve(Selectors("app", "newco"))
        assert registry.queries > before


async def test_a_second_tenant_on_a_database_makes_its_name_ambiguous(
    registry: FakeRegistry, resolver: Resolver
) -> None:
    by_database = Selectors("app", "acme_data")
    assert (await route_of(resolver, by_database)).slug == "acme"
    resolver.apply_change(registry.put(replace(registry.routes[2], database_name="acme_data")))
    assert (await resolver.resolve(by_database)).route is None


async def test_an_alias_that_moves_leads_to_its_new_tenant(registry: FakeRegistry, resolver: Resolver) -> None:
    resolver.apply_change(registry.put(replace(registry.routes[1], aliases=("main",))))
    assert (await route_of(resolver, Selectors("app", "main"))).slug == "acme"
    first = registry.put(replace(registry.routes[1], aliases=()))
    second = registry.put(replace(registry.routes[2], aliases=("main",)))
    resolver.apply_change(first)
    resolver.apply_change(second)
    assert (await route_of(resolver, Selectors("app", "main"))).slug == "globex"


async def test_a_rotated_password_counts_at_once(registry: FakeRegistry, resolver: Resolver) -> None:
    async with following(resolver):
        old = await resolver.resolve(ACME)
        rotated = make_login(1, "app", 1, verifier=old.verifier.text().replace("$1:", "$2:"))
        registry.put_login(rotated)
        await eventually(lambda: resolver.status().version == registry.now)
        assert (await resolver.resolve(ACME)).verifier.iterations == 2


async def test_a_login_of_a_tenants_own_takes_the_place_of_the_one_for_all(
    registry: FakeRegistry, resolver: Resolver
) -> None:
    resolver.apply_change(registry.put_login(make_login(5, "support", None)))
    support = Selectors("support", "acme")
    assert (await resolver.resolve(support)).login == registry.logins[-1]
    resolver.apply_change(registry.put_login(make_login(6, "support", 1)))
    login = (await resolver.resolve(support)).login
    assert login is not None
    assert login.login_id == 6


# Watched tenants.


async def test_changes_of_watched_tenants_are_told_and_others_are_not(
    registry: FakeRegistry, resolver: Resolver
) -> None:
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    acme, _ = await route_of(resolver), await route_of(resolver, Selectors("app", "globex"))
    resolver.watch(acme)
    async with following(resolver):
        registry.put(replace(registry.routes[2], generation=2))
        moved = replace(acme, database_name="elsewhere", generation=2)
        registry.put(moved)
        await eventually(lambda: updates)
        assert updates == [RouteUpdate(1, acme, moved)]
        resolver.unwatch(1)
        registry.put(replace(moved, generation=3))
        await eventually(lambda: resolver.status().version == registry.now)
        assert len(updates) == 1


async def test_a_changed_server_is_told_to_all_its_tenants(registry: FakeRegistry, resolver: Resolver) -> None:
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    for selectors in (ACME, Selectors("app", "globex")):
        resolver.watch(await route_of(resolver, selectors))
    async with following(resolver):
        draining = replace(SERVER, draining=True)
        registry.put_server(draining)
        await eventually(lambda: updates)
        assert [(one.tenant_id, one.new.server if one.new else None) for one in updates] == [(1, draining)]


async def test_a_watched_tenant_that_is_dropped_is_told(registry: FakeRegistry, resolver: Resolver) -> None:
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    acme = await route_of(resolver)
    resolver.watch(acme)
    async with following(resolver):
        registry.remove(1)
        await eventually(lambda: updates)
        assert updates == [RouteUpdate(1, acme, None)]


async def test_watching_an_overtaken_route_tells_the_newer_one(registry: FakeRegistry, resolver: Resolver) -> None:
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    old = await route_of(resolver)
    resolver.apply_change(registry.put(replace(old, generation=2)))
    resolver.watch(old)
    await eventually(lambda: updates)
    assert updates == [RouteUpdate(1, old, registry.routes[1])]


async def test_changes_in_quick_succession_end_with_the_last(registry: FakeRegistry, resolver: Resolver) -> None:
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    resolver.watch(await route_of(resolver))
    async with following(resolver):
        for generation in range(2, 40):
            registry.put(replace(registry.routes[1], generation=generation))
            await asyncio.sleep(0)
        await eventually(lambda: resolver.current(1) == registry.routes[1])
        last = updates[-1].new
        assert last is not None
        assert last.generation == 39


async def test_a_listener_that_fails_harms_nobody(
    registry: FakeRegistry, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    updates: list[RouteUpdate] = []

    def broken(update: RouteUpdate) -> None:
        raise ZeroDivisionError

    resolver.subscribe(broken)
    resolver.subscribe(updates.append)
    resolver.watch(await route_of(resolver))
    async with following(resolver):
        registry.put(replace(registry.routes[1], generation=2))
        await eventually(lambda: updates)
    assert "listener failed" in caplog.text


async def test_the_shared_database_moving_is_told_to_those_who_use_it(registry: FakeRegistry) -> None:
    registry.put(make_route(8, "commons"))
    registry.put(make_route(9, "newco", server=None, database_name=None, role=None, shared=True))
    resolver = Resolver(registry, config=ResolverConfig(shared_tenant="commons"))
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    resolver.watch(await route_of(resolver, Selectors("app", "newco")))
    async with following(resolver):
        registry.put(replace(registry.routes[8], database_name="elsewhere", generation=2))
        await eventually(lambda: updates)
        assert [(one.tenant_id, one.new.database_name if one.new else None) for one in updates] == [(9, "elsewhere")]
    await resolver.close()


async def test_watched_tenants_are_not_dropped_from_a_full_cache(registry: FakeRegistry, resolver: Resolver) -> None:
    resolver.watch(await route_of(resolver))
    for number in range(100, 150):
        registry.put(make_route(number, f"t{number}"))
    for number in range(100, 150):
        await resolver.resolve(Selectors("app", f"t{number}"))
    assert resolver.current(1) is not None
    cached = resolver.status().cached
    assert cached["routes"] <= 8
    assert all(size <= 40 for size in cached.values())


async def test_asking_for_nonsense_drops_nothing_known(registry: FakeRegistry, resolver: Resolver) -> None:
    async with following(resolver):
        await resolver.resolve(ACME)
        for number in range(100):
            await resolver.resolve(Selectors(f"u{number}", f"nonsense{number}"))
        before = registry.asked["name"]
        await resolver.resolve(ACME)
        assert registry.asked["name"] == before


# Without the registry.


async def test_known_tenants_go_on_and_unknown_ones_are_told_to_come_back(
    registry: FakeRegistry, resolver: Resolver, clock: Clock
) -> None:
    await resolver.resolve(ACME)
    registry.down = True
    clock.now += 3600.0
    assert (await resolver.resolve(ACME)).failure is None
    with pytest.raises(Failure) as caught:
        await resolver.resolve(Selectors("app", "globex"))
    assert caught.value.sqlstate == "57P03"
    status = resolver.status()
    assert not status.registry_up
    assert status.remembered > 0


async def test_a_remembered_absence_is_no_certainty_without_the_registry(
    registry: FakeRegistry, resolver: Resolver, clock: Clock
) -> None:
    await resolver.resolve(Selectors("app", "newco"))
    registry.down = True
    clock.now += 60.0
    with pytest.raises(Failure) as caught:
        await resolver.resolve(Selectors("app", "newco"))
    assert caught.value.spec.name == "registry_down"


async def test_a_registry_that_hangs_is_down(registry: FakeRegistry, resolver: Resolver, clock: Clock) -> None:
    await resolver.resolve(ACME)
    registry.hanging = True
    clock.now += 60.0
    async with asyncio.timeout(2.0):
        assert (await resolver.resolve(ACME)).failure is None
        with pytest.raises(Failure):
            await resolver.resolve(Selectors("app", "globex"))


async def test_the_feed_is_found_again_and_what_was_missed_is_told(registry: FakeRegistry, resolver: Resolver) -> None:
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    resolver.watch(await route_of(resolver))
    async with following(resolver):
        registry.lose_followers()
        await eventually(lambda: not resolver.status().live and not resolver.status().registry_up)
        registry.put(replace(registry.routes[1], generation=2))
        registry.come_back()
        await eventually(lambda: resolver.status().live)
        await eventually(lambda: updates)
        assert updates[-1].new == registry.routes[1]
        assert resolver.status().registry_up
        assert resolver.status().lag == 0.0
        assert registry.followers == 1
    assert registry.followers == 0


async def test_while_the_feed_is_lost_answers_expire(registry: FakeRegistry, resolver: Resolver, clock: Clock) -> None:
    await resolver.resolve(ACME)
    registry.put(replace(registry.routes[1], state=TenantState.SUSPENDED))
    clock.now += 6.0
    assert (await route_of(resolver)).state is TenantState.SUSPENDED


async def test_a_registry_restored_to_an_older_version_is_read_anew(registry: FakeRegistry, resolver: Resolver) -> None:
    async with following(resolver):
        await resolver.resolve(ACME)
        registry.lose_followers()
        await eventually(lambda: not resolver.status().live)
        registry.now, registry.log = 2, []
        registry.routes[1] = replace(registry.routes[1], database_name="restored")
        registry.come_back()
        await eventually(lambda: resolver.status().live)
        assert (await route_of(resolver)).database_name == "restored"
        assert resolver.status().version == 2


async def test_reload_returns_when_all_changes_are_in_force(registry: FakeRegistry, resolver: Resolver) -> None:
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    resolver.watch(await route_of(resolver))
    async with following(resolver):
        registry.put(replace(registry.routes[1], generation=2))
        assert await resolver.reload() == registry.now
        assert len(updates) == 1


async def test_what_a_node_can_open_only_now_is_asked_for_again_although_the_version_is_the_same(
    registry: FakeRegistry, resolver: Resolver, clock: Clock
) -> None:
    updates: list[RouteUpdate] = []
    resolver.subscribe(updates.append)
    async with following(resolver):
        resolver.watch(await route_of(resolver))
        clock.now += 1.0
        opened = Credentials("acme_role", Secret("opened"))
        registry.routes[1] = replace(registry.routes[1], role=opened)
        await resolver.ask_anew()
        assert [update.new and update.new.role for update in updates] == [opened]
        assert resolver.status().live


async def test_reload_without_the_registry_changes_nothing_and_says_why(
    registry: FakeRegistry, resolver: Resolver
) -> None:
    before = await route_of(resolver)
    registry.down = True
    with pytest.raises(RegistryUnavailable, match="down"):
        await resolver.reload()
    assert await route_of(resolver) == before


async def test_many_floors_do_not_grow_the_memory(resolver: Resolver) -> None:
    for number in range(10_000):
        resolver.apply_change(RouteChange(number + 100, ChangeKind.TENANT, number))
    assert len(resolver.cache._floors) <= 4096
