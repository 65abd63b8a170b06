"""Readers of what others send: whatever comes, no error but the documented ones, and no memory for mere promises."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from harness.fuzztargets import TALKS, TARGETS, TEXTS, with_huge_claims
from hypothesis import given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("corpus")
SEEDS = {name: [file.read_bytes() for file in sorted((CORPUS / name).iterdir())] for name in TARGETS}
MOST_MEMORY = 300_000
"""Bytes beyond the seed's own size: the shortest of the false claims are 64 kB."""

edits = st.lists(
    st.tuples(
        st.integers(0, 10_000), st.sampled_from(["put", "cut", "change", "repeat"]), st.binary(min_size=1, max_size=6)
    ),
    min_size=1,
    max_size=5,
)


def edited(seed: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    data = seed
    for place, kind, new in changes:
        at = place % (len(data) + 1)
        if kind == "put":
            data = data[:at] + new + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + len(new) :]
        elif kind == "change":
            data = data[:at] + new + data[at + len(new) :]
        else:
            data = data[:at] + data[at : at + 8 * len(new)] + data[at:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_known_inputs_raise_nothing_undocumented(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        TARGETS[name](b"")


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_raise_nothing_undocumented(name: str) -> None:
    @settings(max_examples=60 if name in TALKS else 200)
    @given(st.one_of(st.binary(max_size=300), st.builds(edited, st.sampled_from(SEEDS[name]), edits)))
    def attempt(data: bytes) -> None:
        TARGETS[name](data)

    attempt()


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - TALKS - TEXTS))
def test_lengths_that_are_only_claimed_cost_no_memory(name: str) -> None:
    tracemalloc.start()
    try:
        for seed in SEEDS[name]:
            for data in with_huge_claims(seed):
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                TARGETS[name](data)
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before < MOST_MEMORY, data
    finally:
        tracemalloc.stop()
