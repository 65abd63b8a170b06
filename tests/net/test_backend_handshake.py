from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.databases import Database
from harness.fakeserver import (
    AUTHENTICATION_OK,
    FakeServer,
    FakeSession,
    authentication,
    backend_key_data,
    error_response,
    parameter_status,
    ready,
)
from harness.handshakes import Certificate
from harness.rawclient import cstring, frame
from harness.shared import ca_file
from harness.waiting import eventually
from structlog.testing import capture_logs

from proxy.auth import ScramServer, build_verifier
from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts
from proxy.net.backend_handshake import BackendOpenFailed, ReadyBackend, open_backend
from proxy.net.endpoints import DialFailed, Endpoint, dial
from proxy.net.scram_keys import CHEAP_ITERATIONS, ScramKeyCache
from proxy.net.tls import ServerTlsContexts
from proxy.wire.startup import PROTOCOL_3_0
from registry.contract import Address, ChannelBinding, Credentials, ProtocolVersion, Secret, ServerInfo, TlsMode

CONTEXTS = ServerTlsContexts()
ANN = Credentials("ann", Secret("right"))


def server_at(*addresses: Address, tls_mode: TlsMode = TlsMode.DISABLE, **fields: Any) -> ServerInfo:
    return ServerInfo(1, "alpha", addresses, tls_mode=tls_mode, **fields)


async def opened(
    server: ServerInfo,
    credentials: Credentials = ANN,
    database: str = "acme",
    *,
    seconds: float = 10.0,
    keys: ScramKeyCache | None = None,
    startup_parameters: tuple[tuple[str, str], ...] = (),
) -> ReadyBackend:
    return await open_backend(
        server,
        database,
        credentials,
        connect_timeout=seconds,
        tls_contexts=CONTEXTS,
        keys=keys,
        startup_parameters=startup_parameters,
    )


async def failed(server: ServerInfo, credentials: Credentials = ANN, *, seconds: float = 10.0) -> BackendOpenFailed:
    with pytest.raises(BackendOpenFailed) as caught:
        await opened(server, credentials, seconds=seconds)
    return caught.value


async def failed_with(script: Callable[[FakeSession], Awaitable[None]], *, seconds: float = 10.0) -> BackendOpenFailed:
    async with FakeServer(script) as fake:
        return await failed(server_at(Address("127.0.0.1", fake.port)), seconds=seconds)


async def ask(sock: socket.socket, sql: str) -> bytes:
    """The raw answer to a query on a backend's socket, TLS or not."""
    sock.settimeout(10)

    def call() -> bytes:
        sock.sendall(frame("Q", cstring(sql)))
        answer = b""
        while not answer.endswith(frame("Z", b"I")):
            answer += sock.recv(4096)
        return answer

    return await asyncio.to_thread(call)


def owner_of(database: Database) -> Credentials:
    return Credentials(database.role, Secret(database.password))


@pytest.mark.parametrize("protocol", ProtocolVersion)
async def test_a_real_server_is_logged_in_to(
    any_pg: ServerFacts, make_database: Callable[..., Database], protocol: ProtocolVersion
) -> None:
    database = make_database(any_pg)
    backend = await opened(
        server_at(Address(any_pg.host, any_pg.port), protocol=protocol),
        owner_of(database),
        database.name,
        startup_parameters=(("application_name", "pgtenant"),),
    )
    with backend.sock:
        assert backend.params[b"server_version"].decode().startswith(str(any_pg.version))
        assert backend.params[b"application_name"] == b"pgtenant"
        assert len(backend.key) == (32 if protocol is ProtocolVersion.V3_2 and any_pg.version >= 18 else 4)
        assert not backend.tls
        assert not backend.sock.getblocking()
        assert backend.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert backend.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert str(backend.pid).encode() in await ask(backend.sock, "select pg_backend_pid()")


async def test_a_unix_socket_is_an_address(pg18: ServerFacts, make_database: Callable[..., Database]) -> None:
    database = make_database(pg18)
    server = server_at(Address(str(pg18.data_dir), pg18.port), tls_mode=TlsMode.REQUIRE)
    backend = await opened(server, owner_of(database), database.name)
    with backend.sock:
        assert backend.sock.family == socket.AF_UNIX
        assert not backend.tls


