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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import asyncpg

from registry.contract import Address, AuthQuery, Credentials, Secret, TlsMode, TlsNegotiation, TlsVersion
from registry.domain.models import Server

TIMEOUT: Final = 5.0
ROUNDS: Final = 5
CLOSING: Final = 0.1
"""Seconds in which a connection that failed is closed."""
ANSWER_COLUMNS: Final = (1, 2)
NO_ROLE: Final = "pgtenant: no such role"
TLS_VERSIONS: Final = {TlsVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3}

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
    """What trying one address showed; `problem` is None where it went well.

    `latency` is the median time of an empty query, `login_time` that of connecting, both in seconds.  `tls` is the
    protocol's version, None without TLS.
    """

    address: Address
    problem: str | None = None
    version: str | None = None
    tls: str | None = None
    login_time: float | None = None
    latency: float | None = None
    max_connections: int | None = None
    connections: int | None = None
    read_only: bool | None = None
    may_create_databases: bool | None = None


async def probe_server(
    server: Server,
    credentials: Credentials,
    *,
    tls_key: Secret | None = None,
    database: str = "postgres",
    clock: Callable[[], float] = time.perf_counter,
) -> list[Probe]:
    """Try the server's addresses in their order, until one works; the last probe is that of the one that did.

    `tls_key` is the key of the certificate that the server is shown.  Raises ValueError for a CA that cannot be read.
    """
    tls = _tls(server, tls_key)
    is_direct = server.tls_negotiation is TlsNegotiation.DIRECT
    probes = []
    for address in server.addresses:
        probes.append(await _probe(address, credentials, database, tls, clock, direct=is_direct))
        if probes[-1].problem is None:
            break
    return probes


async def probe_auth(server: Server, auth: AuthQuery, address: Address, *, tls_key: Secret | None = None) -> str | None:
    """Ask a server for the verifier of a role that it does not have, as nodes do; returns what is wrong with that."""
    is_direct = server.tls_negotiation is TlsNegotiation.DIRECT
    tls, path = _tls(server, tls_key), "pg_catalog, pg_temp"
    try:
        connection = await _connect(address, auth.credentials, auth.database, tls, direct=is_direct, search_path=path)
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


def warnings(server: Server, probe: Probe) -> list[str]:
    """What an administrator should know beyond the facts."""
    found = []
    if probe.max_connections is not None and server.max_connections > probe.max_connections:
        found.append(
            f"the registry allows {server.max_connections} connections (max_connections),"
            f" the server has {probe.max_connections}"
        )
    if probe.read_only:
        found.append("the server is a standby: it cannot be written to")
    if probe.tls is None and server.tls_mode is TlsMode.PREFER and probe.problem is None:
        found.append("the server has no TLS, so the connection is not encrypted")
    return found


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
        return Probe(address, problem=_reason(error))
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
        **({} if facts is None else dict(facts)),
    )


async def _connect(
    address: Address,
    credentials: Credentials,
    database: str,
    tls: ssl.SSLContext | Literal["prefer", "disable"],
    *,
    direct: bool,
    **settings: str,
) -> Any:
    try:
        return await asyncpg.connect(
            host=address.host,
            port=address.port,
            user=credentials.user,
            password=None if credentials.password is None else credentials.password.reveal(),
            database=database,
            ssl=tls,
            direct_tls=direct,
            timeout=TIMEOUT,
            command_timeout=TIMEOUT,
            server_settings={"application_name": "pgtenant server test", **settings},
        )
    except (asyncpg.PostgresError, OSError):
        # The end of a TLS connection takes the loop some turns, and asyncpg waits for none of them.
        await asyncio.sleep(CLOSING)
        raise


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error).strip() or type(error).__name__


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
