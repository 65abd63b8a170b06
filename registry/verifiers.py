"""Verifiers: what the registry keeps instead of a login's password.

The text form is PostgreSQL's own, so that a verifier can be taken from `pg_authid`.

Source: RFC 5802 section 3; RFC 4013; PostgreSQL documentation, `pg_authid`; PostgreSQL's `saslprep.c`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import stringprep
import unicodedata
from typing import Final

from registry.errors import Invalid

ITERATIONS: Final = 4096
SALT_SIZE: Final = 16

# The same bounds as where verifiers are used: a million iterations take some 0.3 s of processor time.
MAX_ITERATIONS: Final = 1_000_000
MAX_SALT_SIZE: Final = 256
MAX_TEXT_SIZE: Final = 1024
MAX_PASSWORD_BYTES: Final = 65_530
"""The longest that PostgreSQL takes, in a message of 65,535 bytes with its length and a zero byte."""

_TEXT: Final = re.compile(
    r"SCRAM-SHA-256\$([0-9]{1,10}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)", re.ASCII
)
_PROHIBITED: Final = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def build_verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Make the verifier of a password; `salt` must be `SALT_SIZE` fresh random bytes.  Takes about 1 ms."""
    salted = hashlib.pbkdf2_hmac("sha256", prepare_password(password), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_encode(salt)}${_encode(stored_key)}:{_encode(server_key)}"


def check_verifier(text: str) -> str:
    """Return a verifier that is well formed; raises Invalid, which does not repeat it."""
    _parse(text)
    return text


def fits(password: str, verifier: str) -> bool:
    """Whether the verifier is that of the password; raises Invalid for a malformed verifier."""
    iterations, salt = _parse(verifier)
    return hmac.compare_digest(build_verifier(password, salt, iterations), verifier)


def md5_hash(password: str, spelling: str) -> str:
    """Make what md5 authentication checks for one spelling of the user name: as good as the password."""
    raw = password.encode("utf-8", "surrogateescape") + spelling.encode("utf-8", "surrogateescape")
    return "md5" + hashlib.md5(raw, usedforsecurity=False).hexdigest()


def check_password(password: str) -> str:
    """Return a password that PostgreSQL's protocol can carry; raises Invalid, which does not repeat it."""
    if not password:
        raise Invalid("password", "the password is empty", "give one, or leave it out to have one generated")
    if "\0" in password or len(password.encode("utf-8", "surrogateescape")) > MAX_PASSWORD_BYTES:
        raise Invalid(
            "password", f"a password has at most {MAX_PASSWORD_BYTES} bytes and no zero byte", "choose another"
        )
    return password


def prepare_password(password: str) -> bytes:
    """Apply SASLprep; a password that it does not allow is used as it is, as PostgreSQL does."""
    raw = password.encode("utf-8", "surrogateescape")
    if raw.isascii():
        return raw
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char
        for char in text
        if not stringprep.in_table_b1(char) or stringprep.in_table_c12(char)
    )
    # PostgreSQL looks for prohibited characters before it normalizes, RFC 3454 afterwards.
    if not mapped or any(rule(char) for char in mapped for rule in _PROHIBITED) or not _bidi_sound(mapped):
        return raw
    return unicodedata.normalize("NFKC", mapped).encode("utf-8")


def _bidi_sound(text: str) -> bool:
    if not any(map(stringprep.in_table_d1, text)):
        return True
    if any(map(stringprep.in_table_d2, text)):
        return False
    return stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])


_COPY: Final = "copy it as it stands in pg_authid.rolpassword"


def _parse(text: str) -> tuple[int, bytes]:
    match = _TEXT.fullmatch(text) if len(text) <= MAX_TEXT_SIZE else None
    if match is None:
        raise Invalid(
            "verifier",
            "this is no SCRAM-SHA-256 verifier",
            "its form is SCRAM-SHA-256$4096:salt$StoredKey:ServerKey; PostgreSQL keeps them in pg_authid.rolpassword",
        )
    try:
        salt, *keys = (binascii.a2b_base64(part, strict_mode=True) for part in match.groups()[1:])
    except binascii.Error:
        raise Invalid("verifier", "the verifier's salt or keys are not base64", _COPY) from None
    iterations = int(match[1])
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise Invalid("verifier", f"a verifier's iterations must be 1 to {MAX_ITERATIONS:,}", _COPY)
    if not 1 <= len(salt) <= MAX_SALT_SIZE or any(len(key) != 32 for key in keys):
        raise Invalid("verifier", "the verifier's salt or keys have a wrong length", _COPY)
    return iterations, salt


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
