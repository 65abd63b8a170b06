"""The key ring that seals the registry's secrets: AES-256-GCM with a random nonce.

A sealed secret is bound to its *context*, the identity of the row and column it belongs to: copied elsewhere it
cannot be opened.  Several keys may be on the ring; the first one seals, all of them open.

Form of a sealed secret: version (1 byte), length of the key's id (1 byte), id, nonce (12 bytes), ciphertext with
tag.  Version, id and context are the associated data.

Source: NIST SP 800-38D.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from registry.contract import Secret
from registry.errors import SecretError

KEYS_VARIABLE: Final = "PGTENANT_ENCRYPTION_KEYS"
FILE_SETTING: Final = "registry.encryption_keys_file"
KEY_SIZE: Final = 32
NONCE_SIZE: Final = 12
GENERATE: Final = "`pgtenant secrets generate-key` makes one"

_VERSION: Final = 1
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)


class KeyRing:
    """The keys of one deployment, in the order in which they were given; the first one seals.

    `random` returns that many random bytes.  Whoever has a ring has its keys of now: `take` changes them.
    """

    __slots__ = ("_held", "_random")

    def __init__(self, keys: Sequence[tuple[str, bytes]], *, random: Callable[[int], bytes] = os.urandom) -> None:
        if not keys:
            raise SecretError("the key ring is empty", GENERATE)
        ciphers: dict[str, AESGCM] = {}
        held: dict[str, bytes] = {}
        for key_id, key in keys:
            if _ID.fullmatch(key_id) is None:
                raise SecretError(
                    "a key's id must have 1 to 32 letters, digits, '-' or '_'",
                    f"{KEYS_VARIABLE} has the form id:base64,id:base64",
                )
            if len(key) != KEY_SIZE:
                raise SecretError(f"key {key_id!r} has {len(key)} bytes instead of {KEY_SIZE}", GENERATE)
            if key_id in ciphers:
                raise SecretError(f"there are two keys with the id {key_id!r}", "give each key an id of its own")
            ciphers[key_id] = AESGCM(key)
            held[key_id] = key
        # In one piece: a snapshot is sealed in a thread.
        self._held = _Held(keys[0][0], ciphers, held)
        self._random = random

    @classmethod
    def parse(cls, text: str, *, source: str = KEYS_VARIABLE, random: Callable[[int], bytes] = os.urandom) -> Self:
        """Read `id:base64,id:base64` out of `source`; raises SecretError, which repeats no key."""
        keys = []
        for number, part in enumerate((part.strip() for part in text.split(",")), start=1):
            key_id, colon, encoded = part.partition(":")
            if not colon:
                raise SecretError(f"key {number} of {source} has no id", f"the form is id:base64,id:base64; {GENERATE}")
            try:
                keys.append((key_id, base64.b64decode(encoded.encode("ascii"), validate=True)))
            except (binascii.Error, UnicodeEncodeError):
                raise SecretError(f"key {number} of {source} is not base64", GENERATE) from None
        return cls(keys, random=random)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """The ring in `PGTENANT_ENCRYPTION_KEYS`, or None where that is not set; raises SecretError for a bad one."""
        text = environment.get(KEYS_VARIABLE, "")
        return cls.parse(text) if text.strip() else None

    @property
    def first(self) -> str:
        """The id of the key that seals."""
        return self._held.first

    @property
    def heads(self) -> tuple[bytes, ...]:
        """What begins the secrets that each key has sealed."""
        return tuple(_head(key_id) for key_id in self._held.ciphers)

    def take(self, other: KeyRing) -> None:
        """Have the keys of another ring from now on."""
        self._held = other._held

    def is_same(self, other: KeyRing) -> bool:
        """Whether another ring has the same keys in the same order."""
        return list(self._held.keys.items()) == list(other._held.keys.items())

    def covers(self, other: KeyRing) -> bool:
        """Whether this ring opens whatever another one does."""
        return other._held.keys.items() <= self._held.keys.items()

    def joined(self, other: KeyRing) -> KeyRing:
        """A ring with another one's keys behind its own; raises SecretError for two keys with one id."""
        own = self._held.keys
        more = [(key_id, key) for key_id, key in other._held.keys.items() if own.get(key_id) != key]
        return KeyRing([*own.items(), *more], random=self._random)

    def seal(self, data: bytes, context: str) -> bytes:
        """Encrypt for this context; the result differs every time."""
        held = self._held
        head = _head(held.first)
        nonce = self._random(NONCE_SIZE)
        return head + nonce + held.ciphers[held.first].encrypt(nonce, data, head + context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """Decrypt what was sealed for this context.

        Raises SecretError: a key that is not on the ring, another context, or changed data.
        """
        key_id, head = _read_head(sealed)
        cipher = self._held.ciphers.get(key_id)
        if cipher is None:
            raise SecretError(
                f"the secret of {context} is sealed with key {key_id!r}, which is not on the key ring",
                f"add that key to {KEYS_VARIABLE} or the keys file, behind the first one",
            )
        nonce = sealed[len(head) : len(head) + NONCE_SIZE]
        try:
            return cipher.decrypt(nonce, sealed[len(head) + NONCE_SIZE :], head + context.encode())
        except (InvalidTag, ValueError):
            raise SecretError(
                f"the secret of {context} cannot be opened with key {key_id!r}",
                "another key under this id, or changed data: restore the key or set the secret anew",
            ) from None

    def is_current(self, sealed: bytes) -> bool:
        """Whether this is sealed with the first key."""
        return _read_head(sealed)[0] == self._held.first

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._held.ciphers)})"


