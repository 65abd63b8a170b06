"""Trying a server out: can one log in, over what, how fast, and what may one do there.

Source: PostgreSQL documentation, `pg_stat_ssl`, `pg_roles` and "Connections and Authentication".
"""

from __future__ import annotations

import asyncio
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import asyncpg

from registry.contract import (
    Address,
    AuthQuery,
    ChannelBinding,
    Credentials,
    Secret,
    TlsMode,
    TlsNegotiation,
    TlsVersion,
)
from registry.domain.models import Server
from registry.operations.servers import ServerAccess

TIMEOUT: Final = 5.0
ROUNDS: Final = 5
MAX_SAID: Final = 1_000
"""Characters that are shown of what a server says."""
CLOSING: Final = 0.1
"""Seconds in which a connection that failed is closed."""
ANSWER_COLUMNS: Final = (1, 2)
OWN_SETTINGS: Final = {"application_name": "pgtenant test", "search_path": "pg_catalog, pg_temp"}
"""Who owns a database could else put functions of his own in the place of those that an admin is about to call."""
NO_ROLE: Final = "pgtenant: no such role"
CHECKING: Final = frozenset({TlsMode.VERIFY_CA, TlsMode.VERIFY_FULL})
UNBOUND: Final = "it demands channel binding, which only nodes can do, and its certificate is not checked"
TLS_VERSIONS: Final = {TlsVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3}

NO_DATABASE: Final = "3D000"
NO_PRIVILEGE: Final = "42501"
OF_DATABASE: Final = frozenset({NO_DATABASE, NO_PRIVILEGE})
"""Refusals of one database, which say nothing of the others."""

_DATABASES: Final = """
select datname, datallowconn and pg_catalog.has_database_privilege(oid, 'CONNECT') as may_connect
from pg_catalog.pg_database
"""
_QUESTION: Final = """
select current_setting('server_version') as version,
       current_setting('max_connections')::int as max_connections,
       (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections,
       pg_is_in_recovery() as read_only,
       role.rolcreatedb or role.rolsuper as may_create_databases,
       tls.version as tls
from pg_roles role left join pg_stat_ssl tls on tls.pid = pg_backend_pid() and tls.ssl
where role.rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What trying one address showed; `problem` is None where it went well, `sqlstate` what PostgreSQL answered.

    `latency` is the median time of an empty query, `login_time` that of connecting, both in seconds.  `tls` is the
    protocol's version, None without TLS.
    """

    address: Address
    problem: str | None = None
    sqlstate: str | None = None
    version: str | None = None
    tls: str | None = None
    login_time: float | None = None
    latency: float | None = None
    max_connections: int | None = None
    connections: int | None = None
    read_only: bool | None = None
    may_create_databases: bool | None = None


@dataclass(frozen=True, slots=True)
class LoginTrial:
    """How one login went: `problem` None is well; `sqlstate` is PostgreSQL's answer, None where there was none."""

    problem: str | None = None
    sqlstate: str | None = None


def may_be_tried(server: Server) -> bool:
    """Whether a login may be tried here, where none is bound to its TLS connection.

    Nodes bind theirs where the server demands that.  A login without would be open to whoever is in between, unless
    the server's certificate is checked.
    """
    if server.channel_binding is not ChannelBinding.REQUIRE:
        return True
    return server.tls_mode in CHECKING or (server.tls_mode is TlsMode.REQUIRE and server.tls_ca is not None)


async def probe_server(
    access: ServerAccess, *, database: str = "postgres", clock: Callable[[], float] = time.perf_counter
) -> list[Probe]:
    """Try all addresses of a server at once, as its admin or, without one, as its default role.

    Without either, or where no login may be tried, it is only seen whether something listens there.  Raises ValueError
    for a CA that cannot be read.
    """
    tls = _tls(access.server, access.tls_key)
    credentials = access.admin
    if credentials is None or not may_be_tried(access.server):
        return list(await asyncio.gather(*(_knock(address) for address in access.server.addresses)))
    is_direct = access.server.tls_negotiation is TlsNegotiation.DIRECT
    return list(
        await asyncio.gather(
            *(
                _probe(address, credentials, database, tls, clock, direct=is_direct)
                for address in access.server.addresses
            )
        )
    )


async def try_logins(access: ServerAccess, credentials: Credentials, databases: Sequence[str]) -> list[LoginTrial]:
    """Log in to databases as nodes do, at the first address where PostgreSQL answers; one trial for each database.

    With the first login that succeeds the server is asked whether the other databases exist and let the role in, so
    that thousands cost one connection.  A role that cannot log in is tried once.  Raises ValueError for a CA that
    cannot be read.
    """
    tls = _tls(access.server, access.tls_key)
    if not may_be_tried(access.server):
        return [LoginTrial(UNBOUND)] * len(databases)
    trials: list[LoginTrial] = []
    for number, database in enumerate(databases):
        connection = await _log_in(access, credentials, database, tls)
        rest = databases[number + 1 :]
        if isinstance(connection, LoginTrial):
            trials.append(connection)
            if connection.sqlstate in OF_DATABASE:
                continue
            return trials + [connection] * len(rest)
        try:
            return [*trials, LoginTrial(), *(await _look_up(connection, rest) if rest else ())]
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            return [*trials, LoginTrial(), *[LoginTrial(_reason(error))] * len(rest)]
        finally:
            connection.terminate()
    return trials