@pytest.mark.parametrize(
    ("mode", "checks"),
    [(mode, mode in {TlsMode.VERIFY_CA, TlsMode.VERIFY_FULL}) for mode in TlsMode if mode is not TlsMode.DISABLE],
)
async def test_tls_as_the_mode_wants_it(
    pg17: ServerFacts, make_database: Callable[..., Database], tmp_path: Path, mode: TlsMode, checks: bool
) -> None:
    database = make_database(pg17)
    server = server_at(Address("localhost", pg17.port), tls_mode=mode, tls_ca=ca_file(pg17).read_text())
    backend = await opened(server, owner_of(database), database.name)
    with backend.sock:
        assert backend.tls
        assert b"t" in await ask(backend.sock, "select ssl from pg_stat_ssl where pid = pg_backend_pid()")
    stranger = replace(server, tls_ca=Certificate.issue(tmp_path).authority_pem)
    if checks or mode is TlsMode.REQUIRE:
        failure = await failed(stranger, owner_of(database))
        assert "certificate verify failed" in failure.text
        assert failure.whole_server
    else:
        (await opened(stranger, owner_of(database), database.name)).sock.close()


async def test_verify_full_holds_the_certificate_against_the_name(pg17: ServerFacts) -> None:
    authority = ca_file(pg17).read_text()
    # The embedded server listens on 127.0.0.1 only, so a small relay stands in for another name of it.
    relay = await asyncio.start_server(lambda r, w: _pass_on(r, w, pg17.port), "127.0.0.2", 0)
    async with relay:
        port = relay.sockets[0].getsockname()[1]
        server = server_at(Address("127.0.0.2", port), tls_mode=TlsMode.VERIFY_FULL, tls_ca=authority)
        failure = await failed(server)
        assert "TLS failed: certificate verify failed" in failure.text
        assert failure.summary == "TLS failed"
        assert (await failed(replace(server, tls_mode=TlsMode.VERIFY_CA))).sqlstate == "28P01", (
            "the name does not matter to verify-ca"
        )


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(4096):
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))


@pytest.mark.parametrize("mode", [TlsMode.REQUIRE, TlsMode.VERIFY_CA, TlsMode.VERIFY_FULL])
async def test_a_server_without_tls_is_refused_where_tls_is_wanted(pg18: ServerFacts, mode: TlsMode) -> None:
    failure = await failed(server_at(Address(pg18.host, pg18.port), tls_mode=mode))
    assert "does not speak TLS" in failure.text
    assert failure.whole_server


async def test_prefer_goes_on_without_tls(pg18: ServerFacts, make_database: Callable[..., Database]) -> None:
    database = make_database(pg18)
    server = server_at(Address(pg18.host, pg18.port), tls_mode=TlsMode.PREFER)
    backend = await opened(server, owner_of(database), database.name)
    with backend.sock:
        assert not backend.tls


def failing_at_tls(first: bytes, then: bytes) -> Callable[[FakeSession], Awaitable[None]]:
    """A server that answers the request for TLS with `first` and the handshake with `then`; without TLS it serves."""
    tried = 0

    async def script(session: FakeSession) -> None:
        nonlocal tried
        tried += 1
        if tried > 1:
            await session.accept()
            return
        await session.reader.readexactly(8)
        await session.send(first)
        if then:
            await session.reader.read(4096)
            await session.send(then)

    return script


FAILURES = {
    "it hangs up": (b"S", b"\x15"),
    "it speaks another version": (b"S", bytes.fromhex("15030100020246")),
    "it answers with an error": (error_response("57P03", "not now"), b""),
}


@pytest.mark.parametrize("how", FAILURES)
async def test_prefer_connects_again_without_tls_where_tls_fails(how: str) -> None:
    async with FakeServer(failing_at_tls(*FAILURES[how])) as fake:
        server = server_at(Address("127.0.0.1", fake.port), tls_mode=TlsMode.PREFER)
        with capture_logs() as logs:
            backend = await opened(server)
        backend.sock.close()
        assert not backend.tls
        assert len(fake.sessions) == 2
    (warning,) = logs
    assert (warning["log_level"], warning["server"]) == ("warning", "alpha")


