"""The log: structured events, for people or for machines, on standard error.

Secrets never reach a log call; the redaction here is a second net, by the names of fields and by what passwords in
URLs and verifiers look like.  Events that strangers can
cause as often as they like are limited to a number per second; what was left out is counted in the next one.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, TextIO

import structlog

SECRET_WORDS: Final = ("password", "secret", "token", "verifier", "key")
SECRET_TEXTS: Final = re.compile(
    r"""(?P<url>://[^\s:/@'"]*:)[^\s/'"]*@ | (?P<scram>SCRAM-SHA-256\$)[^\s'"]+ | \b(?P<md5>md5)[0-9a-f]{32}\b""",
    re.VERBOSE,
)
LIMITED_EVENTS: Final = frozenset(
    {
        "client refused",
        "client connected",
        "client disconnected",
        "client pinned",
        "request refused",
        "login slowed",
        "login refused unseen, too many wait",
        "the tenant's clients may not come from this address",
        "request cancelled",
        "cancel request with an unknown key",
        "cancel request could not be sent",
        "cancel request not confirmed",
        "backend lost",
        "TLS with a client failed",
        "error ignored",
    }
)
EVENTS_PER_SECOND: Final = 100

EventDict = MutableMapping[str, Any]


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Blank the values of fields whose names sound like secrets."""
    for name in event:
        if any(word in name.lower() for word in SECRET_WORDS):
            event[name] = "********"
    return event


def mask(text: str) -> str:
    """Blank what looks like a secret in a line that is about to be written, tracebacks included."""
    return SECRET_TEXTS.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    kept = match["url"] or match["scram"] or match["md5"]
    return f"{kept}********{'@' if match['url'] else ''}"


class Limiter:
    """Drops events of one kind beyond `most` in a second, and tells with the next one how many that were."""

    def __init__(self, most: int = EVENTS_PER_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        name = str(event.get("event"))
        if name not in LIMITED_EVENTS:
            return event
        now = self._clock()
        start, count = self._windows.get(name, (now, 0))
        if now - start >= 1.0:
            suppressed = count - self._most
            if suppressed > 0:
                event["suppressed"] = suppressed
            start, count = now, 0
        self._windows[name] = (start, count + 1)
        if count >= self._most:
            raise structlog.DropEvent
        return event


def configure_logs(*, style: str, level: str, stream: TextIO | None = None) -> None:
    """Set up the process's log: `style` is console or json, `level` the least that is written."""
    out = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    renderer: Any
    if style == "json":
        renderer = structlog.processors.JSONRenderer()
        last = [structlog.processors.format_exc_info, renderer]
    else:
        # The default prints the local variables of each frame, and those may be passwords.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)
        last = [renderer]
    last.append(lambda _logger, _method, line: mask(line))
    structlog.configure(
        processors=[Limiter(), *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.INFO))
    # What it says at every start is about itself.
    logging.getLogger("alembic").setLevel(logging.WARNING)


@contextmanager
def ignored_errors_in_the_log() -> Iterator[None]:
    """Log in a line each what Python has no caller to raise it to, and would print with a traceback.

    Strangers can cause some: a host name (SNI) that is no text, for example.
    """

    def note(ignored: sys.UnraisableHookArgs) -> None:
        error = ignored.exc_value
        structlog.get_logger(__name__).warning("error ignored", error=type(error).__name__, reason=str(error))

    before, sys.unraisablehook = sys.unraisablehook, note
    try:
        yield
    finally:
        sys.unraisablehook = before
