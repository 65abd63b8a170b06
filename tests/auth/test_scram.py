"""SCRAM-SHA-256: the RFC's own exchange, both halves against each other, and everything that must fail."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import (
    MECHANISM,
    AuthError,
    MalformedExchange,
    ScramClient,
    ScramServer,
    ScramVerifier,
    UntrustedServer,
    WrongPassword,
    build_verifier,
    choose_mechanism,
    derive_keys,
    mock_verifier,
    scram_server,
)

SALT = b"0123456789abcdef"
CLIENT_NONCE = b"c" * 18
SERVER_NONCE = b"s" * 18
VERIFIER = build_verifier("correct horse", SALT, 1)

# RFC 7677 section 3; the user name is left out of the client's first message by PostgreSQL, so it is put in below.
RFC_PASSWORD = "pencil"
RFC_SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
RFC_CLIENT_NONCE = b"rOprNGfwEbeRWgbNEkqO"
RFC_SERVER_NONCE = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
RFC_CLIENT_FIRST = b"n,,n=user,r=" + RFC_CLIENT_NONCE
RFC_SERVER_FIRST = b"r=" + RFC_CLIENT_NONCE + RFC_SERVER_NONCE + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
RFC_CLIENT_FINAL = (
    b"c=biws,r=" + RFC_CLIENT_NONCE + RFC_SERVER_NONCE + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
RFC_SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def log_in(client: ScramClient, server: ScramServer) -> None:
    challenge = server.start(MECHANISM, client.first())
    client.verify(server.step(client.respond(challenge)))


def answer(server: ScramServer, first: bytes, final: bytes) -> None:
    server.start(MECHANISM, first)
    server.step(final)


def ask(client: ScramClient, challenge: bytes, outcome: bytes) -> None:
    client.respond(challenge)
    client.verify(outcome)


def test_the_server_half_follows_the_rfc(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ScramServer(build_verifier(RFC_PASSWORD, RFC_SALT), SERVER_NONCE)
    monkeypatch.setattr(server, "_nonce", RFC_SERVER_NONCE)
    assert server.start(MECHANISM, RFC_CLIENT_FIRST) == RFC_SERVER_FIRST
    assert server.step(RFC_CLIENT_FINAL) == RFC_SERVER_FINAL
    assert server.done


def test_the_client_half_follows_the_rfc(monkeypatch: pytest.MonkeyPatch) -> None:
    client = ScramClient(RFC_PASSWORD, base64.b64decode(RFC_CLIENT_NONCE))
    monkeypatch.setattr(client, "_first_bare", lambda: b"n=user,r=" + RFC_CLIENT_NONCE)
    assert client.first() == RFC_CLIENT_FIRST
    assert client.respond(RFC_SERVER_FIRST) == RFC_CLIENT_FINAL
    client.verify(RFC_SERVER_FINAL)
    assert client.done


@given(st.text(max_size=20), st.binary(min_size=18, max_size=18), st.binary(min_size=18, max_size=18))
def test_the_halves_agree_on_any_password(password: str, client_nonce: bytes, server_nonce: bytes) -> None:
    verifier = build_verifier(password, SALT, 2)
    client, server = ScramClient(password, client_nonce), ScramServer(verifier, server_nonce)
    log_in(client, server)
    assert client.done and server.done


def test_a_client_that_sends_no_first_message_is_asked_for_it() -> None:
    client, server = ScramClient("correct horse", CLIENT_NONCE), ScramServer(VERIFIER, SERVER_NONCE)
    assert server.start(MECHANISM, None) == b""
    client.verify(server.step(client.respond(server.step(client.first()))))
    assert server.done


def test_a_client_that_could_bind_channels_may_log_in_without() -> None:
    server = ScramServer(VERIFIER, SERVER_NONCE)
    client = ScramClient("correct horse", CLIENT_NONCE)
    challenge = server.start(MECHANISM, b"y" + client.first()[1:])
    with pytest.raises(MalformedExchange, match="binding"):
        server.step(client.respond(challenge))


@pytest.mark.parametrize("verifier", [VERIFIER, mock_verifier(b"secret", b"nobody")], ids=["wrong password", "mock"])
def test_wrong_passwords_and_unknown_logins_fail_alike(
    verifier: ScramVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: list[str] = []

    def counted(name: str, function: Callable[..., bytes]) -> Callable[..., bytes]:
        def call(*arguments: bytes) -> bytes:
            work.append(name)
            return function(*arguments)

        return call

    for name in ("sign", "digest", "xor"):
        monkeypatch.setattr(scram_server, name, counted(name, getattr(scram_server, name)))
    with pytest.raises(WrongPassword, match=r"^password authentication failed$"):
        log_in(ScramClient("guess", CLIENT_NONCE), ScramServer(verifier, SERVER_NONCE))
    assert work == ["sign", "xor", "digest"]


def test_an_unusable_verifier_fails_even_with_its_own_password() -> None:
    doomed = ScramVerifier(VERIFIER.iterations, VERIFIER.salt, VERIFIER.stored_key, VERIFIER.server_key, usable=False)
    with pytest.raises(WrongPassword):
        log_in(ScramClient("correct horse", CLIENT_NONCE), ScramServer(doomed, SERVER_NONCE))


def test_one_exchange_allows_one_guess() -> None:
    client, server = ScramClient("guess", CLIENT_NONCE), ScramServer(VERIFIER, SERVER_NONCE)
    final = client.respond(server.start(MECHANISM, client.first()))
    with pytest.raises(WrongPassword):
        server.step(final)
    with pytest.raises(MalformedExchange, match="over"):
        server.step(final)


def test_channel_binding_needs_the_plus_mechanism() -> None:
    with pytest.raises(MalformedExchange, match="not offered"):
        ScramServer(VERIFIER, SERVER_NONCE).start("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc")
    with pytest.raises(MalformedExchange, match="without"):
        ScramServer(VERIFIER, SERVER_NONCE).start(MECHANISM, b"p=tls-server-end-point,,n=,r=abc")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,,",
        b"x,,n=,r=abc",
        b"nn,,n=,r=abc",
        b"n,a=admin,n=,r=abc",
        b"n,,m=ext,n=,r=abc",
        b"n,,r=abc",
        b"n,,n=",
        b"n,,n=,r=",
        b"n,,n=,r=" + b"a" * 257,
        b"n,,n=,r=" + b"a" * 2000,
        b"n,,n=,r=a b",
        b"n,,n=,r=a\x7f",
        b"n,,n=,r=abc\0",
        b"n,,n=,r=abc,",
        b"n,,n=,r=abc,junk",
        b"n,,n=,r=abc,1=x",
    ],
)
def test_malformed_first_messages_are_refused(message: bytes) -> None:
    with pytest.raises(MalformedExchange):
        ScramServer(VERIFIER, SERVER_NONCE).start(MECHANISM, message)


@pytest.mark.parametrize(
    "change",
    [
        lambda final: b"",
        lambda final: final.replace(b"c=biws", b"c=eSws"),
        lambda final: final.replace(b"c=biws", b"c=biw"),
        lambda final: final.replace(b",r=", b",r=x"),
        lambda final: final.replace(b",r=", b",q="),
        lambda final: final[:-1],
        lambda final: final + b",x=1",
        lambda final: final + b",",
        lambda final: final[: final.index(b",p=")],
        lambda final: final[: final.index(b",p=")] + b",p=AAAA",
        lambda final: final[: final.index(b",p=")] + b",p=!",
        lambda final: final + b"\0",
    ],
)
def test_malformed_final_messages_are_refused(change: Callable[[bytes], bytes]) -> None:
    client, server = ScramClient("correct horse", CLIENT_NONCE), ScramServer(VERIFIER, SERVER_NONCE)
    final = client.respond(server.start(MECHANISM, client.first()))
    with pytest.raises(MalformedExchange):
        server.step(change(final))


def test_extensions_are_covered_by_the_proof() -> None:
    client, server = ScramClient("correct horse", CLIENT_NONCE), ScramServer(VERIFIER, SERVER_NONCE)
    final = client.respond(server.start(MECHANISM, client.first()))
    with pytest.raises(WrongPassword):
        server.step(final.replace(b",p=", b",x=1,p="))


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_the_server_half_survives_random_bytes(first: bytes, final: bytes) -> None:
    for opening in (first, b"n,,n=,r=" + first, b"n,,n=,r=abc"):
        server = ScramServer(VERIFIER, SERVER_NONCE)
        with pytest.raises(AuthError):
            answer(server, opening, final)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_the_client_half_survives_random_bytes(challenge: bytes, outcome: bytes) -> None:
    good = ScramServer(VERIFIER, SERVER_NONCE).start(MECHANISM, ScramClient("x", CLIENT_NONCE).first())
    for message in (challenge, good[:40] + challenge, good):
        client = ScramClient("x", CLIENT_NONCE, max_iterations=10)
        with pytest.raises(AuthError):
            ask(client, message, outcome)


OUR_NONCE = base64.b64encode(CLIENT_NONCE)


@pytest.mark.parametrize(
    "challenge",
    [
        b"r=somebody-else,s=AAAA,i=4096",
        b"r=%b,s=AAAA,i=4096" % OUR_NONCE,
        b"r=%bx,s=AAAA,i=0" % OUR_NONCE,
        b"r=%bx,s=AAAA,i=1000001" % OUR_NONCE,
        b"r=%bx,s=AAAA,i=9999999999" % OUR_NONCE,
        b"r=%bx,s=,i=4096" % OUR_NONCE,
        b"r=%bx,s=%b,i=4096" % (OUR_NONCE, base64.b64encode(bytes(257))),
    ],
)
def test_a_server_that_asks_for_the_wrong_thing_is_not_trusted(challenge: bytes) -> None:
    with pytest.raises(UntrustedServer):
        ScramClient("x", CLIENT_NONCE).respond(challenge)


@pytest.mark.parametrize(
    "challenge",
    [
        b"r=%b,s=AAAA,i=4096" % (OUR_NONCE + b"x" * 300),
        b"r=%b,s=AAAA,i=4096" % (OUR_NONCE + b"x" * 100_000),
        b"r=%bx,s=!,i=4096" % OUR_NONCE,
        b"r=%bx,s=AAAA,i=-1" % OUR_NONCE,
        b"r=%bx,s=AAAA,i=99999999999" % OUR_NONCE,
        b"r=%bx,s=AAAA" % OUR_NONCE,
        b"m=must,r=%bx,s=AAAA,i=1" % OUR_NONCE,
        b"e=other-error",
    ],
)
def test_a_malformed_challenge_is_refused(challenge: bytes) -> None:
    with pytest.raises(MalformedExchange):
        ScramClient("x", CLIENT_NONCE).respond(challenge)


def test_a_server_that_does_not_know_the_password_is_found_out() -> None:
    client, server = ScramClient("correct horse", CLIENT_NONCE), ScramServer(VERIFIER, SERVER_NONCE)
    client.respond(server.start(MECHANISM, client.first()))
    with pytest.raises(UntrustedServer, match="does not know"):
        client.verify(b"v=" + base64.b64encode(bytes(32)))
    assert not client.done


def test_an_outcome_without_a_challenge_is_not_believed() -> None:
    for outcome in (b"v=", b"v=" + base64.b64encode(bytes(32))):
        with pytest.raises(UntrustedServer):
            ScramClient("x", CLIENT_NONCE).verify(outcome)


def test_the_servers_own_words_are_not_repeated() -> None:
    with pytest.raises(UntrustedServer, match="invalid-proof"):
        ScramClient("x", CLIENT_NONCE).verify(b"e=invalid-proof")
    with pytest.raises(UntrustedServer) as caught:
        ScramClient("x", CLIENT_NONCE).verify(b"e=\x1b[2J rm -rf")
    assert "rm" not in str(caught.value)


def test_derived_keys_can_be_cached() -> None:
    keys = derive_keys("correct horse", SALT, 1)
    client = ScramClient("not used", CLIENT_NONCE, derive=lambda password, salt, iterations: keys)
    log_in(client, ScramServer(VERIFIER, SERVER_NONCE))
    assert client.done


def test_the_mechanism_is_chosen_from_what_is_offered() -> None:
    assert choose_mechanism(("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")).name == MECHANISM
    with pytest.raises(UntrustedServer, match="SCRAM-SHA-256"):
        choose_mechanism(("OAUTHBEARER",))
