"""Plain counters that the relay keeps per tenant; the metrics are made of them.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

HISTOGRAM_BUCKETS: Final = 28
"""Bucket n counts durations below 2**n microseconds (and at least half of that); the last takes the rest."""


class Histogram:
    """Durations in buckets that double, from a microsecond to a bit over a minute."""

    def __init__(self) -> None:
        self.counts: list[int] = [0] * HISTOGRAM_BUCKETS
        self.total_microseconds: i64 = 0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        microseconds: i64 = i64(seconds * 1e6)
        microseconds = max(microseconds, 0)
        self.total_microseconds += microseconds
        bucket: i64 = 0
        while microseconds > 0 and bucket < HISTOGRAM_BUCKETS - 1:
            microseconds >>= 1
            bucket += 1
        self.counts[bucket] += 1


class Counters:
    """What happened to one tenant since the node started; these outlive its pools."""

    def __init__(self) -> None:
        self.transactions: i64 = 0
        self.queries: i64 = 0
        self.prepared_again: i64 = 0
        self.bytes_from_clients: i64 = 0
        self.bytes_to_clients: i64 = 0
        self.waits: Histogram = Histogram()
        self.transaction_times: Histogram = Histogram()
        self.errors: dict[str, int] = {}

    def count_error(self, sqlstate: str) -> None:
        """Count an error by its SQLSTATE; past 64 different ones they count as `other`."""
        if sqlstate not in self.errors and len(self.errors) >= 64:
            sqlstate = "other"
        self.errors[sqlstate] = self.errors.get(sqlstate, 0) + 1
