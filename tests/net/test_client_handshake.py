from __future__ import annotations

import asyncio
import itertools
import ssl
import struct
from pathlib import Path

import pytest
from harness.handshakes import Certificate, Peer, connected
from harness.rawclient import (
    GSSENC_REQUEST,
    PROTOCOL_3_0,
    PROTOCOL_3_2,
    SSL_REQUEST,
    cancel_request,
    cstring,
    startup,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import LOGIN_TIMEOUT, Failure
from proxy.net.client_handshake import (
    ClientGone,
    Greeting,
    GreetPolicy,
    NoStartup,
    farewell,
    greet,
    login_complete,
    parameter_statuses,
    send_failure,
)
from proxy.net.client_tls import ClientTlsMode
from proxy.net.handshake_io import TlsFailed
from proxy.wire.startup import ReplicationMode

PLAIN = GreetPolicy()
HELLO = startup({"user": "ann", "database": "acme"})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.issue(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def with_tls(certificate: Certificate) -> GreetPolicy:
    return GreetPolicy(certificate.tls())


async def greeted(*sent: bytes, policy: GreetPolicy = PLAIN) -> Greeting:
    """What becomes of a client that sends this in one piece."""
    async with connected() as (io, peer):
        await peer.send(*sent)
        return await greet(io, policy)


async def refused(*sent: bytes, policy: GreetPolicy = PLAIN) -> Failure:
    with pytest.raises(Failure) as caught:
        await greeted(*sent, policy=policy)
    return caught.value


async def ask_for_tls(peer: Peer, context: ssl.SSLContext, name: str = "localhost") -> None:
    await peer.send(SSL_REQUEST)
    assert await peer.reader.readexactly(1) == b"S"
    await peer.writer.start_tls(context, server_hostname=name)


async def test_a_startup_message_is_understood_wherever_it_is_cut() -> None:
    for cut in range(1, len(HELLO)):
        async with connected() as (io, peer):
            greeting = asyncio.create_task(greet(io, PLAIN))
            await peer.send(HELLO[:cut])
            await asyncio.sleep(0)
            await peer.send(HELLO[cut:])
            message = (await greeting).startup
            assert message is not None
            assert (message.user, message.database) == ("ann", "acme")


@pytest.mark.parametrize("order", list(itertools.permutations((SSL_REQUEST, GSSENC_REQUEST))))
async def test_encryption_requests_come_in_any_order_byte_by_byte(order: tuple[bytes, ...]) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, PLAIN))
        for request in order:
            await peer.send_bytewise(request)
            assert await peer.reader.readexactly(1) == b"N"
        await peer.send_bytewise(HELLO)
        result = await greeting
        assert result.startup is not None
        assert not result.tls


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
async def test_the_same_encryption_request_twice_is_refused(request_: bytes) -> None:
    assert (await refused(request_, request_)).sqlstate == "08P01"


@pytest.mark.parametrize("before", [b"", GSSENC_REQUEST])
async def test_a_client_that_asks_gets_tls(before: bytes, with_tls: GreetPolicy, certificate: Certificate) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        if before:
            await peer.send(before)
            assert await peer.reader.readexactly(1) == b"N"
        await ask_for_tls(peer, certificate.trusting(), "acme.db.example.com")
        await peer.send_bytewise(HELLO)
        result = await greeting
        assert result.startup is not None
        assert result.sni == "acme.db.example.com"
        assert result.tls is not None
        assert result.tls.version in {"TLSv1.2", "TLSv1.3"}


async def test_tls_1_2_is_spoken_and_nothing_older(with_tls: GreetPolicy, certificate: Certificate) -> None:
    context = certificate.trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        await ask_for_tls(peer, context)
        await peer.send(HELLO)
        facts = (await greeting).tls
        assert facts is not None
        assert facts.version == "TLSv1.2"
    assert with_tls.tls is not None
    assert with_tls.tls.context.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_tls_requested_within_tls_is_refused(with_tls: GreetPolicy, certificate: Certificate) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        await ask_for_tls(peer, certificate.trusting())
        await peer.send(SSL_REQUEST)
        with pytest.raises(Failure, match="protocol violation"):
            await greeting


async def test_an_impossible_length_within_tls_deserves_no_answer(
    with_tls: GreetPolicy, certificate: Certificate
) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        await ask_for_tls(peer, certificate.trusting())
        await peer.send(b"X\0\0\0\4")
        with pytest.raises(NoStartup):
            await greeting


