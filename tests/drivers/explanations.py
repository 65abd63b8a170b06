"""Why a cell may differ from a direct connection; a difference that is not explained here is a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from drivers.model import PROXIED, Difference, Scenario, Way


@dataclass(frozen=True, slots=True)
class Explanation:
    """A difference that is meant or cannot be avoided.

    It covers the steps of a scenario whose names match `step`, and no more than these texts: `proxied` is a pattern for
    what may stand in place of the direct text, `drivers` for the names of drivers.
    """

    key: str
    text: str
    scenarios: Sequence[Scenario]
    step: str
    ways: Sequence[Way] = PROXIED
    drivers: Sequence[str] = ("*",)
    proxied: str = "*"

    def covers(self, driver: str, scenario: Scenario, way: Way, difference: Difference) -> bool:
        return (
            scenario in self.scenarios
            and way in self.ways
            and fnmatchcase(difference.step, self.step)
            and any(fnmatchcase(driver, pattern) for pattern in self.drivers)
            and fnmatchcase(difference.proxied or "", self.proxied)
        )


EXPLANATIONS = (
    Explanation(
        "name",
        "The URL names the tenant, and the tenant's database has a name of its own, which `current_database()` gives.",
        (Scenario.CONNECT,),
        "database name",
    ),
    Explanation(
        "pid",
        "The process number and the cancel key that a client gets are the proxy's, because its backend changes; "
        "`pg_backend_pid()` gives the backend's.",
        (Scenario.CONNECT,),
        "process number",
    ),
    Explanation(
        "unknown",
        "Who asks for a database that no tenant has learns nothing about which tenants there are: the answer is that "
        "of a wrong password, not `3D000` (`reveal_tenants` changes it).",
        (Scenario.CONNECT,),
        "unknown database",
        proxied="*28P01*",
    ),
    Explanation(
        "hint",
        "The answer to a wrong password is PostgreSQL's, with a hint that speaks of tenants.",
        (Scenario.CONNECT,),
        "wrong password",
        drivers=("psql",),
        proxied="*password authentication failed for user*HINT:*",
    ),
    Explanation(
        "hidden",
        "A setting that is changed inside of a function is changed where no proxy can see it: in transaction mode it "
        'stays on that backend. Use `SET` itself, or `reset = "always"` for the tenant.',
        (Scenario.SETTINGS,),
        "hidden*",
        (Way.TRANSACTION,),
    ),
    Explanation(
        "survives",
        "A backend that is lost while the client is between two transactions is replaced, and the client notices "
        "nothing.",
        (Scenario.RECONNECT,),
        "cut while idle",
        (Way.TRANSACTION,),
    ),
)
