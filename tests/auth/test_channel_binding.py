"""SCRAM-SHA-256-PLUS: which hash of which certificate, and every way in which the two ends may disagree."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import (
    MECHANISM,
    MECHANISM_PLUS,
    AuthError,
    ChannelBindingFailed,
    MalformedExchange,
    ScramClient,
    ScramServer,
    UntrustedServer,
    build_verifier,
    choose_mechanism,
    server_end_point,
)
from proxy.auth.scram_client import Mechanism
from registry.contract import ChannelBinding

VERIFIER = build_verifier("correct horse", b"0123456789abcdef", 1)
HERE = hashlib.sha256(b"the certificate shown").digest()
ELSEWHERE = hashlib.sha256(b"another certificate").digest()
BOTH = (MECHANISM_PLUS, MECHANISM)


def certificate(algorithm: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None) -> bytes:
    key = ed25519.Ed25519PrivateKey.generate() if algorithm is None else ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def server(end_point: bytes | None = HERE) -> ScramServer:
    return ScramServer(VERIFIER, b"s" * 18, end_point)


def client(mechanism: Mechanism) -> ScramClient:
    return ScramClient("correct horse", b"c" * 18, mechanism)


def log_in(one: ScramClient, other: ScramServer) -> None:
    challenge = other.start(one.mechanism.name, one.first())
    one.verify(other.step(one.respond(challenge)))


def log_in_with(other: ScramServer, mechanism: str, *messages: bytes) -> None:
    first, *rest = messages
    other.start(mechanism, first)
    for message in rest:
        other.step(message)


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda one: one.name)
def test_a_certificate_is_hashed_as_it_was_signed(
    algorithm: hashes.SHA256 | hashes.SHA384 | hashes.SHA512,
) -> None:
    made = certificate(algorithm)
    assert server_end_point(made) == hashlib.new(algorithm.name, made).digest()


@pytest.mark.parametrize("weak", ["md5", "sha1"])
def test_sha_256_stands_in_for_hashes_that_are_too_weak(weak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = certificate(hashes.SHA256())
    signed = {"md5": hashes.MD5(), "sha1": hashes.SHA1()}[weak]
    known = type("Known", (), {"signature_hash_algorithm": signed})()
    monkeypatch.setattr(x509, "load_der_x509_certificate", lambda _der: known)
    assert server_end_point(made) == hashlib.sha256(made).digest()


@pytest.mark.parametrize("made", [certificate(None), b"", b"no certificate"], ids=["ed25519", "empty", "not one"])
def test_there_is_nothing_to_bind_to_where_no_hash_is_defined(made: bytes) -> None:
    assert server_end_point(made) is None


def test_both_ends_of_one_connection_are_bound_to_it() -> None:
    one, other = client(choose_mechanism(BOTH, HERE)), server()
    log_in(one, other)
    assert one.mechanism.name == MECHANISM_PLUS
    assert one.done and other.done


def test_a_client_that_cannot_bind_still_gets_in() -> None:
    other = server()
    log_in(client(Mechanism()), other)
    assert other.done


def test_a_client_may_say_that_it_could_bind_where_nothing_is_offered() -> None:
    one, other = client(choose_mechanism((MECHANISM,), HERE)), server(None)
    assert one.first().startswith(b"y,,")
    log_in(one, other)
    assert other.done


def test_a_client_at_the_end_of_another_connection_is_refused() -> None:
    with pytest.raises(ChannelBindingFailed, match="another certificate"):
        log_in(client(choose_mechanism(BOTH, ELSEWHERE)), server())


def test_a_downgrade_is_noticed() -> None:
    with pytest.raises(ChannelBindingFailed, match="not offered"):
        log_in(client(choose_mechanism((MECHANISM,), HERE)), server())


@pytest.mark.parametrize(
    ("mechanism", "first"),
    [
        (MECHANISM_PLUS, b"n,,n=,r=abc"),
        (MECHANISM_PLUS, b"y,,n=,r=abc"),
        (MECHANISM_PLUS, b"p=tls-unique,,n=,r=abc"),
        (MECHANISM_PLUS, b"p=,,n=,r=abc"),
        (MECHANISM_PLUS, b"p=tls-server-end-point,a=me,n=,r=abc"),
        (MECHANISM_PLUS, b"p=" + b"x" * 5000 + b",,n=,r=abc"),
        (MECHANISM, b"p=tls-server-end-point,,n=,r=abc"),
        (MECHANISM, b"q,,n=,r=abc"),
        ("SCRAM-SHA-1-PLUS", b"p=tls-server-end-point,,n=,r=abc"),
    ],
)
def test_headers_that_do_not_fit_the_mechanism_are_refused(mechanism: str, first: bytes) -> None:
    with pytest.raises(MalformedExchange):
        server().start(mechanism, first)


@given(
    st.sampled_from(BOTH),
    st.sampled_from([b"", b"n,,", b"y,,", b"p=tls-server-end-point,,"]),
    st.binary(max_size=60),
    st.binary(max_size=60),
)
def test_whatever_a_client_says_fails_as_logins_do(mechanism: str, header: bytes, first: bytes, final: bytes) -> None:
    other = server()
    with pytest.raises(AuthError):
        log_in_with(other, mechanism, header + first, final)


@pytest.mark.parametrize("binding", [b"", b"n,,", b"p=tls-server-end-point,,", b"p=tls-server-end-point,," + HERE[:-1]])
def test_a_final_message_must_carry_the_whole_binding(binding: bytes) -> None:
    one, other = client(choose_mechanism(BOTH, HERE)), server()
    challenge = other.start(MECHANISM_PLUS, one.first())
    object.__setattr__(one.mechanism, "bound_to", binding)
    object.__setattr__(one.mechanism, "header", b"")
    with pytest.raises((MalformedExchange, ChannelBindingFailed)):
        other.step(one.respond(challenge))


def test_the_policy_decides_whether_a_server_must_offer_it() -> None:
    assert choose_mechanism(BOTH, HERE, ChannelBinding.DISABLE) == Mechanism()
    assert choose_mechanism(BOTH, HERE, ChannelBinding.REQUIRE).name == MECHANISM_PLUS
    assert choose_mechanism(BOTH) == Mechanism()
    with pytest.raises(UntrustedServer, match="does not offer"):
        choose_mechanism((MECHANISM,), HERE, ChannelBinding.REQUIRE)
    with pytest.raises(UntrustedServer, match="no TLS certificate"):
        choose_mechanism(BOTH, None, ChannelBinding.REQUIRE)