async def test_direct_tls_with_the_protocol_name(with_tls: GreetPolicy, certificate: Certificate) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        await peer.writer.start_tls(certificate.trusting("postgresql"), server_hostname="localhost")
        await peer.send(HELLO)
        result = await greeting
        assert result.sni == "localhost"


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
async def test_direct_tls_without_the_protocol_name_is_refused(
    protocols: tuple[str, ...], with_tls: GreetPolicy, certificate: Certificate
) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        await peer.writer.start_tls(certificate.trusting(*protocols), server_hostname="localhost")
        with pytest.raises(TlsFailed, match="ALPN"):
            await greeting


async def test_direct_tls_is_refused_where_there_is_no_certificate(certificate: Certificate) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, PLAIN))
        shaking = asyncio.create_task(
            peer.writer.start_tls(certificate.trusting("postgresql"), server_hostname="localhost")
        )
        with pytest.raises(NoStartup):
            await greeting
        shaking.cancel()


async def test_plain_text_stuffed_behind_the_request_for_tls_never_becomes_a_message(
    with_tls: GreetPolicy, certificate: Certificate
) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        await peer.send(SSL_REQUEST + HELLO)
        assert await peer.reader.readexactly(1) == b"S"
        shaking = asyncio.create_task(peer.writer.start_tls(certificate.trusting(), server_hostname="localhost"))
        with pytest.raises(TlsFailed):
            await greeting
        shaking.cancel()


async def test_a_client_that_does_not_trust_the_certificate_ends_quietly(with_tls: GreetPolicy, tmp_path: Path) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask_for_tls(peer, Certificate.issue(tmp_path).trusting())
        with pytest.raises(ClientGone):
            await greeting


async def test_required_tls_refuses_plain_sessions_but_not_plain_cancel_requests(certificate: Certificate) -> None:
    policy = GreetPolicy(certificate.tls(ClientTlsMode.REQUIRE))
    assert (await refused(HELLO, policy=policy)).spec.name == "tls_required"
    assert (await greeted(cancel_request(7, b"abcd"), policy=policy)).cancel is not None
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, policy))
        await ask_for_tls(peer, certificate.trusting())
        await peer.send(HELLO)
        assert (await greeting).startup is not None


async def test_a_cancel_request_of_either_protocol() -> None:
    for key in (b"abcd", bytes(range(256))):
        cancel = (await greeted(cancel_request(2**32 - 1, key))).cancel
        assert cancel is not None
        assert (cancel.pid, cancel.key) == (2**32 - 1, key)


async def test_a_cancel_request_over_tls(with_tls: GreetPolicy, certificate: Certificate) -> None:
    async with connected() as (io, peer):
        greeting = asyncio.create_task(greet(io, with_tls))
        await ask_for_tls(peer, certificate.trusting())
        await peer.send(cancel_request(7, b"abcd"))
        result = await greeting
        assert result.cancel is not None
        assert result.tls


@pytest.mark.parametrize(
    ("asked", "minor", "answer"),
    [
        (PROTOCOL_3_0, 0, None),
        (PROTOCOL_3_2, 2, None),
        (3 << 16 | 3, 2, PROTOCOL_3_2),
        (3 << 16 | 9999, 2, PROTOCOL_3_2),
    ],
)
async def test_versions_are_negotiated_down(asked: int, minor: int, answer: int | None) -> None:
    async with connected() as (io, peer):
        await peer.send(startup({"user": "ann"}, asked))
        assert (await greet(io, PLAIN)).minor == minor
        await io.send(login_complete(b"", 1, b"abcd"))
        message = await peer.read()
        if answer is not None:
            assert message.kind == "v"
            assert message.body == struct.pack("!II", answer, 0)
            message = await peer.read()
        assert message.kind == "R"


async def test_unknown_protocol_options_are_named_back() -> None:
    async with connected() as (io, peer):
        await peer.send(startup({"user": "ann", "_pq_.magic": "1", "_pq_.more": "2"}))
        greeting = await greet(io, PLAIN)
        assert greeting.minor == 0
        await io.send()
        message = await peer.read()
        expected = struct.pack("!II", PROTOCOL_3_0, 2) + cstring("_pq_.magic") + cstring("_pq_.more")
        assert (message.kind, message.body) == ("v", expected)


@pytest.mark.parametrize("version", [2 << 16, 4 << 16, 1 << 16, 0])
async def test_another_major_version_is_refused_by_name(version: int) -> None:
    failure = await refused(startup({"user": "ann"}, version))
    assert failure.sqlstate == "0A000"
    assert f"{version >> 16}.0" in failure.message


