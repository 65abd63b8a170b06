from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from harness.handshakes import Account, Certificate, LoginServer, Peer, account, connected, nobody
from harness.rawclient import Message, RawClient, ServerSaid, cstring, frame
from harness.waiting import eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from proxy.auth import ScramClient, md5_hash, md5_response
from proxy.errors import Failure
from proxy.net.client_authentication import AuthPolicy, Channel, authenticate
from proxy.net.client_handshake import ClientGone, GreetPolicy, farewell
from proxy.net.client_tls import ClientTlsMode
from proxy.net.handshake_io import HandshakeSocket
from proxy.wire.framing import MAX_PASSWORD_BODY
from registry.contract import AuthMethod

STRICT = AuthPolicy()
CLEARTEXT = AuthPolicy(allow_cleartext=True)
ANN = account("ann", "right")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.issue(tmp_path_factory.mktemp("tls"))


async def prove(
    io: HandshakeSocket, claim: Account = ANN, policy: AuthPolicy = STRICT, *, user: str = "ann", tls: bool = False
) -> bytes:
    async with asyncio.timeout(10):
        return (await authenticate(io, user, claim, policy, Channel(encrypted=tls))).final


async def scram(peer: Peer, password: str, *, bytewise: bool = False) -> ScramClient:
    """Answer as a driver does, up to the client's final message."""
    client = ScramClient(password, os.urandom(18))
    send = peer.send_bytewise if bytewise else peer.send
    assert (await peer.read()).body == struct.pack("!I", 10) + cstring("SCRAM-SHA-256") + b"\0"
    first = client.first()
    await send(frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", len(first)) + first))
    challenge = await peer.read()
    assert challenge.int32 == 11
    await send(frame("p", client.respond(challenge.body[4:])))
    return client


@pytest.mark.parametrize("bytewise", [False, True])
async def test_the_right_password_by_scram(bytewise: bool) -> None:
    async with connected() as (io, peer):
        proving = asyncio.create_task(prove(io))
        client = await scram(peer, "right", bytewise=bytewise)
        final = await proving
        client.verify(final[9:])
        assert client.done


async def conversation(claim: Account, user: str) -> tuple[list[Message], Failure]:
    """Everything that the server says to a client with a wrong password."""
    async with connected() as (io, peer):
        proving = asyncio.create_task(prove(io, claim, user=user))
        client = ScramClient("wrong", bytes(18))
        messages = [await peer.read()]
        first = client.first()
        await peer.send(frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", len(first)) + first))
        messages.append(await peer.read())
        await peer.send(frame("p", client.respond(messages[-1].body[4:])))
        with pytest.raises(Failure) as caught:
            await proving
        return messages, caught.value


async def test_a_wrong_password_and_an_unknown_user_hear_the_same() -> None:
    wrong, wrong_failure = await conversation(account("eve", "right"), "eve")
    unknown, unknown_failure = await conversation(nobody("eve"), "eve")
    assert [(message.kind, message.int32, len(message.body)) for message in wrong] == [
        (message.kind, message.int32, len(message.body)) for message in unknown
    ]
    assert (wrong_failure.sqlstate, wrong_failure.message, wrong_failure.hint) == (
        unknown_failure.sqlstate,
        unknown_failure.message,
        unknown_failure.hint,
    )
    assert wrong_failure.sqlstate == "28P01"


async def test_an_unknown_user_is_shown_the_same_salt_each_time() -> None:
    salts = set()
    for _ in range(3):
        messages, _failure = await conversation(nobody("eve"), "eve")
        salts.add(messages[1].body.split(b",")[1])
    assert len(salts) == 1


async def test_md5_for_a_login_that_opted_in() -> None:
    claim = account("ann", "right", AuthMethod.SCRAM, AuthMethod.MD5, md5=True)
    for password, accepted in (("right", True), ("wrong", False)):
        async with connected() as (io, peer):
            proving = asyncio.create_task(prove(io, claim))
            request = await peer.read()
            assert request.int32 == 5
            answer = md5_response(md5_hash("ann", password), request.body[4:])
            await peer.send(frame("p", answer + b"\0"))
            if accepted:
                assert await proving == b""
            else:
                with pytest.raises(Failure, match="password authentication failed"):
                    await proving


async def test_md5_is_for_the_spellings_only_that_there_is_a_hash_of() -> None:
    claim = account("ann", "right", AuthMethod.SCRAM, AuthMethod.MD5, md5=True)
    async with connected() as (io, peer):
        proving = asyncio.create_task(prove(io, claim, user="ann.acme"))
        await scram(peer, "right")
        assert (await proving)[:1] == b"R"


async def test_md5_salts_differ() -> None:
    claim = account("ann", "right", AuthMethod.MD5, md5=True)
    salts = set()
    for _ in range(5):
        async with connected() as (io, peer):
            proving = asyncio.create_task(prove(io, claim))
            salts.add((await peer.read()).body[4:])
            await peer.close()
            with pytest.raises(ClientGone):
                await proving
    assert len(salts) == 5


@pytest.mark.parametrize(("policy", "tls"), [(STRICT, True), (CLEARTEXT, False)])
async def test_cleartext_over_tls_or_where_it_is_allowed(policy: AuthPolicy, tls: bool) -> None:
    claim = account("ann", "right", AuthMethod.SCRAM, AuthMethod.PASSWORD)
    for password, accepted in (("right", True), ("wrong", False), ("", False)):
        async with connected() as (io, peer):
            proving = asyncio.create_task(prove(io, claim, policy, tls=tls))
            assert (await peer.read()).int32 == 3
            await peer.send(frame("p", cstring(password)))
            if accepted:
                assert await proving == b""
            else:
                with pytest.raises(Failure, match="password authentication failed"):
                    await proving


async def test_cleartext_is_not_asked_for_without_tls() -> None:
    claim = account("ann", "right", AuthMethod.SCRAM, AuthMethod.PASSWORD)
    async with connected() as (io, peer):
        proving = asyncio.create_task(prove(io, claim))
        await scram(peer, "right")
        assert (await proving)[:1] == b"R"


async def test_only_who_knows_the_password_learns_that_cleartext_is_forbidden() -> None:
    claim = account("ann", "right", AuthMethod.PASSWORD)
    for password, name in (("right", "cleartext_forbidden"), ("wrong", "invalid_password")):
        async with connected() as (io, peer):
            proving = asyncio.create_task(prove(io, claim))
            await scram(peer, password)
            with pytest.raises(Failure) as caught:
                await proving
            assert caught.value.spec.name == name


async def test_trust_believes_known_logins_only() -> None:
    policy = AuthPolicy(trust=True)
    async with connected() as (io, _peer):
        assert await prove(io, ANN, policy) == b""
    async with connected() as (io, peer):
        proving = asyncio.create_task(prove(io, nobody("eve"), policy))
        await scram(peer, "anything")
        with pytest.raises(Failure, match="password authentication failed"):
            await proving


LONGEST = 65_530
"""Bytes of the longest password that PostgreSQL takes."""


@pytest.mark.parametrize("password", ["p" * LONGEST, "\u00e9" * (LONGEST // 2), "a\u0315\u0316" * (LONGEST // 5)])
async def test_a_password_is_as_long_as_one_that_postgresql_takes(password: str) -> None:
    claim = account("ann", password, AuthMethod.PASSWORD)
    async with connected() as (io, peer):
        proving = asyncio.create_task(prove(io, claim, CLEARTEXT))
        await peer.read()
        await peer.send(frame("p", cstring(password)))
        assert await proving == b""


@pytest.mark.parametrize("size", [0, 3, MAX_PASSWORD_BODY + 5, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("claim", [ANN, account("ann", "right", AuthMethod.PASSWORD)], ids=["scram", "password"])
async def test_impossible_lengths_are_refused_at_once(size: int, claim: Account) -> None:
    async with connected() as (io, peer):
        await peer.send(b"p" + struct.pack("!I", size) + bytes(10))
        with pytest.raises(Failure, match="protocol violation"):
            await prove(io, claim, CLEARTEXT)


@pytest.mark.parametrize(
    "answer",
    [
        frame("Q", cstring("select 1")),
        frame("p", b""),
        frame("p", cstring("SCRAM-SHA-256-PLUS") + struct.pack("!i", -1)),
        frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", 5) + b"n,,n="),
        frame("p", cstring("SCRAM-SHA-256") + struct.pack("!I", 2**31 - 1) + b"n,,n=,r=x"),
        frame("p", bytes(1000)),
    ],
)
async def test_what_is_no_answer_is_a_protocol_violation(answer: bytes) -> None:
    async with connected() as (io, peer):
        await peer.send(answer)
        with pytest.raises(Failure, match="protocol violation"):
            await prove(io)


async def test_a_client_that_begins_without_data_is_given_an_empty_challenge() -> None:
    async with connected() as (io, peer):
        proving = asyncio.create_task(prove(io))
        await peer.read()
        await peer.send(frame("p", cstring("SCRAM-SHA-256") + struct.pack("!i", -1)))
        assert (await peer.read()).body == struct.pack("!I", 11)
        client = ScramClient("right", os.urandom(18))
        await peer.send(frame("p", client.first()))
        await peer.send(frame("p", client.respond((await peer.read()).body[4:])))
        assert (await proving)[:1] == b"R"


async def test_a_client_that_leaves_to_ask_for_the_password_is_no_error() -> None:
    for goodbye in (b"", frame("X"), b"p\0\0"):
        async with connected() as (io, peer):
            await peer.send(goodbye)
            peer.writer.write_eof()
            with pytest.raises(ClientGone):
                await prove(io)


@settings(max_examples=100)
@given(
    sent=st.lists(st.one_of(st.binary(max_size=40), st.binary(max_size=60).map(lambda body: frame("p", body)))),
    claim=st.sampled_from([ANN, nobody("eve"), account("ann", "right", AuthMethod.PASSWORD)]),
)
def test_random_answers_end_in_an_error_of_ours(sent: list[bytes], claim: Account) -> None:
    async def scenario() -> None:
        async with connected() as (io, peer):
            await peer.send(*sent)
            peer.writer.write_eof()
            with pytest.raises((Failure, ClientGone)):
                await prove(io, claim, CLEARTEXT)

    asyncio.run(scenario())


@contextmanager
def psycopg_session(server: LoginServer, password: str, **options: str) -> Iterator[psycopg.Connection]:
    where = {"host": "127.0.0.1", "port": str(server.port), "user": "ann", "password": password, "dbname": "acme"}
    connection = psycopg.connect(make_conninfo(**where, **options), autocommit=True)
    try:
        yield connection
    finally:
        connection.close()


async def test_libpq_logs_in() -> None:
    async with LoginServer({"ann": ANN}) as server:

        def call() -> None:
            with psycopg_session(server, "right", sslmode="disable") as connection:
                assert connection.info.parameter_status("server_version") == "18.0"
                assert connection.info.backend_pid == 4711

        await asyncio.to_thread(call)
        assert [greeting.minor for greeting in server.greetings] == [0]


async def test_libpq_logs_in_over_tls_and_checks_the_certificate(certificate: Certificate) -> None:
    root = certificate.cert.with_name("root.crt")
    root.write_text(certificate.authority_pem)
    policy = GreetPolicy(certificate.tls(ClientTlsMode.REQUIRE))
    async with LoginServer({"ann": ANN}, greet=policy) as server:

        def call() -> None:
            with psycopg_session(server, "right", sslmode="verify-full", sslrootcert=str(root)) as connection:
                assert connection.pgconn.ssl_in_use

        await asyncio.to_thread(call)
        assert server.greetings[0].tls


async def test_libpq_is_told_what_is_wrong() -> None:
    async with LoginServer({"ann": ANN}) as server:

        def call() -> None:
            with (
                pytest.raises(psycopg.OperationalError, match='password authentication failed for user "ann"'),
                psycopg_session(server, "wrong", sslmode="disable"),
            ):
                pass

        await asyncio.to_thread(call)
        assert [failure.sqlstate for failure in server.refusals] == ["28P01"]


async def test_libpq_without_a_password_leaves_quietly() -> None:
    async with LoginServer({"ann": ANN}) as server:

        def call() -> None:
            with (
                pytest.raises(psycopg.OperationalError, match="no password supplied"),
                psycopg_session(server, "", sslmode="disable", passfile="/nonexistent"),
            ):
                pass

        await asyncio.to_thread(call)
        await eventually(lambda: server.ended, what="the login ends")
        assert not server.refusals


async def test_the_refusal_reaches_a_raw_client_whole() -> None:
    async with LoginServer({"ann": ANN}) as server:

        def call() -> None:
            with RawClient(server.port) as client:
                with pytest.raises(ServerSaid) as caught:
                    client.login("ann", "wrong")
                assert (caught.value.sqlstate, caught.value.fields["S"]) == ("28P01", "FATAL")
                assert client.read_to_end() == []

        await asyncio.to_thread(call)


async def test_a_farewell_to_a_client_that_has_gone_is_quiet() -> None:
    async with connected() as (io, peer):
        await peer.close()
        await farewell(io, b"bye")
