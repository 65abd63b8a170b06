"""Plays scenarios with a driver and prints what was observed, one JSON object a line.

The work is told by the environment: DRIVERS_URL and DRIVERS_TLS_URL, the authorities' files DRIVERS_CA and
DRIVERS_WRONG_CA, DRIVERS_SCENARIOS (names and commas), DRIVERS_WORKERS (how many play each scenario at once).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from drivers.scripts.session import Driver, NotApplicable, Place

PAUSES, PAUSE = 40, 0.005
MISTAKES = (AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a driver raises besides its own errors when it is confused, or a scenario that does not fit it."""


class Notes:
    """What one worker observes: steps in their order, each with a text."""

    def __init__(self, driver: Driver, worker: int) -> None:
        self.driver = driver
        self.worker = worker
        self.steps: list[tuple[str, str]] = []
        self.backends: int | None = None

    def note(self, step: str, value: Any) -> None:
        self.steps.append((step, value if isinstance(value, str) else repr(value)))

    def optional(self, step: str, value: Callable[[], Any]) -> None:
        """Note a value, or that the driver has no such thing."""
        try:
            self.note(step, value())
        except NotApplicable as why:
            self.note(step, f"n/a: {why}")

    @contextmanager
    def failing(self, step: str, *others: type[Exception]) -> Iterator[None]:
        """Note with which SQLSTATE the block fails; `others` are errors of Python's own that a driver may raise."""
        try:
            yield
        except (*self.driver.errors, *others) as error:
            self.note(step, self.driver.sqlstate(error) or type(error).__name__)
        else:
            self.note(step, "no error")

    def outcome(self, step: str, value: Callable[[], Any]) -> None:
        """Note a value, or the SQLSTATE of the error in its place."""
        try:
            self.note(step, value())
        except self.driver.errors as error:
            self.note(step, self.driver.sqlstate(error) or type(error).__name__)

    def count_backends(self, ask: Callable[[], Any]) -> None:
        """Look on how many backends one connection is seen, turn after turn."""
        seen = set()
        for _ in range(PAUSES):
            seen.add(ask())
            time.sleep(PAUSE)
        self.backends = len(seen)


Scenario = Callable[[Driver, Place, Notes], None]


def play(driver: Driver, scenarios: dict[str, Scenario], alone: frozenset[str]) -> None:
    """Play the scenarios that the environment asks for; those in `alone` with one worker."""
    place = Place(
        os.environ["DRIVERS_URL"],
        os.environ["DRIVERS_TLS_URL"],
        os.environ["DRIVERS_CA"],
        os.environ["DRIVERS_WRONG_CA"],
    )
    for name in os.environ["DRIVERS_SCENARIOS"].split(","):
        workers = 1 if name in alone else int(os.environ["DRIVERS_WORKERS"])
        _say(begin=name, at=time.time())
        threads = [
            threading.Thread(target=_work, args=(driver, place, scenarios[name], name, number), daemon=True)
            for number in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _say(end=name)


def _work(driver: Driver, place: Place, scenario: Scenario, name: str, worker: int) -> None:
    notes = Notes(driver, worker)
    answer: dict[str, Any] = {"scenario": name, "worker": worker, "steps": notes.steps}
    try:
        scenario(driver, place, notes)
    except NotApplicable as why:
        answer["na"] = str(why)
    except BaseException as error:
        notes.note("ended by", f"{driver.sqlstate(error)} {type(error).__name__}: {error}")
        if not isinstance(error, (*driver.errors, *MISTAKES)):
            raise
    finally:
        _say(**answer, backends=notes.backends)


_SAYING = threading.Lock()


def _say(**answer: Any) -> None:
    with _SAYING:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
