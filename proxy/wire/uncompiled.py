"""Stands in for the package `cython`, of which an installation has no need, in modules that run interpreted."""

from __future__ import annotations

compiled: bool = False
