"""Fresh databases for single tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from proxy.demo.facts import ServerFacts


@dataclass(frozen=True, slots=True)
class Database:
    """A database of its own on a server, with a role that owns it."""

    server: ServerFacts
    name: str
    role: str
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """The direct way in as its owner, past any proxy."""
        return self.server.url(self.name, user=self.role, password=self.password)

    def psql(self, sql: str) -> str:
        """Run a script here as the superuser and return its unaligned output."""
        return self.server.psql(sql, self.name)

    def backends(self, condition: str = "true") -> int:
        """How many sessions of the owner exist here, as pg_stat_activity has it."""
        query = f"select count(*) from pg_stat_activity where usename = '{self.role}' and datname = '{self.name}'"
        return int(self.server.psql(f"{query} and ({condition})"))

    def terminate_backends(self, condition: str = "true") -> int:
        """Terminate the owner's sessions and return how many there were."""
        query = f"from pg_stat_activity where usename = '{self.role}' and datname = '{self.name}' and ({condition})"
        return int(self.server.psql(f"select count(pg_terminate_backend(pid)) {query}"))


def create_database(
    server: ServerFacts, name: str = "t", *, seed: str = "", owned_by: Database | None = None
) -> Database:
    """Create a database and its owner, both named after `name` and something random.

    `seed` is a script run in it as the owner.  With `owned_by` the role of that database owns this one, too.
    """
    unique = f"{name}_{secrets.token_hex(4)}"
    role, password = (owned_by.role, owned_by.password) if owned_by else (unique, secrets.token_urlsafe(12))
    make_role = "" if owned_by else f"create role {role} login password '{password}';\n"
    server.psql(f"{make_role}create database {unique} owner {role} template template0 strategy file_copy")
    database = Database(server, unique, role, password)
    if seed:
        database.psql(f"set session authorization {role};\n{seed}")
    return database


def drop_database(database: Database) -> None:
    """Drop a database and, unless it owns another, its owner; connections to it are cut."""
    drop_databases([database])


def drop_databases(databases: Iterable[Database]) -> None:
    """The same for many, with one program for each server."""
    by_server: dict[ServerFacts, list[Database]] = {}
    for database in databases:
        by_server.setdefault(database.server, []).append(database)
    for server, there in by_server.items():
        drops = [f"drop database if exists {database.name} with (force);" for database in there]
        roles = ", ".join(f"'{role}'" for role in dict.fromkeys(database.role for database in there))
        unused = "not exists (select from pg_database where datdba = pg_roles.oid)"
        drop_roles = (
            f"select format('drop role %I', rolname) from pg_roles where rolname in ({roles}) and {unused} \\gexec"
        )
        server.psql("\n".join([*drops, drop_roles]))