@pytest.mark.parametrize("value", ["nonsense", "o", "", "Database", "truee", "2"])
async def test_words_that_say_nothing_of_replication_are_refused(value: str) -> None:
    assert (await refused(startup({"user": "ann", "replication": value}))).sqlstate == "22023"


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        *((word, ReplicationMode.NONE) for word in ("false", "off", "no", "0", "F", "of", "n")),
        *((word, ReplicationMode.PHYSICAL) for word in ("true", "on", "1", "yes", "T", "ON")),
        ("database", ReplicationMode.LOGICAL),
    ],
)
async def test_replication_is_read_as_postgresql_reads_it(value: str, mode: ReplicationMode) -> None:
    assert (await greeted(startup({"user": "ann", "replication": value}))).replication is mode


@pytest.mark.parametrize("size", [0, 3, 4, 7, 2**31 - 1, 2**31, 2**32 - 1, 10_005])
@pytest.mark.parametrize("before", [b"", SSL_REQUEST])
async def test_impossible_lengths_are_seen_at_once_and_deserve_no_answer(size: int, before: bytes) -> None:
    async with connected() as (io, peer):
        await peer.send(before + struct.pack("!I", size))
        with pytest.raises(NoStartup):
            async with asyncio.timeout(5):
                await greet(io, PLAIN)


@pytest.mark.parametrize("body", [b"", bytes(4), bytes(7), bytes(261)])
async def test_cancel_requests_of_another_length_deserve_no_answer(body: bytes) -> None:
    async with connected() as (io, peer):
        await peer.send(struct.pack("!II", 8 + len(body), 80877102) + body)
        with pytest.raises(NoStartup):
            await greet(io, PLAIN)


async def test_the_largest_startup_packet_is_taken_and_one_byte_more_is_not() -> None:
    frame_size = len(startup({"user": "ann", "x": ""}))
    assert (await greeted(startup({"user": "ann", "x": "y" * (10_004 - frame_size)}))).startup is not None
    with pytest.raises(NoStartup):
        await refused(startup({"user": "ann", "x": "y" * (10_005 - frame_size)}))


async def test_the_limit_of_startup_packets_is_a_setting() -> None:
    assert (await refused(HELLO, policy=GreetPolicy(startup_max_bytes=16))).sqlstate == "08P01"


async def test_a_startup_that_never_ends_meets_the_time_limit_and_is_told() -> None:
    async with connected() as (io, peer):
        await peer.send(HELLO[:-1])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await greet(io, PLAIN)
        telling = asyncio.create_task(send_failure(io, Failure(LOGIN_TIMEOUT, seconds=0.02)))
        message = await peer.read()
        assert (message.kind, message.fields["S"], message.fields["C"]) == ("E", "FATAL", "57014")
        await peer.close()
        await telling


async def test_a_farewell_does_not_wait_for_ever_for_the_client() -> None:
    async with connected() as (io, peer):
        await farewell(io, b"bye", seconds=0.02)
        assert await peer.reader.read() == b"bye"


async def test_a_client_that_leaves_early_is_gone() -> None:
    for sent in (b"", HELLO[:3], HELLO[:-1], SSL_REQUEST):
        async with connected() as (io, peer):
            await peer.send(sent)
            peer.writer.write_eof()
            with pytest.raises(ClientGone):
                await greet(io, PLAIN)


async def test_the_end_of_a_login_is_one_message_after_the_other() -> None:
    async with connected() as (io, peer):
        statuses = parameter_statuses([("server_version", "18.0"), ("TimeZone", "Europe/Zürich")])
        await io.send(login_complete(statuses, 4711, bytes(range(32))))
        io.close()
        messages = await peer.read_to_end()
        assert [message.kind for message in messages] == ["R", "S", "S", "K", "Z"]
        assert messages[0].int32 == 0
        assert messages[2].body == cstring("TimeZone") + cstring("Europe/Zürich")
        assert messages[3].body == struct.pack("!I", 4711) + bytes(range(32))
        assert messages[4].text == "I"


FIRST_WORDS = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda size, code, rest: struct.pack("!II", size, code) + rest,
        st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)),
        st.sampled_from([80877102, 80877103, 80877104, PROTOCOL_3_0, PROTOCOL_3_2, 0, 1234 << 16]),
        st.binary(max_size=300),
    ),
    st.builds(lambda body: struct.pack("!I", len(body) + 8) + b"\0\3\0\0" + body, st.binary(max_size=300)),
)


@settings(max_examples=150)
@given(sent=st.lists(FIRST_WORDS, max_size=4).map(b"".join), tls=st.booleans())
def test_random_first_words_end_in_a_greeting_or_an_error_of_ours(
    sent: bytes, tls: bool, with_tls: GreetPolicy
) -> None:
    async def scenario() -> None:
        async with connected() as (io, peer):
            await peer.send(sent)
            peer.writer.write_eof()
            try:
                async with asyncio.timeout(10):
                    await greet(io, with_tls if tls else PLAIN)
            except (Failure, ClientGone):
                return

    asyncio.run(scenario())