@dataclass(frozen=True, slots=True)
class _Held:
    """Keys by their ids, and the id of the first one; the keys themselves only for comparing rings."""

    first: str
    ciphers: Mapping[str, AESGCM]
    keys: Mapping[str, bytes] = field(repr=False)


class Vault:
    """A key ring that may be missing: what needs one says so, what does not need one works without."""

    __slots__ = ("_ring",)

    def __init__(self, ring: KeyRing | None) -> None:
        self._ring = ring

    @property
    def is_open(self) -> bool:
        """Whether there is a key ring."""
        return self._ring is not None

    @property
    def ring(self) -> KeyRing:
        """The key ring; raises SecretError where there is none."""
        if self._ring is None:
            raise SecretError(
                f"this needs the registry's encryption keys, and {KEYS_VARIABLE} is not set",
                f"set {KEYS_VARIABLE}, or {FILE_SETTING} to a file with them, to the keys of this registry; "
                f"for a new registry {GENERATE}",
            )
        return self._ring

    def seal(self, secret: Secret | None, context: str) -> bytes | None:
        """Seal a password; None stays None."""
        return None if secret is None else self.ring.seal(secret.reveal().encode("utf-8", "surrogateescape"), context)

    def open(self, sealed: bytes | None, context: str) -> Secret | None:
        """Open a password; None stays None."""
        if sealed is None:
            return None
        return Secret(self.ring.open(sealed, context).decode("utf-8", "surrogateescape"))


def generate_key(key_id: str, *, random: Callable[[int], bytes] = os.urandom) -> str:
    """Make a new key in the form of `PGTENANT_ENCRYPTION_KEYS`; raises SecretError for a bad id."""
    key = random(KEY_SIZE)
    KeyRing([(key_id, key)])
    return f"{key_id}:{base64.b64encode(key).decode('ascii')}"


def _head(key_id: str) -> bytes:
    return bytes((_VERSION, len(key_id))) + key_id.encode("ascii")


def _read_head(sealed: bytes) -> tuple[str, bytes]:
    length = 2 + sealed[1] if len(sealed) > 2 else 0
    head = sealed[:length]
    key_id = head[2:].decode("ascii", "replace")
    if length == 0 or sealed[0] != _VERSION or len(sealed) < length + NONCE_SIZE or _ID.fullmatch(key_id) is None:
        raise SecretError("a sealed secret has a form that this program does not know", "restore it from a backup")
    return key_id, head
