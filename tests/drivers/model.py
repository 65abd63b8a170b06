"""What is played with whom, on which way, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Way(StrEnum):
    """How the driver reaches the server."""

    DIRECT = "direct"
    TRANSACTION = "transaction"
    SESSION = "session"


PROXIED = (Way.TRANSACTION, Way.SESSION)


class Scenario(StrEnum):
    """What a driver does, the same for all."""

    CONNECT = "connect"
    TYPES = "types"
    PARAMETERS = "parameters"
    NAMED = "named"
    UNNAMED = "unnamed"
    BATCH = "batch"
    PIPELINE = "pipeline"
    TRANSACTIONS = "transactions"
    ERRORS = "errors"
    CURSORS = "cursors"
    COPY = "copy"
    CANCEL = "cancel"
    NOTIFY = "notify"
    TLS = "tls"
    SETTINGS = "settings"
    POOL = "pool"
    RECONNECT = "reconnect"


CONTENTS = {
    Scenario.CONNECT: "by URL, with startup parameters, four at once; a wrong password, an unknown database",
    Scenario.TYPES: "values of two dozen types, hundreds of columns, none",
    Scenario.PARAMETERS: "values sent by the driver in its own way, long ones, bad ones",
    Scenario.NAMED: "prepared statements with names: many, failing, in transactions, across a change of the schema",
    Scenario.UNNAMED: "statements without names, their values sent apart",
    Scenario.BATCH: "one statement for many rows, with an error in the middle",
    Scenario.PIPELINE: "several statements before the first answer, with an error in the middle",
    Scenario.TRANSACTIONS: "commit, rollback, savepoints, isolation, deferred constraints",
    Scenario.ERRORS: "a dozen kinds of errors, in and out of transactions; notices; several statements in one",
    Scenario.CURSORS: "rows in portions, given up half-way, failing half-way, WITH HOLD, FETCH by hand",
    Scenario.COPY: "in and out, with errors, in transactions",
    Scenario.CANCEL: "by the driver's own means, in and out of transactions",
    Scenario.NOTIFY: "LISTEN, NOTIFY, UNLISTEN",
    Scenario.TLS: "required, verified, refused; cancelling; channel binding, direct TLS",
    Scenario.SETTINGS: "SET, RESET, search_path, temporary tables, advisory locks, PREPARE, DISCARD ALL",
    Scenario.POOL: "the driver's own pool, shared by eight; a lost connection in it",
    Scenario.RECONNECT: "connections cut in a transaction, while idle, by their own query",
}


class Verdict(StrEnum):
    """What became of one scenario on one way through the proxy."""

    SAME = "same"
    EXPLAINED = "explained"
    DIFFERENT = "different"
    NOT_APPLICABLE = "n/a"
    SKIPPED = "skipped"


class DriversError(Exception):
    """The comparison cannot be made; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(slots=True)
class Transcript:
    """What one worker observed in one scenario: its steps, each with a text; `na` says why there are none."""

    worker: int
    steps: list[tuple[str, str]] = field(default_factory=list)
    na: str | None = None
    backends: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A step whose text through the proxy is not that of the direct way; `note` is the key of its explanation."""

    step: str
    direct: str | None
    proxied: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """A reason for which a client of the proxy has kept its backend; without a scenario it was another client's."""

    driver: str
    way: Way
    scenario: Scenario | None
    reason: str

    def __str__(self) -> str:
        return f"{self.driver}, {self.scenario or 'other clients'}, {self.way} mode: {self.reason}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One driver, one scenario, one way through the proxy."""

    driver: str
    scenario: Scenario
    way: Way
    verdict: Verdict
    reason: str = ""
    differences: Sequence[Difference] = ()
    backends: int | None = None

    @property
    def notes(self) -> list[str]:
        """The keys of the explanations, each once."""
        return sorted({difference.note for difference in self.differences if difference.note})
