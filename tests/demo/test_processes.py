"""The children of tests: they start with default signals, and end whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.process import end, output, run, start, started
from harness.waiting import wait_until

TERMINALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
STUBBORN = "trap '' TERM; sleep 600 & echo $!; wait"


@pytest.fixture
def under_nohup() -> Iterator[None]:
    """As a run that was started in the background of a script, with a signal blocked on top."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in TERMINALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
        signal.signal(number, handler)


def signals(status: str, name: str) -> set[int]:
    """The signals of one mask in /proc/PID/status, without those that the C library keeps for itself."""
    mask = int(next(line for line in status.splitlines() if line.startswith(name)).split()[1], 16)
    return {number for number in signal.valid_signals() if mask >> number - 1 & 1}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("under_nohup")
def test_child_of_a_run_under_nohup_has_default_signals() -> None:
    status = output(["cat", "/proc/self/status"])
    assert signals(status, "SigIgn") == set()
    assert signals(status, "SigBlk") == set()


@pytest.mark.usefixtures("under_nohup")
def test_child_of_a_run_under_nohup_is_ended_by_a_signal_at_once() -> None:
    began = time.monotonic()
    with started([sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]) as child:
        assert child.stdout is not None
        child.stdout.readline()
    assert child.returncode == -signal.SIGTERM
    assert time.monotonic() - began < 10


def test_child_is_given_the_ignored_signals_that_a_test_wants() -> None:
    with started(["cat", "/proc/self/status"], ignored=[signal.SIGHUP]) as child:
        assert signals(child.communicate()[0], "SigIgn") == {signal.SIGHUP}


def test_child_that_ignores_the_polite_signal_is_killed_with_all_that_it_started() -> None:
    child = start(["sh", "-c", STUBBORN])
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    end(child, patience=0.1)
    assert child.returncode == -signal.SIGKILL
    wait_until(lambda: not lives(grandchild), what="the end of the child's child")


def test_program_that_takes_too_long_is_killed_although_another_holds_its_output() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(["sh", "-c", "sleep 600 & exec sleep 600"], seconds=0.1)


def test_output_of_a_program_that_fails_is_an_error_with_its_words() -> None:
    with pytest.raises(AssertionError, match="status 3: no such thing"):
        output(["sh", "-c", "echo no such thing >&2; exit 3"])
    assert output(["cat"], text="said") == "said"
