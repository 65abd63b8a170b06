from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import pytest
from harness.waiting import allowed, eventually

from registry import Registry, open_registry
from registry.contract import Address, ChangeKind, Limits, RegistryUnavailable, RouteChange, Secret, TenantState
from registry.domain.models import LoginChange, ServerChange, TenantChange
from registry.service import RegistryService
from registry.store import transaction as transactions

Open = Callable[..., AbstractAsyncContextManager[Registry]]
Feed = AsyncGenerator[Sequence[RouteChange], None]
A_SECOND = 1.0


def feed_of(registry: Registry, after: int | None = None) -> AbstractAsyncContextManager[Feed]:
    return aclosing(registry.reader.changes(after=after))


async def next_of(feed: Feed, seconds: float = 10.0) -> list[RouteChange]:
    async with asyncio.timeout(seconds):
        return list(await anext(feed))


async def test_the_first_batch_is_everything_at_the_present_version(registry: Registry, acme: int) -> None:
    async with feed_of(registry) as feed:
        assert await next_of(feed) == [RouteChange(await registry.reader.version(), ChangeKind.EVERYTHING)]


async def test_a_change_of_another_process_is_seen_within_a_second(
    registry: Registry, acme: int, open_it: Open
) -> None:
    async with open_it() as other, feed_of(other) as feed:
        await next_of(feed)
        for _ in range(3):
            coming = asyncio.create_task(next_of(feed))
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            await registry.service.suspend_tenant("acme")
            (change,) = await coming
            assert time.monotonic() - begun < allowed(A_SECOND)
            assert (change.kind, change.key) == (ChangeKind.TENANT, acme)
            route = (await other.reader.route_by_id(acme)).value
            assert route is not None
            assert route.state is TenantState.SUSPENDED
            await registry.service.resume_tenant("acme")
            await next_of(feed)


async def test_a_reload_is_quicker_than_the_poll(registry: Registry, acme: int, open_it: Open) -> None:
    async with open_it(poll_interval=60.0) as other, feed_of(other) as feed:
        await next_of(feed)
        coming = asyncio.create_task(next_of(feed))
        await asyncio.sleep(0.05)
        await registry.service.suspend_tenant("acme")
        version = await other.reader.reload()
        assert (await coming)[-1].version == version


async def test_a_feed_goes_on_where_it_left_off(registry: Registry, acme: int) -> None:
    before = await registry.reader.version()
    await registry.service.set_tenant("acme", TenantChange(limits=Limits(pool_size=2)))
    await registry.service.set_server("eu1", ServerChange(reserve=3))
    await registry.service.rotate_login("app", "acme")
    async with feed_of(registry, before) as feed:
        found = await next_of(feed)
    assert [(change.version - before, change.kind) for change in found] == [
        (1, ChangeKind.TENANT),
        (2, ChangeKind.SERVER),
        (3, ChangeKind.LOGIN),
    ]


async def test_a_log_pruned_past_the_position_means_everything(registry: Registry, acme: int) -> None:
    before = await registry.reader.version()
    await registry.service.suspend_tenant("acme")
    await registry.service.resume_tenant("acme")
    now = await registry.reader.version()
    async with registry.service.transaction() as tx:
        await transactions.prune(tx.connection, now - 1)
    async with feed_of(registry, before) as feed:
        assert await next_of(feed) == [RouteChange(now, ChangeKind.EVERYTHING)]
    async with feed_of(registry, now - 1) as feed:
        assert await next_of(feed) == [RouteChange(now, ChangeKind.TENANT, acme)]


async def test_the_log_is_pruned_by_itself(registry: Registry, acme: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "KEPT_VERSIONS", 3)
    monkeypatch.setattr(transactions, "PRUNE_EVERY", 1)
    before = await registry.reader.version()
    for size in range(1, 7):
        await registry.service.set_tenant("acme", TenantChange(limits=Limits(pool_size=size)))
    async with feed_of(registry, before) as feed:
        assert (await next_of(feed))[0].kind is ChangeKind.EVERYTHING
    async with feed_of(registry, before + 3) as feed:
        assert [change.version for change in await next_of(feed)] == [before + 4, before + 5, before + 6]


async def test_a_position_from_the_future_means_everything(registry: Registry, acme: int) -> None:
    async with feed_of(registry, 1_000_000) as feed:
        assert await next_of(feed) == [RouteChange(await registry.reader.version(), ChangeKind.EVERYTHING)]


async def test_a_long_transaction_is_logged_as_everything(
    registry: Registry, acme: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "MAX_LOGGED", 3)
    before = await registry.reader.version()
    async with registry.service.transaction() as tx:
        for key in range(4):
            tx.changed(ChangeKind.TENANT, key)
    async with feed_of(registry, before) as feed:
        assert await next_of(feed) == [RouteChange(before + 1, ChangeKind.EVERYTHING)]


async def test_writers_at_once_give_every_change_a_version_of_its_own(registry: Registry, open_it: Open) -> None:
    before = await registry.reader.version()

    async def write(service: RegistryService, prefix: str) -> None:
        for number in range(10):
            await service.add_tenant(f"{prefix}{number}")

    async with open_it() as other, feed_of(other, before) as feed:
        writing = asyncio.gather(
            *(write(one.service, prefix) for one, prefix in ((registry, "a"), (other, "b"), (registry, "c")))
        )
        seen: list[RouteChange] = []
        while len(seen) < 30:
            seen += await next_of(feed)
        await writing
    assert [change.version for change in seen] == list(range(before + 1, before + 31))
    assert {change.key for change in seen} == {tenant.tenant_id for tenant in await registry.service.tenants()}


