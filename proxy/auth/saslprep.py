"""Passwords as SCRAM hashes them: SASLprep, and the raw bytes where that is impossible, as PostgreSQL does it.

Source: RFC 4013, RFC 3454, and PostgreSQL's `pg_saslprep`.
"""

from __future__ import annotations

import itertools
import stringprep
import unicodedata


def prepare_password(password: str | bytes) -> bytes:
    """Give the bytes that are hashed for a password.

    ASCII stays as it is, control characters too.  Bytes that are no UTF-8 and text that SASLprep prohibits are
    used raw: the server cannot know the client's encoding, so it does not refuse either.
    """
    raw = password if isinstance(password, bytes) else password.encode("utf-8", "surrogateescape")
    if raw.isascii():
        return raw
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in text
        if not stringprep.in_table_b1(character) or stringprep.in_table_c12(character)
    )
    # PostgreSQL looks for prohibited characters before normalizing, where RFC 3454 does it afterwards.
    if not mapped or any(map(_is_prohibited, mapped)) or not _is_bidi_sound(mapped):
        return raw
    return compose(mapped).encode("utf-8")


def compose(text: str) -> str:
    """Apply NFKC, in a time that does not grow with the square of the number of combining marks in a row.

    Python puts marks into their order one by one: those of a password of 64 kB take it a second, holding up all else.
    """
    decomposed = "".join(unicodedata.normalize("NFKD", character) for character in text)
    runs = itertools.groupby(decomposed, key=lambda character: unicodedata.combining(character) != 0)
    ordered = (sorted(run, key=unicodedata.combining) if marks else run for marks, run in runs)
    return unicodedata.normalize("NFC", "".join(itertools.chain.from_iterable(ordered)))


def _is_prohibited(character: str) -> bool:
    return (
        stringprep.in_table_a1(character)
        or stringprep.in_table_c12(character)
        or stringprep.in_table_c21_c22(character)
        or stringprep.in_table_c3(character)
        or stringprep.in_table_c4(character)
        or stringprep.in_table_c5(character)
        or stringprep.in_table_c6(character)
        or stringprep.in_table_c7(character)
        or stringprep.in_table_c8(character)
        or stringprep.in_table_c9(character)
    )


def _is_bidi_sound(text: str) -> bool:
    if not any(map(stringprep.in_table_d1, text)):
        return True
    if any(map(stringprep.in_table_d2, text)):
        return False
    return stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
