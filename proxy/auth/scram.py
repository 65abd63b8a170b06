"""What both halves of SCRAM-SHA-256 share: names, limits, attributes.

Source: RFC 5802 sections 5 and 7, RFC 7677; PostgreSQL documentation, "SASL Authentication".
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from proxy.auth.errors import MalformedExchange
from proxy.auth.verifiers import decode_base64

MECHANISM: Final = "SCRAM-SHA-256"
MECHANISM_PLUS: Final = "SCRAM-SHA-256-PLUS"

# The random bytes that a half wants for its part of the nonce; PostgreSQL's own choice.
NONCE_SIZE: Final = 18

# The longest nonce taken from a peer, and the longest message.
MAX_NONCE_SIZE: Final = 256
MAX_MESSAGE_SIZE: Final = 1024


class Attributes:
    """Takes `x=value` attributes off the front of a SCRAM message, in the prescribed order.

    Every method raises MalformedExchange where the message is not of that form; the constructor does for one that
    is longer than `MAX_MESSAGE_SIZE` bytes or holds a zero byte.
    """

    __slots__ = ("_message", "_pos")

    def __init__(self, message: bytes, start: int = 0) -> None:
        if len(message) > MAX_MESSAGE_SIZE:
            raise MalformedExchange("SCRAM message is too long")
        if b"\0" in message:
            raise MalformedExchange("SCRAM message holds a zero byte")
        self._message = message
        self._pos = start

    @property
    def position(self) -> int:
        """Where the next attribute begins, or one past the end of the message when there is none."""
        return self._pos

    def next(self) -> tuple[bytes, bytes] | None:
        """Take the next attribute as (name, value); None at the end."""
        if self._pos > len(self._message):
            return None
        end = self._message.find(b",", self._pos)
        if end < 0:
            end = len(self._message)
        part = self._message[self._pos : end]
        self._pos = end + 1
        if len(part) < 2 or part[1:2] != b"=" or not part[:1].isalpha():
            raise MalformedExchange("SCRAM message has a malformed attribute")
        return part[:1], part[2:]

    def expect(self, name: bytes) -> bytes:
        """Take the next attribute, which must have this name."""
        attribute = self.next()
        if attribute is not None and attribute[0] == b"m":
            raise MalformedExchange("SCRAM message requires an unknown extension")
        if attribute is None or attribute[0] != name:
            raise MalformedExchange(f"SCRAM message lacks attribute {name.decode()}")
        return attribute[1]

    def expect_nonce(self) -> bytes:
        nonce = self.expect(b"r")
        if not 0 < len(nonce) <= MAX_NONCE_SIZE:
            raise MalformedExchange("SCRAM nonce is empty or too long")
        if not all(0x21 <= character <= 0x7E for character in nonce):
            raise MalformedExchange("SCRAM nonce is not printable")
        return nonce

    def expect_base64(self, name: bytes) -> bytes:
        try:
            return decode_base64(self.expect(name))
        except ValueError:
            raise MalformedExchange(f"SCRAM attribute {name.decode()} is not base64") from None

    def skip_extensions(self) -> None:
        """Read optional extensions up to the end of the message."""
        while self.next() is not None:
            pass


def sign(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA-256."""
    return hmac.digest(key, message, "sha256")


def digest(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def xor(left: bytes, right: bytes) -> bytes:
    """Exclusive or of two byte strings of the same length."""
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")
