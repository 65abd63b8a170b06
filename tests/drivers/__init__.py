"""The same scenarios for many drivers, directly and through pgtenant: `python -m drivers`."""
