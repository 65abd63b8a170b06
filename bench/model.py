"""What is measured: cells, readings, and where a client connects."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

DIRECT, PGBOUNCER, PGTENANT = "direct", "pgbouncer", "pgtenant"
WAYS = (DIRECT, PGBOUNCER, PGTENANT)


class Scenario(StrEnum):
    """The kinds of measurement, by the names which `--only` takes."""

    SIMPLE = "simple"
    EXTENDED = "extended"
    PREPARED = "prepared"
    CONNECT = "connect"
    COPY_OUT = "copy-out"
    COPY_IN = "copy-in"
    IDLE = "idle"


QUERY_MODES = (Scenario.SIMPLE, Scenario.EXTENDED, Scenario.PREPARED)
COPIES = (Scenario.COPY_OUT, Scenario.COPY_IN)


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the results: a scenario with a number of clients.

    `unit` is what the rate counts per second; processor time is per `cpu_unit`.
    """

    scenario: Scenario
    clients: int
    unit: str
    cpu_unit: str

    @property
    def name(self) -> str:
        return str(self.scenario) if self.scenario in COPIES else f"{self.scenario} c={self.clients}"


@dataclass(frozen=True, slots=True)
class Reading:
    """One run of one cell through one way.

    `rate` is units per second, `cpu` seconds of processor time of the proxy's whole process tree per `cpu_unit`
    (None where no proxy is in between), `base` and `per_client` bytes of memory.
    """

    rate: float | None = None
    cpu: float | None = None
    base: float | None = None
    per_client: float | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no reading."""

    reason: str


Outcome = Reading | Missing


class BenchError(Exception):
    """A measurement cannot be made; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Stuck(BenchError):
    """A measurement has not ended in time, and would not the next time either."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom a client connects."""

    host: str
    port: int
    user: str
    database: str
    password: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The libpq variables that lead here; TLS is off on every way."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
        }
