from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time

import pytest
from harness.process import started

from bench.model import BenchError
from bench.processes import cpu_seconds, memory_bytes, parse_memory, parse_stat, process_tree

STAT = "4711 (a (very) odd name) S 42 4711 4711 0 -1 4194304 100 0 0 0 30 12 5 3 20 0 1 0 100 1000 10"
ROLLUP = """\
56231c8bb000-7ffdbefc3000 ---p 00000000 00:00 0                          [rollup]
Rss:                1620 kB
Pss:                 364 kB
Pss_Anon:            108 kB
Pss_File:            256 kB
Pss_Shmem:             4 kB
Anonymous:           200 kB
"""
BURN = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "sum(range(8_000_000))"])
print(flush=True)
input()
"""


def test_a_command_name_with_spaces_and_parentheses_is_no_obstacle() -> None:
    assert parse_stat(STAT) == (42, 30 + 12 + 5 + 3)


def test_memory_counts_anonymous_and_shared_pages_but_no_files() -> None:
    assert parse_memory(ROLLUP) == 112 * 1024


def test_memory_of_older_kernels_is_the_anonymous_pages() -> None:
    older = "\n".join(line for line in ROLLUP.splitlines() if not line.startswith("Pss_"))
    assert parse_memory(older) == 200 * 1024


def test_memory_that_the_kernel_does_not_tell_is_an_error() -> None:
    with pytest.raises(BenchError, match="does not tell"):
        parse_memory("Rss: 1620 kB")


def test_the_tree_holds_children_and_their_time_is_counted_after_their_end() -> None:
    with started([sys.executable, "-c", BURN], stdin=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        seen = _wait_for_child(parent.pid)
        parent.stdout.readline()
        alone = process_tree(parent.pid)
        used = cpu_seconds(parent.pid)
        parent.communicate("\n")
    assert len(seen) == 2
    assert alone == [parent.pid]
    assert used >= 0.05


def test_an_ended_process_is_an_error() -> None:
    with started([sys.executable, "-c", ""]) as ended:
        ended.wait()
    with pytest.raises(BenchError, match="has ended"):
        cpu_seconds(ended.pid)


def test_memory_grows_with_what_is_held() -> None:
    filling = os.urandom(20_000_000)
    before = memory_bytes(os.getpid())
    with mmap.mmap(-1, len(filling)) as held:
        held.write(filling)
        assert memory_bytes(os.getpid()) - before > len(filling) / 2


def _wait_for_child(pid: int) -> list[int]:
    deadline = time.monotonic() + 20
    while len(tree := process_tree(pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    return tree