@pytest.mark.parametrize(
    "needs",
    [
        {"tls_mode": TlsMode.REQUIRE},
        {"channel_binding": ChannelBinding.REQUIRE},
        {"tls_cert": "a", "tls_key": Secret("b")},
    ],
    ids=["required", "bound", "certified"],
)
async def test_what_needs_tls_does_not_do_without(needs: dict[str, Any], tmp_path: Path) -> None:
    if "tls_cert" in needs:
        issued = Certificate.issue(tmp_path)
        needs = {"tls_cert": issued.cert.read_text(), "tls_key": Secret(issued.key.read_text())}
    async with FakeServer(failing_at_tls(*FAILURES["it speaks another version"])) as fake:
        server = server_at(Address("127.0.0.1", fake.port), **{"tls_mode": TlsMode.PREFER, **needs})
        assert "TLS failed" in (await failed(server)).text
        assert len(fake.sessions) == 1


async def test_an_authority_that_is_none_says_so() -> None:
    async with FakeServer() as fake:
        server = server_at(Address("127.0.0.1", fake.port), tls_mode=TlsMode.VERIFY_CA, tls_ca="nonsense")
        assert "not a PEM certificate" in (await failed(server)).text


METHODS = {"trusted": "trust", "plain": "password", "digest": "md5", "scrammed": "scram-sha-256"}


async def test_every_method_of_a_real_server(own_server: Callable[..., EmbeddedServer]) -> None:
    hba = [f"host all {role} 127.0.0.1/32 {method}" for role, method in METHODS.items()]
    real = own_server(17, hba=[*hba, "host all all 127.0.0.1/32 scram-sha-256"])
    roles = "".join(f"create role {role} login password 'right';\n" for role in METHODS if role != "digest")
    real.psql(f"{roles} set password_encryption = 'md5'; create role digest login password 'right'")
    server = server_at(Address(real.host, real.port))
    for role in METHODS:
        backend = await opened(server, Credentials(role, Secret("right")), "postgres")
        backend.sock.close()
        if role != "trusted":
            failure = await failed(server, Credentials(role, Secret("wrong")))
            assert (failure.sqlstate, failure.whole_server) == ("28P01", False)
            assert "wrong" not in failure.text
            assert "none is stored" in (await failed(server, Credentials(role))).text
    (await opened(server, Credentials("trusted"), "postgres")).sock.close()


async def test_what_a_server_refuses_one_login_is_no_fault_of_the_server(
    pg18: ServerFacts, make_database: Callable[..., Database]
) -> None:
    database = make_database(pg18)
    server = server_at(Address(pg18.host, pg18.port))
    failure = await failed(server, owner_of(database))
    assert (failure.sqlstate, failure.whole_server) == ("3D000", False), "there is no database acme"
    pg18.psql(f"alter role {database.role} connection limit 0")
    with pytest.raises(BackendOpenFailed) as caught:
        await opened(server, owner_of(database), database.name)
    assert (caught.value.sqlstate, caught.value.whole_server) == ("53300", False)
    pg18.psql(f"alter role {database.role} connection limit -1; alter database {database.name} connection limit 0")
    with pytest.raises(BackendOpenFailed) as caught:
        await opened(server, owner_of(database), database.name)
    assert (caught.value.sqlstate, caught.value.whole_server) == ("53300", False)


@pytest.mark.parametrize(
    ("sqlstate", "whole"),
    [("53300", True), ("57P03", True), ("57P01", True), ("28000", False), ("28P01", False), ("42501", False)],
)
async def test_refusals_tell_the_server_from_the_login(sqlstate: str, whole: bool) -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(error_response(sqlstate, "no\nway", severity="FATAL"))

    failure = await failed_with(script)
    assert (failure.sqlstate, failure.whole_server) == (sqlstate, whole)
    assert "no?way" in failure.text
    assert "no?way" not in failure.summary


