"""The change log as a stream: what nodes follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.contract import ChangeKind, RouteChange
from registry.store.database import Database
from registry.store.tables import change_log, clock

MAX_BATCH: Final = 5_000
"""Entries beyond which it is cheaper for a node to forget everything."""

READ_TIMEOUT: Final = 5.0
"""Seconds after which a database that does not answer is taken for lost."""


async def follow(
    database: Database, after: int | None, *, interval: float
) -> AsyncGenerator[Sequence[RouteChange], None]:
    """Yield the changes after a version as they come, forever, looking at least every `interval` seconds.

    A version is never split over two batches.  `after` None, a log that does not reach back to `after`, and a
    registry that is older than `after` (a restored one) give one EVERYTHING at the present version.  Raises
    RegistryUnavailable, SchemaError when the registry is lost.  The caller closes the generator.
    """
    with database.errors(), database.bell.listening() as rung:
        # Listening begins before the first read: nothing can come between them.
        async with database.watching() as watch:
            position = after
            while True:
                async with asyncio.timeout(READ_TIMEOUT), watch.reading() as connection:
                    batch = await _read(connection, position)
                if batch:
                    position = batch[-1].version
                    yield batch
                else:
                    await watch.wait(rung, interval)


async def _read(connection: AsyncConnection, position: int | None) -> list[RouteChange]:
    # One statement sees one snapshot: version, reach of the log and entries belong together.
    newer = change_log.c.version > (-1 if position is None else position)
    entries = sa.and_(newer, change_log.c.version <= clock.c.v)
    statement = (
        sa.select(clock.c.v, clock.c.pruned, change_log)
        .outerjoin(change_log, entries)
        .order_by(change_log.c.version, change_log.c.seq)
        .limit(1 if position is None else MAX_BATCH + 1)
    )
    rows = (await connection.execute(statement)).all()
    now, pruned = rows[0].v, rows[0].pruned
    if position is None or position < pruned or position > now or len(rows) > MAX_BATCH:
        return [RouteChange(now, ChangeKind.EVERYTHING)]
    return [RouteChange(row.version, ChangeKind(row.kind), row.key) for row in rows if row.version is not None]
