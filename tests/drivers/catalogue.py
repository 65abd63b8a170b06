"""The drivers: how each is started and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"


class Kind(StrEnum):
    """What a driver's program runs on."""

    PYTHON = "Python"
    NODE = "Node.js"
    JAVA = "Java"
    POSTGRES = "PostgreSQL's programs"


@dataclass(frozen=True, slots=True)
class DriverSpec:
    """A driver; `program` is a module or a file of `scripts`, `package` is what its version is read of."""

    name: str
    title: str
    kind: Kind
    program: str
    arguments: tuple[str, ...] = ()
    package: str = ""


DRIVERS = (
    DriverSpec("psycopg", "psycopg 3", Kind.PYTHON, "use_psycopg", ("blocking",), "psycopg"),
    DriverSpec("psycopg-async", "psycopg 3, async", Kind.PYTHON, "use_psycopg", ("async",), "psycopg"),
    DriverSpec("psycopg-pipeline", "psycopg 3, pipeline", Kind.PYTHON, "use_psycopg", ("pipeline",), "psycopg"),
    DriverSpec("psycopg2", "psycopg2", Kind.PYTHON, "use_psycopg2", (), "psycopg2-binary"),
    DriverSpec("asyncpg", "asyncpg", Kind.PYTHON, "use_asyncpg", ("cached",), "asyncpg"),
    DriverSpec("asyncpg-uncached", "asyncpg, no cache", Kind.PYTHON, "use_asyncpg", ("uncached",), "asyncpg"),
    DriverSpec("psqlpy", "psqlpy (tokio-postgres)", Kind.PYTHON, "use_psqlpy", (), "psqlpy"),
    DriverSpec("pg8000", "pg8000", Kind.PYTHON, "use_pg8000", (), "pg8000"),
    DriverSpec("sqlalchemy-psycopg", "SQLAlchemy, psycopg", Kind.PYTHON, "use_sqlalchemy", ("psycopg",), "SQLAlchemy"),
    DriverSpec("sqlalchemy-asyncpg", "SQLAlchemy, asyncpg", Kind.PYTHON, "use_sqlalchemy", ("asyncpg",), "SQLAlchemy"),
    DriverSpec("django", "Django", Kind.PYTHON, "use_django", ("defaults",), "Django"),
    DriverSpec("django-server-side", "Django, bound values", Kind.PYTHON, "use_django", ("server-side",), "Django"),
    DriverSpec("node-postgres", "node-postgres", Kind.NODE, "node_postgres.mjs", (), "pg"),
    DriverSpec("postgres.js", "postgres.js", Kind.NODE, "postgres_js.mjs", (), "postgres"),
    DriverSpec("pgjdbc", "pgjdbc", Kind.JAVA, "UsePgjdbc.java", (), "pgjdbc"),
    DriverSpec("psql", "psql", Kind.POSTGRES, "use_psql", (), "psql"),
    DriverSpec("pgbench", "pgbench", Kind.POSTGRES, "use_pgbench", (), "pgbench"),
)
