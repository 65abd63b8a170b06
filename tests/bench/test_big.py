from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from harness.databases import Database, create_database, drop_database
from harness.process import started

from bench.big import Finding
from bench.big_cases import CASES, GIGABYTE, Big, Sizes
from bench.model import BenchError, Endpoint
from bench.processes import PeakMemory
from bench.rawsession import RawSession
from proxy.demo.facts import ServerFacts

GROW = """
print(flush=True)
input()
taken = bytearray(b"x" * 60_000_000)
del taken
print(flush=True)
input()
"""


@pytest.fixture(scope="module")
def endpoint(pg18: ServerFacts) -> Iterator[Endpoint]:
    database = create_database(pg18, "big")
    try:
        yield at(database)
    finally:
        drop_database(database)


def at(database: Database) -> Endpoint:
    return Endpoint(database.server.host, database.server.port, database.role, database.name, database.password)


def test_sizes_go_with_the_scale_up_to_what_a_field_can_hold() -> None:
    assert Sizes.scaled(1, 50) == Sizes(GIGABYTE, 10_000_000, 100_000, 4 * GIGABYTE, 50)
    assert Sizes.scaled(2, 50).value == GIGABYTE
    small = Sizes.scaled(1e-9, 2)
    assert min(small.value, small.rows, small.wide_rows, small.copied) >= 1


@pytest.mark.parametrize("case", [case for case in CASES if not case.many], ids=lambda case: case.name)
def test_cases_move_what_they_say(case: Big, endpoint: Endpoint) -> None:
    sizes = Sizes.scaled(0.002, 2)
    case.prepare(endpoint)
    case.warm_up(endpoint)
    assert case.run(endpoint, sizes) > 100_000
    assert case.amount(sizes)


@pytest.mark.parametrize("case", [case for case in CASES if case.many], ids=lambda case: case.name)
def test_slow_cases_end_without_having_moved_everything(case: Big, endpoint: Endpoint) -> None:
    sizes = replace(Sizes.scaled(0.05, 3), slow=0.2)
    case.prepare(endpoint)
    assert 0 < case.run(endpoint, sizes) < sizes.sessions * sizes.copied


def test_an_error_of_the_server_is_no_result(endpoint: Endpoint) -> None:
    with RawSession(endpoint) as session:
        session.query("select 1 / 0")
        with pytest.raises(BenchError, match="division by zero"):
            session.answer()


def test_the_peak_of_memory_is_that_from_now_on() -> None:
    with started([sys.executable, "-c", GROW], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        memory = PeakMemory(child.pid)
        assert memory.peak() - memory.before < 5_000_000
        print(file=child.stdin, flush=True)
        child.stdout.readline()
        assert memory.peak() - memory.before > 50_000_000
        again = PeakMemory(child.pid)
        assert again.peak() - again.before < 5_000_000
        print(file=child.stdin, flush=True)


def test_many_sessions_have_a_bound_each() -> None:
    one, many = (Finding("x", "1 GB", sessions, 1, 1.0, 0, 0).bound for sessions in (1, 50))
    assert many > one
