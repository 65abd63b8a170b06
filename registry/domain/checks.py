"""Checks: what was looked at, how it was found, and what to do about it.  No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CheckStatus(StrEnum):
    """How something was found: WARNING leaves everything usable, FAILED does not."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `hint` is the next step, empty where there is none to take.  Holds no secret."""

    name: str
    status: CheckStatus
    text: str
    hint: str = ""


def ok(name: str, text: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, CheckStatus.OK, text)


def warning(name: str, text: str, hint: str) -> Check:
    """A check that found what should be known."""
    return Check(name, CheckStatus.WARNING, text, hint)


def failed(name: str, text: str, hint: str) -> Check:
    """A check that found what does not work."""
    return Check(name, CheckStatus.FAILED, text, hint)
