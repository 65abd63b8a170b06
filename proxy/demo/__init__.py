"""Embedded PostgreSQL servers and the demonstration that is built on them: `pgtenant demo`."""
