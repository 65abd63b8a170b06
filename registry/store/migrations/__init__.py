"""Alembic migrations, applied by `registry.store.schema.upgrade`."""
