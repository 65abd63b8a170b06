"""Measures pgtenant beside PgBouncer and a direct connection, round by round: `python -m bench`."""
