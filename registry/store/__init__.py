"""The registry's tables: one implementation for SQLite and PostgreSQL."""