async def test_an_error_without_a_sqlstate_is_a_refusal_like_any_other() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(frame("E", b"S" + cstring("FATAL") + b"M" + cstring("gone fishing") + b"\0"))

    failure = await failed_with(script)
    assert failure.sqlstate is None
    assert "gone fishing" in failure.text


async def test_a_connection_refused_is_the_servers_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    failure = await failed(server_at(Address("127.0.0.1", port)))
    assert failure.whole_server
    assert failure.summary == "connection refused"
    assert f"127.0.0.1:{port}" in failure.text


async def test_an_unknown_host_name_says_so() -> None:
    failure = await failed(server_at(Address("does-not-exist.invalid")))
    assert "could not be resolved" in failure.text
    assert failure.whole_server


async def test_a_server_without_addresses_says_so() -> None:
    assert "no address" in (await failed(server_at())).text


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async def starting_up(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(error_response("57P03", "the database system is starting up", severity="FATAL"))

    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    async with FakeServer(starting_up) as busy, FakeServer() as good:
        ports = (closed, busy.port, good.port)
        backend = await opened(server_at(*(Address("127.0.0.1", port) for port in ports)))
        backend.sock.close()
        assert backend.address.port == good.port


async def test_an_address_of_a_kind_that_this_machine_has_not_is_one_that_does_not_answer() -> None:
    with pytest.raises(DialFailed, match="not supported"):
        await dial(Endpoint("db.example.com", 5432, socket.AF_UNSPEC, ("::1", 5432, 0, 0)))


async def test_the_next_address_is_not_tried_when_the_login_is_refused() -> None:
    async def refusing(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(error_response("28P01", "no", severity="FATAL"))

    async with FakeServer(refusing) as first, FakeServer() as second:
        failure = await failed(server_at(Address("127.0.0.1", first.port), Address("127.0.0.1", second.port)))
        assert failure.sqlstate == "28P01"
        assert not second.sessions


async def test_a_server_that_says_nothing_meets_the_time_limit() -> None:
    async def silent(session: FakeSession) -> None:
        await session.read_startup()
        await session.reader.read()

    failure = await failed_with(silent, seconds=0.05)
    assert failure.whole_server
    assert "did not answer within 0.05 s" in failure.text


async def test_a_login_that_hangs_after_authentication_is_no_fault_of_the_server() -> None:
    async def hanging(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(AUTHENTICATION_OK)
        await session.reader.read()

    assert not (await failed_with(hanging, seconds=0.05)).whole_server


async def test_a_login_is_understood_byte_by_byte() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send_split(
            AUTHENTICATION_OK + parameter_status("TimeZone", "UTC") + backend_key_data(7, b"abcd") + ready()
        )
        await session.reader.read()

    async with FakeServer(script) as fake:
        backend = await opened(server_at(Address("127.0.0.1", fake.port)))
        backend.sock.close()
        assert (backend.params, backend.pid, backend.key) == ({b"TimeZone": b"UTC"}, 7, b"abcd")


async def test_a_server_without_cancel_keys_is_tolerated() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.greet(key=b"")
        await session.reader.read()

    async with FakeServer(script) as fake:
        backend = await opened(server_at(Address("127.0.0.1", fake.port)))
        backend.sock.close()
        assert (backend.pid, backend.key) == (0, b"")


async def test_notices_and_a_negotiated_version_are_taken_in_their_stride() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(frame("v", struct.pack("!II", PROTOCOL_3_0, 0)))
        await session.send(frame("N", b"S" + cstring("NOTICE") + b"M" + cstring("hello") + b"\0"))
        await session.greet()
        await session.reader.read()

    async with FakeServer(script) as fake:
        backend = await opened(server_at(Address("127.0.0.1", fake.port)))
        backend.sock.close()
        assert backend.pid == 4711


ODD_LOGINS = {
    "a newer version than asked for": frame("v", struct.pack("!II", 3 << 16 | 9, 0)) + AUTHENTICATION_OK + ready(),
    "a row": AUTHENTICATION_OK + frame("D", b"\0\0"),
    "readiness without authentication": ready(),
    "a transaction": AUTHENTICATION_OK + ready("T"),
    "a parameter without a value": AUTHENTICATION_OK + frame("S", b"x\0"),
    "a cancel key of 257 bytes": AUTHENTICATION_OK + backend_key_data(1, bytes(257)) + ready(),
    "more than the login": AUTHENTICATION_OK + ready() + frame("N", b"\0"),
    "length 0": b"R\0\0\0\0",
    "length 3": b"R\0\0\0\3",
    "length 2^31-1": b"R\x7f\xff\xff\xff",
    "length 2^32-1": b"R\xff\xff\xff\xff",
    "a fork failure of the old protocol": b"Ecould not fork new process for connection: no memory\n\0",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "unknown authentication": authentication(99),
    "GSSAPI": authentication(7),
    "SSPI": authentication(9),
    "Kerberos": authentication(2),
    "SASL without SCRAM": authentication(10, cstring("OAUTHBEARER") + b"\0"),
    "a SASL answer to no question": authentication(11, b"r=x,s=eA==,i=4096"),
    "endless parameters": AUTHENTICATION_OK + parameter_status("x", "y" * 60_000) * 20,
}


@pytest.mark.parametrize("said", ODD_LOGINS.values(), ids=ODD_LOGINS)
async def test_a_server_that_speaks_another_language_is_not_logged_in_to(said: bytes) -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(said)
        await session.reader.read()

    await failed_with(script)


async def test_a_server_that_skips_the_end_of_scram_is_not_believed() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(authentication(10, cstring("SCRAM-SHA-256") + b"\0"))
        await session.read()
        await session.send(AUTHENTICATION_OK + ready())
        await session.reader.read()

    assert not (await failed_with(script)).whole_server


async def test_a_server_that_does_not_know_the_password_is_not_believed() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        scram = ScramServer(build_verifier("something else", bytes(16)), bytes(18))
        await session.send(authentication(10, cstring("SCRAM-SHA-256") + b"\0"))
        body = (await session.read()).body
        challenge = scram.start("SCRAM-SHA-256", body[len("SCRAM-SHA-256") + 5 :])
        await session.send(authentication(11, challenge))
        await session.read()
        await session.send(authentication(12, b"v=" + b"A" * 43 + b"=") + AUTHENTICATION_OK + ready())
        await session.reader.read()

    failure = await failed_with(script)
    assert "does not know the password" in failure.text
    assert "right" not in failure.text


@pytest.mark.parametrize("iterations", [4096, CHEAP_ITERATIONS + 1])
async def test_scram_keys_are_derived_once_however_costly(iterations: int) -> None:
    verifier = build_verifier("right", bytes(16), iterations)

    async def script(session: FakeSession) -> None:
        await session.read_startup()
        scram = ScramServer(verifier, os.urandom(18))
        await session.send(authentication(10, cstring("SCRAM-SHA-256") + b"\0"))
        body = (await session.read()).body
        await session.send(authentication(11, scram.start("SCRAM-SHA-256", body[len("SCRAM-SHA-256") + 5 :])))
        await session.send(authentication(12, scram.step((await session.read()).body)))
        await session.greet()
        await session.reader.read()

    keys = ScramKeyCache(limit=1)
    async with FakeServer(script) as fake:
        for _ in range(2):
            (await opened(server_at(Address("127.0.0.1", fake.port)), keys=keys)).sock.close()
    assert keys.derived == 1


async def test_cancelling_leaves_no_connection_behind() -> None:
    async def silent(session: FakeSession) -> None:
        await session.read_startup()
        await session.reader.read()

    async with FakeServer(silent) as fake:
        opening = asyncio.create_task(opened(server_at(Address("127.0.0.1", fake.port))))
        await eventually(lambda: fake.sessions and fake.sessions[0].startup, what="the server is spoken to")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await eventually(fake.sessions[0].reader.at_eof, what="the connection is closed")


async def test_no_secret_is_in_what_is_shown() -> None:
    async def script(session: FakeSession) -> None:
        await session.accept(key=b"top secret key")
        await session.reader.read()

    async with FakeServer(script) as fake:
        backend = await opened(server_at(Address("127.0.0.1", fake.port)))
        backend.sock.close()
        assert "secret" not in repr(backend)
