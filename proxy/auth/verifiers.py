"""SCRAM-SHA-256 verifiers: what is stored instead of a password.

The text form is PostgreSQL's, `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, so that a verifier can
be taken from `pg_authid` and given to `ALTER ROLE`.

Source: RFC 5802 section 3; PostgreSQL documentation, `pg_authid`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field, replace
from typing import Final, Self

from proxy.auth.errors import VerifierError
from proxy.auth.saslprep import prepare_password

KEY_SIZE: Final = 32
SALT_SIZE: Final = 16
DEFAULT_ITERATIONS: Final = 4096

# Bounds on what a verifier or a server may ask for.  A million iterations take some 0.3 s of processor time.
MAX_ITERATIONS: Final = 1_000_000
MAX_SALT_SIZE: Final = 256
_MAX_TEXT_SIZE: Final = 1024

_TEXT: Final = r"SCRAM-SHA-256\$([0-9]{1,10}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)"


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a password becomes under one salt and count: enough to log in as its owner, so as secret as it."""

    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """Enough to check a password's proof, and not enough to make one.

    One that is not `usable` stands in for a login that does not exist: it is worked through like any other, and
    fails at the end.
    """

    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    usable: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= MAX_ITERATIONS:
            raise VerifierError(f"a SCRAM verifier's iterations must be 1 to {MAX_ITERATIONS:,}")
        if not 1 <= len(self.salt) <= MAX_SALT_SIZE:
            raise VerifierError(f"a SCRAM verifier's salt must have 1 to {MAX_SALT_SIZE} bytes")
        if len(self.stored_key) != KEY_SIZE or len(self.server_key) != KEY_SIZE:
            raise VerifierError(f"a SCRAM verifier's keys must have {KEY_SIZE} bytes")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form; raises VerifierError, which does not repeat the text."""
        match = re.fullmatch(_TEXT, text, re.ASCII) if len(text) <= _MAX_TEXT_SIZE else None
        if match is None:
            raise VerifierError("not a SCRAM-SHA-256 verifier; PostgreSQL keeps such ones in pg_authid.rolpassword")
        try:
            salt, stored_key, server_key = (decode_base64(part) for part in match.groups()[1:])
        except ValueError:
            raise VerifierError("a SCRAM verifier's salt or keys are not base64") from None
        return cls(int(match[1]), salt, stored_key, server_key)

    def disabled(self) -> Self:
        """The same challenge, which no password answers."""
        return replace(self, stored_key=bytes(KEY_SIZE), server_key=bytes(KEY_SIZE), usable=False)

    def text(self) -> str:
        """Write the text form: a secret, though a lesser one than the password."""
        salt, stored, server = map(encode_base64, (self.salt, self.stored_key, self.server_key))
        return f"SCRAM-SHA-256${self.iterations}:{salt}${stored}:{server}"


def derive_keys(password: str | bytes, salt: bytes, iterations: int) -> ScramKeys:
    """Turn a password into keys; takes about 1 ms of processor time for 4,096 iterations.

    Worth caching by (password, salt, iterations) where many backends log in with the same one.
    """
    salted = hashlib.pbkdf2_hmac("sha256", prepare_password(password), salt, iterations)
    return ScramKeys(hmac.digest(salted, b"Client Key", "sha256"), hmac.digest(salted, b"Server Key", "sha256"))


def build_verifier(password: str | bytes, salt: bytes, iterations: int = DEFAULT_ITERATIONS) -> ScramVerifier:
    """Make the verifier of a password; `salt` must be `SALT_SIZE` fresh random bytes."""
    keys = derive_keys(password, salt, iterations)
    return ScramVerifier(iterations, salt, hashlib.sha256(keys.client_key).digest(), keys.server_key)


def mock_verifier(secret: bytes, selector: bytes) -> ScramVerifier:
    """Make the verifier of a login that does not exist.

    The same `selector` (how the client spelled user and tenant) has the same salt on every node and after
    restarts, as a real login has; without `secret`, which all nodes share, it cannot be told from a real one.
    """
    salt = hmac.digest(secret, selector, "sha256")[:SALT_SIZE]
    return ScramVerifier(DEFAULT_ITERATIONS, salt, bytes(KEY_SIZE), bytes(KEY_SIZE), usable=False)


def verify_cleartext(verifier: ScramVerifier, password: str | bytes) -> bool:
    """Check a password that came as it is; costs as much as `derive_keys`, for an unusable verifier too."""
    keys = derive_keys(password, verifier.salt, verifier.iterations)
    fits = hmac.compare_digest(keys.server_key, verifier.server_key)
    return fits and verifier.usable


def encode_base64(data: bytes) -> str:
    """Encode with padding and without line breaks."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str | bytes) -> bytes:
    """Decode strict base64; raises ValueError for anything else, as PostgreSQL does."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise ValueError("not base64") from None
