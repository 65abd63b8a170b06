"""Changing the registry: rows, the change log and the version, in one transaction."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import ChangeKind, Secret
from registry.domain.models import Keep
from registry.errors import Conflict, SecretError
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
        self._replaced: list[str] = []

    def changed(self, kind: ChangeKind, key: int | None) -> None:
        """Note what was changed; see `RouteChange`."""
        self._changes[kind, key] = None

    def take_replaced(self) -> list[str]:
        """The columns of the secrets that were replaced since this was last asked."""
        replaced, self._replaced = self._replaced, []
        return replaced

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing was changed so far."""
        return not self._changes

    def reseal(self, wanted: Secret | Keep | None, sealed: bytes | None, context: str) -> tuple[bytes | None, bool]:
        """The sealed form of a wanted secret, and whether it differs from the present one.

        A secret that is the same already stays sealed as it is.  Raises SecretError where there is no key.
        """
        if isinstance(wanted, Keep):
            return sealed, False
        if wanted is None or sealed is None:
            return self._replace(wanted, context, differs=(wanted is None) != (sealed is None))
        ring = self.vault.ring
        try:
            present = self.vault.open(sealed, context)
        except SecretError:
            present = None  # Setting it anew is how a secret whose key is lost is repaired.
        if present == wanted and ring.is_current(sealed):
            return sealed, False
        return self._replace(wanted, context, differs=present != wanted)

    def _replace(self, wanted: Secret | None, context: str, *, differs: bool) -> tuple[bytes | None, bool]:
        if differs:
            self._replaced.append(context.rpartition("/")[2])
        return self.vault.seal(wanted, context), differs

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
async def changing(database: Database, vault: Vault, *, commit: bool = True) -> AsyncIterator[Transaction]:
    """Run a transaction that no other writer overlaps; `commit` False undoes it at the end, as a rehearsal.

    Raises RegistryUnavailable, SchemaError; and Conflict for what a constraint refuses.
    """
    with database.errors():
        await database.look_after_pools()
        try:
            async with database.writing.connect() as connection, connection.begin() as bounds:
                await database.take_turn(connection)
                transaction = Transaction(database, connection, vault)
                yield transaction
                if commit:
                    await transaction.finish()
                else:
                    await bounds.rollback()
        except IntegrityError:
            raise Conflict("the change contradicts what is in the registry", "look at it again and repeat") from None
    database.bell.ring()
