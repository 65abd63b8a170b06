"""md5 authentication: weak, and only for logins and servers that still need it.

The stored hash is as good as the password to whoever holds it.

Source: PostgreSQL documentation, "Protocol Flow", AuthenticationMD5Password.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from proxy.auth.errors import VerifierError

SALT_SIZE: Final = 4


def md5_hash(user: str, password: str | bytes) -> str:
    """Make the stored form, `md5` and 32 hexadecimal digits; it holds for this spelling of the user name only."""
    raw = password if isinstance(password, bytes) else password.encode("utf-8", "surrogateescape")
    return "md5" + _hex(raw + user.encode("utf-8", "surrogateescape"))


def md5_response(stored: str, salt: bytes) -> bytes:
    """Answer an AuthenticationMD5Password; raises VerifierError when `stored` is not of `md5_hash`'s form."""
    if re.fullmatch("md5[0-9a-f]{32}", stored, re.ASCII) is None:
        raise VerifierError("not an md5 password hash")
    return b"md5" + _hex(stored[3:].encode("ascii") + salt).encode("ascii")


def verify_md5(stored: str, salt: bytes, response: bytes) -> bool:
    """Check a PasswordMessage against the stored form and the 4 random bytes that were sent as salt."""
    return hmac.compare_digest(md5_response(stored, salt), response)


def _hex(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
