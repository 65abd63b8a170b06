"""PostgreSQL's own programs as drivers: what they print is what they observe."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from drivers.scripts.play import Notes
from drivers.scripts.session import Driver, NotApplicable, Place, Session

PATIENCE = 40.0
PLAIN, SECURE = 18, 17
WHERE = re.compile(r'connection to server at "[^"]*", port \d+ failed: ')


class Programs(Driver):
    """Stands for the driver where the scenarios do all themselves."""

    errors = (subprocess.SubprocessError,)

    def connect(self, url: str, *, application_name: str = "", **options: Any) -> Session:
        raise NotApplicable("the program connects by itself")

    def sqlstate(self, error: BaseException) -> str | None:
        return None


def bin_dir(version: int) -> Path:
    return Path(os.environ[f"DRIVERS_BIN_{version}"])


def environment(**more: str) -> dict[str, str]:
    """An environment in which no PG* variable of the caller's has a say."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C.UTF-8", **more}


def run(command: list[str], *, stdin: str = "", **env: str) -> str:
    """Standard output, then standard error and the exit status."""
    ran = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment(**env)
    )
    return f"{ran.stdout}{WHERE.sub('', ran.stderr)}status {ran.returncode}"


def login(url: str) -> dict[str, str]:
    """The environment with which a program connects there without a word of it on its command line."""
    parts = urlsplit(url)
    return {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port),
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": parts.path.removeprefix("/"),
        "PGSSLMODE": "disable",
    }


def not_here(why: str) -> Any:
    """A scenario that the program has nothing for."""

    def scenario(_driver: Driver, _place: Place, _notes: Notes) -> None:
        raise NotApplicable(why)

    return scenario
