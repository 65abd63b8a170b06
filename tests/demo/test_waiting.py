from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from harness import waiting
from harness.waiting import eventually, wait_until


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "crowding", lambda: 1.0)


def slow(*values: str) -> Callable[[], str]:
    """A condition whose every look takes longer than is waited for all of them."""
    answers = iter(values)

    def look() -> str:
        time.sleep(0.06)
        return next(answers)

    return look


def test_condition_that_takes_its_time_is_charged_with_it() -> None:
    with pytest.raises(AssertionError, match=r"a slow thing did not come true within 0\.05 s"):
        wait_until(slow("", "yes"), seconds=0.05, what="a slow thing")


def test_what_comes_true_too_late_has_not_come_true() -> None:
    with pytest.raises(AssertionError, match="did not come true"):
        wait_until(slow("yes"), seconds=0.05)
    with pytest.raises(AssertionError, match="did not come true"):
        asyncio.run(eventually(slow("yes"), seconds=0.05))


def test_what_comes_true_in_time_is_returned() -> None:
    looks = iter(["", "", "found"])
    assert wait_until(lambda: next(looks), seconds=5) == "found"


def test_busy_machine_gives_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "crowding", lambda: 4.0)
    assert wait_until(slow("yes"), seconds=0.05)
    assert waiting.allowed(2.0) == 8.0