async def _log_in(
    access: ServerAccess,
    credentials: Credentials,
    database: str,
    tls: ssl.SSLContext | Literal["prefer", "disable"],
) -> Any:
    """A connection, or the trial that says why there is none."""
    is_direct = access.server.tls_negotiation is TlsNegotiation.DIRECT
    trial = LoginTrial("it has no address")
    for address in access.server.addresses:
        try:
            return await _connect(address, credentials, database, tls, direct=is_direct)
        except asyncpg.PostgresError as error:
            return LoginTrial(_reason(error), error.sqlstate)
        except (asyncpg.InterfaceError, OSError, ValueError) as error:
            trial = LoginTrial(_reason(error))
    return trial


async def _look_up(connection: Any, databases: Sequence[str]) -> list[LoginTrial]:
    found = {row["datname"]: row["may_connect"] for row in await connection.fetch(_DATABASES)}
    trials = []
    for database in databases:
        if database not in found:
            trials.append(LoginTrial(f'database "{database}" does not exist', NO_DATABASE))
        elif not found[database]:
            trials.append(LoginTrial(f'permission denied for database "{database}"', NO_PRIVILEGE))
        else:
            trials.append(LoginTrial())
    return trials


async def _knock(address: Address) -> Probe:
    try:
        async with asyncio.timeout(TIMEOUT):
            if address.host.startswith("/"):
                _, writer = await asyncio.open_unix_connection(f"{address.host}/.s.PGSQL.{address.port}")
            else:
                _, writer = await asyncio.open_connection(address.host, address.port)
    except OSError as error:
        return Probe(address, problem=_reason(error))
    writer.close()
    return Probe(address)


async def probe_auth(access: ServerAccess, auth: AuthQuery, address: Address) -> str | None:
    """Ask a server for the verifier of a role that it does not have, as nodes do; returns what is wrong with that."""
    is_direct = access.server.tls_negotiation is TlsNegotiation.DIRECT
    tls = _tls(access.server, access.tls_key)
    try:
        connection = await _connect(address, auth.credentials, auth.database, tls, direct=is_direct)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        return _reason(error)
    try:
        query = await connection.prepare(auth.query)
        if len(query.get_parameters()) != 1 or len(query.get_attributes()) not in ANSWER_COLUMNS:
            return "its query must have $1 alone, and give a verifier and the seconds that it is valid"
        if await query.fetch(NO_ROLE):
            return "its query finds a verifier for a role that does not exist"
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        return _reason(error)
    finally:
        connection.terminate()
    return None


async def _probe(
    address: Address,
    credentials: Credentials,
    database: str,
    tls: ssl.SSLContext | Literal["prefer", "disable"],
    clock: Callable[[], float],
    *,
    direct: bool,
) -> Probe:
    begun = clock()
    try:
        connection = await _connect(address, credentials, database, tls, direct=direct)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        return Probe(address, problem=_reason(error), sqlstate=getattr(error, "sqlstate", None))
    try:
        login_time = clock() - begun
        facts = await connection.fetchrow(_QUESTION)
        times = []
        for _ in range(ROUNDS):
            begun = clock()
            await connection.execute("select 1")
            times.append(clock() - begun)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        return Probe(address, problem=_reason(error))
    finally:
        connection.terminate()
    return Probe(
        address,
        login_time=login_time,
        latency=statistics.median(times),
        **({} if facts is None else {name: _fact(value) for name, value in facts.items()}),
    )


async def _connect(
    address: Address,
    credentials: Credentials,
    database: str,
    tls: ssl.SSLContext | Literal["prefer", "disable"],
    *,
    direct: bool,
) -> Any:
    try:
        return await asyncpg.connect(
            host=address.host,
            port=address.port,
            user=credentials.user,
            # None would be filled in from this user's environment and password file, which nodes do not have.
            password="" if credentials.password is None else credentials.password.reveal(),
            database=database,
            ssl=tls,
            direct_tls=direct,
            timeout=TIMEOUT,
            command_timeout=TIMEOUT,
            server_settings=OWN_SETTINGS,
        )
    except (asyncpg.PostgresError, OSError):
        # The end of a TLS connection takes the loop some turns, and asyncpg waits for none of them.
        await asyncio.sleep(CLOSING)
        raise


def _fact(value: Any) -> Any:
    return _on_a_line(value) if isinstance(value, str) else value


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno).lower()
    return _on_a_line(str(error)) or type(error).__name__


def _on_a_line(said: str) -> str:
    """What a server has said, fit for a terminal: it may be anybody who answers there."""
    text = " ".join(said[:MAX_SAID].split())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def _tls(server: Server, key: Secret | None) -> ssl.SSLContext | Literal["prefer", "disable"]:
    if server.tls_mode is TlsMode.DISABLE:
        return "disable"
    if server.tls_mode is TlsMode.PREFER:
        return "prefer"
    context = ssl.create_default_context(cadata=server.tls_ca)
    context.minimum_version = TLS_VERSIONS[server.tls_min_version]
    context.set_alpn_protocols(["postgresql"])
    context.check_hostname = server.tls_mode is TlsMode.VERIFY_FULL
    if server.tls_mode is TlsMode.REQUIRE:
        # As in libpq: a CA that is given is checked even where only encryption was asked for.
        context.verify_mode = ssl.CERT_REQUIRED if server.tls_ca is not None else ssl.CERT_NONE
    if server.tls_cert is not None and key is not None:
        # ssl reads files only; this one is this user's alone, and removed at once.
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(f"{server.tls_cert}\n{key.reveal()}\n")
            file.flush()
            context.load_cert_chain(file.name)
    return context