async def test_a_version_once_seen_has_nothing_come_before_it_later(registry: Registry, open_it: Open) -> None:
    await registry.service.add_tenant("slow")
    before = await registry.reader.version()
    async with open_it() as other:
        async with registry.service.transaction() as tx:
            tx.changed(ChangeKind.TENANT, 1)
            quick = asyncio.create_task(other.service.add_tenant("quick"))
            done, _ = await asyncio.wait([quick], timeout=0.2)
            assert not done
            assert await other.reader.version() == before
        await quick
        assert await other.reader.version() == before + 2


async def test_concurrent_changes_of_one_tenant_lose_nothing(registry: Registry, acme: int, open_it: Open) -> None:
    async with open_it() as other:
        await asyncio.gather(
            *(
                one.service.set_tenant("acme", TenantChange(role_user="r", role_password=Secret(f"pw{number}")))
                for number, one in enumerate([registry, other] * 5)
            )
        )
    tenant = await registry.service.tenant("acme")
    assert tenant.generation == 11


async def test_a_failed_transaction_changes_nothing(registry: Registry, acme: int) -> None:
    before = await registry.reader.version()

    async def fail() -> None:
        async with registry.service.transaction() as tx:
            tx.changed(ChangeKind.TENANT, acme)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await registry.reader.version() == before


async def test_what_stays_the_same_makes_no_version(registry: Registry, acme: int) -> None:
    service, before = registry.service, await registry.reader.version()
    await service.set_tenant("acme", TenantChange(server="eu1", database_name="acme_data", aliases=("Acme",)))
    await service.set_server(
        "eu1", ServerChange(addresses=(Address("10.0.0.1"),), role_password=Secret("of the server"))
    )
    await service.set_login("app", "acme", LoginChange(password=Secret("sesame")))
    await service.resume_tenant("acme")
    assert await registry.reader.version() == before


async def test_removing_a_tenant_tells_of_its_logins_too(registry: Registry, acme: int) -> None:
    before = await registry.reader.version()
    await registry.service.remove_tenant("acme")
    async with feed_of(registry, before) as feed:
        assert {(change.kind, change.key) for change in await next_of(feed)} == {
            (ChangeKind.TENANT, acme),
            (ChangeKind.LOGIN, acme),
        }
    assert (await registry.reader.login("app", acme)).value is None


async def test_ids_are_never_given_again(registry: Registry, acme: int) -> None:
    await registry.service.remove_tenant("acme")
    again = await registry.service.add_tenant("acme")
    assert again.tenant_id > acme


async def test_a_lost_connection_ends_the_feed(
    registry: Registry, acme: int, registry_url: str, request: pytest.FixtureRequest
) -> None:
    if registry_url.startswith("sqlite"):
        pytest.skip("there is no connection to lose")
    async with feed_of(registry) as feed:
        await next_of(feed)
        name = registry_url.rpartition("/")[2]
        request.getfixturevalue("pg18").psql(
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
        )
        with pytest.raises(RegistryUnavailable):
            await next_of(feed)


async def test_a_replaced_file_ends_the_feed(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with open_registry(f"sqlite:///{path}", poll_interval=0.02) as registry, feed_of(registry) as feed:
        await next_of(feed)
        shutil.copy(path, tmp_path / "copy")
        (tmp_path / "copy").replace(path)
        with pytest.raises(RegistryUnavailable, match="replaced"):
            await next_of(feed)


async def test_a_restored_file_is_read_and_a_missing_one_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with open_registry(f"sqlite:///{path}") as registry:
        await registry.service.add_tenant("before")
    shutil.copy(path, tmp_path / "backup")
    async with open_registry(f"sqlite:///{path}") as registry:
        await registry.service.add_tenant("after")
        assert (await registry.reader.route_by_name("after")).value is not None
        path.unlink()
        for ask in (registry.reader.version(), registry.service.tenants(), anext(registry.reader.changes())):
            with pytest.raises(RegistryUnavailable):
                await ask
        (tmp_path / "registry.db-wal").unlink(missing_ok=True)
        (tmp_path / "registry.db-shm").unlink(missing_ok=True)
        (tmp_path / "backup").replace(path)
        assert (await registry.reader.route_by_name("after")).value is None
        assert [tenant.slug for tenant in await registry.service.tenants()] == ["before"]


async def test_a_closed_feed_leaves_no_connection(
    registry: Registry, registry_url: str, request: pytest.FixtureRequest
) -> None:
    if registry_url.startswith("sqlite"):
        pytest.skip("counted in PostgreSQL only")
    connections = f"select count(*) from pg_stat_activity where datname = '{registry_url.rpartition('/')[2]}'"
    server = request.getfixturevalue("pg18")
    before = server.psql(connections)
    task = asyncio.create_task(_follow_forever(registry))
    await eventually(lambda: server.psql(connections) != before, what="the connection of the feed")
    task.cancel()
    await eventually(lambda: server.psql(connections) == before, what="the end of the connection")


async def _follow_forever(registry: Registry) -> None:
    async with feed_of(registry) as feed:
        async for _ in feed:
            pass
