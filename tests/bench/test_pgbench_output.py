from __future__ import annotations

import pytest

from bench.model import BenchError
from bench.pgbench import parse_report

KEPT = """\
pgbench (18.6)
transaction type: <builtin: select only>
scaling factor: 1
query mode: simple
number of clients: 16
number of threads: 1
maximum number of tries: 1
duration: 3 s
number of transactions actually processed: 189760
number of failed transactions: 0 (0.000%)
latency average = 0.246 ms
initial connection time = 83.294 ms
tps = 65013.375433 (without initial connection time)
"""
RECONNECTING = """\
number of clients: 1
duration: 2 s
number of transactions actually processed: 7489
number of failed transactions: 0 (0.000%)
latency average = 0.267 ms
average connection time = 0.181 ms
tps = 3744.062280 (including reconnection times)
"""


def test_the_rate_of_kept_connections_is_read() -> None:
    report = parse_report(KEPT)
    assert (report.tps, report.transactions) == (65013.375433, 189760)


def test_the_rate_of_new_connections_is_read() -> None:
    report = parse_report(RECONNECTING)
    assert (report.tps, report.transactions) == (3744.06228, 7489)


def test_output_without_a_result_is_refused_with_its_end() -> None:
    with pytest.raises(BenchError, match="could not connect"):
        parse_report("pgbench: error: could not connect")


def test_failed_transactions_make_no_result() -> None:
    with pytest.raises(BenchError, match="12 transactions"):
        parse_report(KEPT.replace("failed transactions: 0", "failed transactions: 12"))


def test_a_run_without_transactions_makes_no_result() -> None:
    with pytest.raises(BenchError, match="no transaction"):
        parse_report(KEPT.replace("processed: 189760", "processed: 0"))
