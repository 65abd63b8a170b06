"""What Alembic runs: migrations on the connection, and in the transaction, that `registry.store.schema` prepared."""

from __future__ import annotations

from alembic import context

from registry.store.tables import metadata


def run() -> None:
    """Migrate; batch mode, because SQLite cannot alter a table in place."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        render_as_batch=True,
        transactional_ddl=True,
        version_table="schema_version",
    )
    context.run_migrations()


run()
