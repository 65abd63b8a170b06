"""Long manifests: what is done before the lock, what under it, and what if others change the registry meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from registry import Registry, open_registry
from registry.contract import Secret
from registry.domain.models import LoginChange, TenantChange
from registry.manifest import ManifestError, apply_manifest, parse_manifest
from registry.manifest.apply import ATTEMPTS, Progress, Stage
from registry.secrets import KeyRing
from registry.service import RegistryService
from registry.verifiers import build_verifier, fits

VERIFIER = build_verifier("sesame", b"0" * 16)
MANY = 300


def manifest_text(tenants: int, *, password: str = f'verifier = "{VERIFIER}"') -> str:
    parts = ['[[server]]\nname = "eu1"\nhost = "10.0.0.1"\nrole = "app"\n']
    parts += [
        f'[[tenant]]\nslug = "t{number}"\nserver = "eu1"\ndatabase = "d{number}"\naliases = ["a{number}"]\n'
        f'[[login]]\nuser = "app"\ntenant = "t{number}"\n{password}\n'
        for number in range(tenants)
    ]
    return "\n".join(parts)


class Meddler(Progress):
    """Another administrator, who changes the registry whenever this one is about to write."""

    def __init__(self, url: str, keyring: KeyRing, work: Callable[[RegistryService, int], Coroutine[Any, Any, Any]]):
        self.times = 0
        self._url = url
        self._keyring = keyring
        self._work = work

    def begin(self, stage: Stage, total: int | None = None) -> None:
        if stage is Stage.WRITING:
            self.times += 1
            elsewhere = threading.Thread(target=lambda: asyncio.run(self._change()))
            elsewhere.start()
            elsewhere.join()

    async def _change(self) -> None:
        async with open_registry(self._url, self._keyring) as registry:
            await self._work(registry.service, self.times)


async def test_many_rows_take_few_statements_while_the_registry_is_locked(registry: Registry) -> None:
    statements: list[str] = []
    engine = registry._database.writing.sync_engine
    sa.event.listen(engine, "before_cursor_execute", lambda *event: statements.append(event[2]))
    applied = await apply_manifest(registry.service, parse_manifest(manifest_text(MANY)))
    assert len(applied.differences) == 1 + 2 * MANY
    assert len(await registry.service.tenants()) == len(await registry.service.logins()) == MANY
    assert len(statements) < 20, statements


async def test_what_others_change_meanwhile_is_neither_lost_nor_overwritten_unseen(
    registry: Registry, registry_url: str, keyring: KeyRing
) -> None:
    async def work(service: RegistryService, times: int) -> None:
        if times == 1:
            await service.add_tenant("theirs", TenantChange(aliases=("old",)))
            await service.add_login("app", "theirs", LoginChange(password=Secret("theirs")))

    meddler = Meddler(registry_url, keyring, work)
    applied = await apply_manifest(registry.service, parse_manifest(manifest_text(2)), progress=meddler)
    assert meddler.times == 2
    assert len(applied.differences) == 5
    assert {tenant.slug for tenant in await registry.service.tenants()} == {"t0", "t1", "theirs"}
    ids = [tenant.tenant_id for tenant in await registry.service.tenants()]
    assert len(set(ids)) == 3
    assert fits("theirs", (await registry.service.login("app", "theirs")).verifier)


async def test_a_name_that_somebody_takes_meanwhile_is_refused_and_nothing_is_changed(
    registry: Registry, registry_url: str, keyring: KeyRing
) -> None:
    meddler = Meddler(
        registry_url, keyring, lambda service, _: service.add_tenant("theirs", TenantChange(aliases=("a1",)))
    )
    with pytest.raises(ManifestError, match="the name 'a1' is that of tenant 'theirs'"):
        await apply_manifest(registry.service, parse_manifest(manifest_text(2)), progress=meddler)
    assert [tenant.slug for tenant in await registry.service.tenants()] == ["theirs"]
    assert await registry.service.servers() == []


async def test_a_registry_that_never_keeps_still_is_locked_at_last(
    registry: Registry, registry_url: str, keyring: KeyRing
) -> None:
    meddler = Meddler(registry_url, keyring, lambda service, times: service.add_tenant(f"theirs{times}"))
    applied = await apply_manifest(registry.service, parse_manifest(manifest_text(1)), progress=meddler)
    assert meddler.times == ATTEMPTS
    assert len(applied.differences) == 3
    assert len(await registry.service.tenants()) == ATTEMPTS + 1


async def test_passwords_are_hashed_in_threads_and_told_one_by_one(registry: Registry) -> None:
    class Told(Progress):
        total, done = 0, 0

        def begin(self, stage: Stage, total: int | None = None) -> None:
            if stage is Stage.PASSWORDS:
                self.total = total or 0

        def advance(self, pieces: int) -> None:
            self.done += pieces

    told = Told()
    text = manifest_text(70, password='password = "sesame"')
    await apply_manifest(registry.service, parse_manifest(text), progress=told)
    assert told.total == told.done == 70
    verifiers = {login.verifier for login in await registry.service.logins()}
    assert len(verifiers) == 70, "each has a salt of its own"
    assert all(fits("sesame", verifier) for verifier in list(verifiers)[:3])
    assert (await apply_manifest(registry.service, parse_manifest(text))).differences == ()


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_line_break_is_no_part_of_a_user_name(registry: Registry, *, dry_run: bool) -> None:
    text = f'[[login]]\nuser = "a\\nb"\nall_tenants = true\nverifier = "{VERIFIER}"\n'
    with pytest.raises(ManifestError, match=r"'a\\nb' has a control character"):
        await apply_manifest(registry.service, parse_manifest(text), dry_run=dry_run)


def test_the_line_of_an_error_is_found_among_tables_of_other_kinds(tmp_path: Path) -> None:
    text = manifest_text(3).replace('database = "d2"', 'database = "d2"\npool_mode = "both"')
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, name="m.toml", directory=tmp_path)
    wanted = next(number for number, line in enumerate(text.splitlines(), start=1) if line.startswith("pool_mode"))
    assert str(caught.value).startswith(f"m.toml:{wanted}: tenant 't2': 'both' is no pool_mode")
