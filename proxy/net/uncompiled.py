"""Stands in for the package `cython`, of which an installation has no need, where `syscalls` runs interpreted."""

from __future__ import annotations

compiled: bool = False
