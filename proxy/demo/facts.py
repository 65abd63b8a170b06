"""What is known of a running embedded server, in a form that can be handed to another process."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from proxy.demo.install import EmbeddedError


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Where an embedded server is and how its superuser gets in."""

    version: int
    host: str
    port: int
    superuser: str
    password: str = field(repr=False)
    bin_dir: Path
    base_dir: Path

    @property
    def data_dir(self) -> Path:
        """The data directory, which also holds the Unix socket."""
        return self.base_dir / "data"

    def url(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """A libpq URL of a database here, as the superuser or as the given role; it contains the password."""
        name = quote(user or self.superuser, safe="")
        word = quote(self.password if user is None else password or "", safe="")
        return f"postgresql://{name}{':' + word if word else ''}@{self.host}:{self.port}/{quote(database, safe='')}"

    def logs(self) -> str:
        """Everything the server has logged so far."""
        log = self.base_dir / "server.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run an SQL script as the superuser, stopping at its first error; return psql's unaligned output.

        Raises EmbeddedError with what the server said.
        """
        ran = subprocess.run(
            [os.fspath(self.bin_dir / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"],
            input=sql,
            capture_output=True,
            text=True,
            check=False,
            env={
                **clean_environment(),
                "PGHOST": self.host,
                "PGPORT": str(self.port),
                "PGUSER": self.superuser,
                "PGPASSWORD": self.password,
                "PGDATABASE": database,
                "PGCLIENTENCODING": "UTF8",
            },
        )
        if ran.returncode != 0:
            raise EmbeddedError(f"psql on {database!r} failed: {ran.stderr.strip()}", "correct the SQL script")
        return ran.stdout.rstrip("\n")

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON can carry them, the password included."""
        return {**asdict(self), "bin_dir": os.fspath(self.bin_dir), "base_dir": os.fspath(self.base_dir)}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        return cls(**{**facts, "bin_dir": Path(facts["bin_dir"]), "base_dir": Path(facts["base_dir"])})


def clean_environment() -> dict[str, str]:
    """An environment for PostgreSQL's programs in which the caller's PG* variables and locale have no say."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
