"""Making the registry what a manifest says: all of it or nothing, and nothing where nothing differs.

The long work (passwords, sealing, every rule) is done on what was read, while the registry stays open to others.  Then
one transaction writes the rows, if the registry is still as it was read; else the work begins again with what has
changed, of which the passwords need no second hash.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Final, Protocol

from registry.domain.checks import Check
from registry.manifest.differences import Difference
from registry.manifest.parse import Manifest
from registry.manifest.plan import NewIds, PasswordJob, Plan, Planner, count_new, password_jobs
from registry.operations.contents import Contents, Writes, difference, nothing, read_version
from registry.secrets import Vault
from registry.service import RegistryService

ATTEMPTS: Final = 5
"""Times that others may change the registry between reading and writing; after that it is locked while it is read."""

CHUNK: Final = 32
"""Passwords that a thread hashes between two reports of progress."""


class Stage(StrEnum):
    """What takes time while a manifest is applied."""

    READING = "reading the registry"
    PASSWORDS = "hashing passwords"
    COMPARING = "comparing"
    TRYING = "trying servers and databases"
    WRITING = "writing"


class Progress:
    """Is told how far the work is; this one tells nobody."""

    def begin(self, stage: Stage, total: int | None = None) -> None:
        """A stage begins, of `total` pieces where that is known."""

    def advance(self, pieces: int) -> None:
        """So many more pieces of the present stage are done."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done, or would be; no differences: the registry is as it was, its version too."""

    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    checks: tuple[Check, ...] = ()


class Inspector(Protocol):
    """Looks at a change of the registry before it is written."""

    async def examine(self, before: Contents, after: Contents) -> tuple[Check, ...]:
        """What speaks against the change; raises RegistryError to have it refused."""
        ...


async def apply_manifest(
    service: RegistryService,
    manifest: Manifest,
    *,
    prune: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    inspector: Inspector | None = None,
) -> Applied:
    """Bring the registry in line with a manifest; `prune` removes what it does not name.

    A dry run does the same and writes nothing.  `inspector` looks at what would be written, while nothing is locked.
    Raises ManifestError with file and line, and changes nothing then.
    """
    work = _Work(manifest, service.vault, prune=prune, rehearsal=dry_run, progress=progress or Progress())
    work.inspector = inspector
    plan = await (work.rehearse(service) if dry_run else work.carry_out(service))
    return Applied(plan.differences, tuple(manifest.warnings()), work.checks)


async def rehearse_on_nothing(
    manifest: Manifest, vault: Vault, *, progress: Progress | None = None, inspector: Inspector | None = None
) -> Applied:
    """Say what a manifest would make of a registry that does not exist yet; raises ManifestError."""
    work = _Work(manifest, vault, prune=False, rehearsal=True, progress=progress or Progress())
    work.inspector = inspector
    contents = nothing()
    plan = await work.plan(contents, NewIds(count(1), count(1), count(1)))
    await work.inspect(contents, plan)
    return Applied(plan.differences, tuple(manifest.warnings()), work.checks)


class _Work:
    def __init__(self, manifest: Manifest, vault: Vault, *, prune: bool, rehearsal: bool, progress: Progress) -> None:
        self._manifest = manifest
        self._vault = vault
        self._prune = prune
        self._rehearsal = rehearsal
        self._progress = progress
        self._verifiers: dict[tuple[tuple[str, str], str], str] = {}
        self.inspector: Inspector | None = None
        self.checks: tuple[Check, ...] = ()

    async def rehearse(self, service: RegistryService) -> Plan:
        self._progress.begin(Stage.READING)
        contents = await service.contents()
        # Nothing is written, so these ids only have to differ from those that there are.
        above = 1 + max(
            (
                *(one.record.server_id for one in contents.servers.values()),
                *(one.record.tenant_id for one in contents.tenants.values()),
                *(one.record.login_id for one in contents.logins.values()),
            ),
            default=0,
        )
        plan = await self.plan(contents, NewIds(count(above), count(above), count(above)))
        await self.inspect(contents, plan)
        return plan

    async def carry_out(self, service: RegistryService) -> Plan:
        for _ in range(ATTEMPTS):
            version, plan, writes = await self._prepare(service)
            if not writes.statements:
                return plan
            self._progress.begin(Stage.WRITING)
            async with service.transaction() as tx:
                if await read_version(tx.connection) == version:
                    await writes.run(tx)
                    return plan
        async with service.transaction() as tx:
            _, plan, writes = await self._prepare(service)
            await writes.run(tx)
        return plan

    async def _prepare(self, service: RegistryService) -> tuple[int, Plan, Writes]:
        self._progress.begin(Stage.READING)
        contents = await service.contents()
        ids = NewIds(*map(iter, await service.new_ids(*count_new(contents, self._manifest))))
        plan = await self.plan(contents, ids)
        await self.inspect(contents, plan)
        return contents.version, plan, await asyncio.to_thread(difference, contents, plan.after)

    async def inspect(self, contents: Contents, plan: Plan) -> None:
        """Let the inspector look at the change, once."""
        inspector, self.inspector = self.inspector, None
        if inspector is not None and plan.differences:
            self._progress.begin(Stage.TRYING)
            self.checks = await inspector.examine(contents, plan.after)

    async def plan(self, contents: Contents, ids: NewIds) -> Plan:
        jobs = password_jobs(contents, self._manifest, rehearsal=self._rehearsal)
        await self._hash([job for job in jobs if job.key not in self._verifiers])
        self._progress.begin(Stage.COMPARING)
        planner = Planner(
            contents,
            self._manifest,
            vault=self._vault,
            verifiers=self._verifiers,
            ids=ids,
            random=os.urandom,
            rehearsal=self._rehearsal,
        )
        return await asyncio.to_thread(planner.plan, prune=self._prune)

    async def _hash(self, jobs: list[PasswordJob]) -> None:
        """Hash on all processors; OpenSSL lets other threads run meanwhile."""
        if not jobs:
            return
        self._progress.begin(Stage.PASSWORDS, len(jobs))
        loop = asyncio.get_running_loop()
        executor = ThreadPoolExecutor(os.cpu_count())
        try:
            chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
            for running in [loop.run_in_executor(executor, _run, chunk) for chunk in chunks]:
                found = await running
                self._verifiers.update(found)
                self._progress.advance(len(found))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _run(jobs: list[PasswordJob]) -> dict[tuple[tuple[str, str], str], str]:
    return {job.key: job.run(os.urandom) for job in jobs}
