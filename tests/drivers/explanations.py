"""Why a cell may differ from a direct connection; a difference that is not explained here is a failure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from drivers.model import PROXIED, Difference, Scenario, Way


@dataclass(frozen=True, slots=True)
class Explanation:
    """A difference that is meant or cannot be avoided.

    It covers the steps of a scenario whose names match `step`, and no more than these texts: `direct` and `proxied` are
    regular expressions for what is observed on the two ways, whole.  `drivers` are names or patterns of them.
    """

    key: str
    text: str
    scenarios: Sequence[Scenario]
    step: str
    direct: str
    proxied: str
    ways: Sequence[Way] = PROXIED
    drivers: Sequence[str] = ("*",)

    def covers(self, driver: str, scenario: Scenario, way: Way, difference: Difference) -> bool:
        return (
            scenario in self.scenarios
            and way in self.ways
            and fnmatchcase(difference.step, self.step)
            and any(fnmatchcase(driver, pattern) for pattern in self.drivers)
            and _is_whole(self.direct, difference.direct)
            and _is_whole(self.proxied, difference.proxied)
        )


def _is_whole(pattern: str, text: str | None) -> bool:
    return text is not None and re.fullmatch(pattern, text, re.DOTALL) is not None


_YES, _NO = r"[Tt]rue|t\nstatus 0", r"[Ff]alse|f\nstatus 0"
_WORKER = r"""['"]?worker [01]['"]?"""
_WORKER_OR_NONE = rf"(?:{_WORKER}|None|null|''|\"\")"
_CUT = r"57P01|08003|InterfaceError|OperationalError|Cannot execute query, error - connection closed"

EXPLANATIONS = (
    Explanation(
        "name",
        "The URL names the tenant, and the tenant's database has a name of its own, which `current_database()` gives.",
        (Scenario.CONNECT,),
        "database name",
        _YES,
        _NO,
    ),
    Explanation(
        "pid",
        "The process number and the cancel key that a client gets are the proxy's, because its backend changes; "
        "`pg_backend_pid()` gives the backend's. A client's own notifications carry the number that it was told. In "
        "session mode `real_pids` has the backend's told.",
        (Scenario.CONNECT,),
        "process number",
        _YES,
        _NO,
    ),
    Explanation(
        "unknown",
        "Who asks for a database that no tenant has learns nothing about which tenants there are: the answer is that "
        "of a wrong password, not `3D000` (`reveal_tenants` changes it).",
        (Scenario.CONNECT,),
        "unknown database",
        r'(?:failed )?3D000|psql: error: FATAL:  database "no_such_database" does not exist\nstatus 2',
        r"(?:failed )?28P01",
    ),
    Explanation(
        "hint",
        "The answer to a wrong password is PostgreSQL's, with a hint that speaks of tenants.",
        (Scenario.CONNECT,),
        "wrong password",
        r'psql: error: FATAL:  password authentication failed for user "\w+"\nstatus 2',
        r'psql: error: FATAL:  password authentication failed for user "\w+"\nHINT:  [^\n]+\nstatus 2',
        drivers=("psql",),
    ),
    Explanation(
        "hidden",
        "A setting that is changed inside of a function is changed where no proxy can see it: in transaction mode it "
        'stays on that backend. Use `SET` itself, or `reset = "always"` for the tenant.',
        (Scenario.SETTINGS,),
        "hidden*",
        rf"\[+{_WORKER}(?:, {_WORKER})*\]+",
        rf"\[+{_WORKER_OR_NONE}(?:, {_WORKER_OR_NONE})*\]+",
        (Way.TRANSACTION,),
    ),
    Explanation(
        "survives",
        "A backend that is lost while the client is between two transactions is replaced, and the client notices "
        "nothing.",
        (Scenario.RECONNECT,),
        "cut while idle",
        _CUT,
        r"\[\(2,\)\]",
        (Way.TRANSACTION,),
    ),
)
