"""Verifiers in PostgreSQL's text form, mock ones, cleartext and md5 checks, SASLprep."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import (
    DEFAULT_ITERATIONS,
    SALT_SIZE,
    ScramVerifier,
    VerifierError,
    build_verifier,
    md5_hash,
    md5_response,
    mock_verifier,
    verifiers,
    verify_cleartext,
    verify_md5,
)
from proxy.auth.saslprep import compose, prepare_password

SALT = bytes(range(16))


@given(st.integers(1, 1_000_000), st.binary(min_size=1, max_size=64), st.binary(min_size=64, max_size=64))
def test_verifiers_survive_the_round_trip(iterations: int, salt: bytes, keys: bytes) -> None:
    verifier = ScramVerifier(iterations, salt, keys[:32], keys[32:])
    assert ScramVerifier.parse(verifier.text()) == verifier


def test_a_verifier_is_what_the_rfc_says_of_the_password() -> None:
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", SALT, 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (SALT, stored, server)]
    assert build_verifier("pencil", SALT).text() == f"SCRAM-SHA-256$4096:{parts[0]}${parts[1]}:{parts[2]}"


GOOD = build_verifier("x", SALT, 1).text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "md5" + "0" * 32,
        GOOD + "\n",
        GOOD + " ",
        GOOD.replace("SHA-256", "SHA-1"),
        GOOD.replace("$1:", "$0:"),
        GOOD.replace("$1:", "$-1:"),
        GOOD.replace("$1:", "$1000001:"),
        GOOD.replace("$1:", "$99999999999:"),
        GOOD.replace("$1:", "$\u0661:"),
        GOOD[:-4],
        GOOD[:-1],
        GOOD.replace("=", "", 1),
        "SCRAM-SHA-256$1:" + "A" * 2000 + GOOD[GOOD.index("$", 20) :],
    ],
)
def test_what_is_no_verifier_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(VerifierError) as caught:
        ScramVerifier.parse(text)
    assert not text or text not in str(caught.value)


@given(st.text(max_size=120))
def test_any_text_is_a_verifier_or_refused(text: str) -> None:
    with pytest.raises(VerifierError):
        ScramVerifier.parse("SCRAM-SHA-256$" + text)


def test_a_verifier_shows_no_keys() -> None:
    assert repr(build_verifier("x", SALT, 1)) == "ScramVerifier(iterations=1, usable=True)"


def test_a_mock_verifier_is_stable_per_selector_and_looks_like_a_real_one() -> None:
    mock = mock_verifier(b"shared", b"app@acme")
    assert mock == mock_verifier(b"shared", b"app@acme")
    assert mock.salt != mock_verifier(b"shared", b"app@globex").salt
    assert mock.salt != mock_verifier(b"other", b"app@acme").salt
    assert (mock.iterations, len(mock.salt)) == (DEFAULT_ITERATIONS, SALT_SIZE)
    assert not mock.usable


def test_cleartext_passwords_are_checked_against_the_verifier() -> None:
    verifier = build_verifier("correct horse", SALT, 1)
    assert verify_cleartext(verifier, b"correct horse")
    assert not verify_cleartext(verifier, b"battery staple")


def test_a_cleartext_check_of_an_unknown_login_costs_the_same_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    derive = verifiers.derive_keys

    def counted(password: str | bytes, salt: bytes, iterations: int) -> verifiers.ScramKeys:
        asked.append(iterations)
        return derive(password, salt, iterations)

    monkeypatch.setattr(verifiers, "derive_keys", counted)
    assert not verify_cleartext(mock_verifier(b"shared", b"nobody"), b"x")
    assert not verify_cleartext(ScramVerifier.parse(build_verifier("y", SALT).text()), b"x")
    assert asked == [DEFAULT_ITERATIONS] * 3


def test_md5_answers_are_those_of_postgresql() -> None:
    stored = md5_hash("app", "secret")
    assert stored == "md5" + hashlib.md5(b"secretapp").hexdigest()
    answer = md5_response(stored, b"\1\2\3\4")
    assert answer == b"md5" + hashlib.md5(stored[3:].encode() + b"\1\2\3\4").hexdigest().encode()
    assert verify_md5(stored, b"\1\2\3\4", answer)
    assert not verify_md5(stored, b"\1\2\3\5", answer)
    assert not verify_md5(md5_hash("app", "other"), b"\1\2\3\4", answer)


@given(st.binary(max_size=50))
def test_md5_checks_take_any_answer(answer: bytes) -> None:
    assert not verify_md5(md5_hash("app", "secret"), b"salt", answer)


@pytest.mark.parametrize("stored", ["", "secret", "md5", "md5" + "G" * 32, "md5" + "0" * 33])
def test_what_is_no_md5_hash_is_refused(stored: str) -> None:
    with pytest.raises(VerifierError):
        md5_response(stored, b"salt")


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("plain", b"plain"),
        ("tab\tstays\x7f", b"tab\tstays\x7f"),
        ("", b""),
        ("I\u00adX", b"IX"),
        ("\u00aa", b"a"),
        ("\u2168", b"IX"),
        ("a\u00a0b", b"a b"),
        ("a\u200bb", b"a b"),
        ("\u00ad", "\u00ad".encode()),
        ("\u00e9\x07", "\u00e9\x07".encode()),
        ("\u0627\u0031", "\u0627\u0031".encode()),
        ("\u0627a\u0628", "\u0627a\u0628".encode()),
        ("\u0627\u0031\u0628", "\u0627\u0031\u0628".encode()),
        ("\ufb01\u0221", "\ufb01\u0221".encode()),
        (b"\xff\xfe", b"\xff\xfe"),
        ("\udcff", b"\xff"),
    ],
    ids=[
        "ASCII stays",
        "ASCII controls stay",
        "empty",
        "soft hyphen maps to nothing",
        "feminine ordinal normalizes",
        "roman nine normalizes",
        "no-break space",
        "zero-width space is a space",
        "mapped to nothing at all: raw",
        "control beside non-ASCII: raw",
        "right-to-left not to its end: raw",
        "mixed directions: raw",
        "right-to-left to its end",
        "unassigned in Unicode 3.2: raw",
        "no UTF-8: raw",
        "escaped bytes: raw",
    ],
)
def test_passwords_are_prepared_as_postgresql_does_it(password: str | bytes, prepared: bytes) -> None:
    assert prepare_password(password) == prepared


@given(st.binary(max_size=30))
def test_any_bytes_can_be_a_password(password: bytes) -> None:
    assert isinstance(prepare_password(password), bytes)


@given(st.text("a\u00e9\ufb01\u0315\u0316\u0345\u0e33\uac00\u1100\u1161\u11a8\u3099\u304b", min_size=1))
def test_combining_marks_are_composed_as_unicode_says(text: str) -> None:
    assert compose(text) == unicodedata.normalize("NFKC", text)


def test_a_long_run_of_combining_marks_takes_no_longer_than_other_characters() -> None:
    began = time.process_time()
    prepare_password("a" + "\u0315\u0316" * 16_000)
    assert time.process_time() - began < 0.6, "a second and more where each is put into its place one by one"
