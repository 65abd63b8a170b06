"""Changing the registry: rows, the change log and the version, in one transaction."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import ChangeKind
from registry.errors import Conflict
from registry.secrets import Vault
from registry.store.database import Database
from registry.store.tables import change_log, clock

MAX_LOGGED: Final = 1_000
"""Changes in one transaction beyond which the log says EVERYTHING instead."""

KEPT_VERSIONS: Final = 10_000
"""Versions that the change log reaches back, and some more."""

PRUNE_EVERY: Final = 256


class Transaction:
    """One change of the registry: what is done on `connection` is committed or undone as a whole.

    Whoever changes a row calls `changed`; the new version is taken when all is done.
    """

    def __init__(
        self,
        database: Database,
        connection: AsyncConnection,
        vault: Vault,
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.connection = connection
        self.vault = vault
        self.random = random
        self._database = database
        self._changes: dict[tuple[ChangeKind, int | None], None] = {}

    def changed(self, kind: ChangeKind, key: int | None) -> None:
        """Note what was changed; see `RouteChange`."""
        self._changes[kind, key] = None

    async def finish(self) -> int | None:
        """Write the change log and take the new version; None where nothing was changed."""
        if not self._changes:
            return None
        version: int = (
            await self.connection.execute(sa.update(clock).values(v=clock.c.v + 1).returning(clock.c.v))
        ).scalar_one()
        changes = self._changes if len(self._changes) <= MAX_LOGGED else {(ChangeKind.EVERYTHING, None): None}
        await self.connection.execute(
            sa.insert(change_log),
            [
                {"version": version, "seq": seq, "kind": kind.value, "key": key}
                for seq, (kind, key) in enumerate(changes)
            ],
        )
        if version % PRUNE_EVERY == 0:
            await prune(self.connection, version - KEPT_VERSIONS)
        await self._database.announce(self.connection, version)
        return version


async def prune(connection: AsyncConnection, through: int) -> None:
    """Forget the changes up to a version; nodes that have not seen them will read everything anew."""
    await connection.execute(sa.delete(change_log).where(change_log.c.version <= through))
    await connection.execute(sa.update(clock).values(pruned=through).where(clock.c.pruned < through))


@asynccontextmanager
async def changing(database: Database, vault: Vault) -> AsyncIterator[Transaction]:
    """Run a transaction that no other writer overlaps.

    Raises RegistryUnavailable, SchemaError; and Conflict for what a constraint refuses.
    """
    with database.errors():
        await database.look_after_pools()
        try:
            async with database.writing.connect() as connection, connection.begin():
                await database.take_turn(connection)
                transaction = Transaction(database, connection, vault)
                yield transaction
                await transaction.finish()
        except IntegrityError:
            raise Conflict("the change contradicts what is in the registry", "look at it again and repeat") from None
    database.bell.ring()
