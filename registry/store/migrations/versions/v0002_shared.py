"""Tenants say whether they are served from the shared database; a limit that limited nothing is gone."""

from __future__ import annotations

import logging
from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

log = logging.getLogger(__name__)

NAMED: Final = 5
"""How many of the tenants concerned are named."""


def upgrade() -> None:
    """Add the column, false for all: who has no database of its own is not in everybody's without having said so."""
    # In place: made anew in batch mode, SQLite's table would forget which ids it has given, and give them again.
    op.add_column("tenants", sa.Column("shared", sa.Boolean(), nullable=False, server_default=sa.false()))
    # No program reads it: whoever has set it must not find it at work one day.
    op.execute("UPDATE tenants SET weight = NULL WHERE weight IS NOT NULL")
    tenants = sa.table("tenants", sa.column("slug"), sa.column("state"))
    pending = sa.select(tenants.c.slug).where(tenants.c.state == "PENDING").order_by(tenants.c.slug)
    slugs = list(op.get_bind().scalars(pending))
    if slugs:
        log.warning(
            "tenants that are PENDING: %d (%s%s); nodes with routing.shared_tenant have served them from the shared"
            " database and refuse them from now on; `pgtenant tenant set SLUG --shared` lets one back in",
            len(slugs),
            ", ".join(slugs[:NAMED]),
            ", ..." if len(slugs) > NAMED else "",
        )


def downgrade() -> None:
    """Take the column away; the tenants that it concerned are PENDING again."""
    op.execute("UPDATE tenants SET state = 'PENDING' WHERE shared AND state = 'READY'")
    op.drop_column("tenants", "shared")
