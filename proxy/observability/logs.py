"""The log: structured events, for people or for machines, on standard error.

Secrets never reach a log call; the redaction here is a second net, by the names of fields and by what passwords in
URLs and verifiers look like.  Names and messages come from strangers: what does not print is spelled out here, for all
lines.  Events that clients can cause as often as they like are limited to a number per second (`log.lines_per_second`);
what was left out is counted and told.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
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
        "a role cannot log in through the proxy",
        "a login cannot be used",
        "a server refuses to tell verifiers",
        "a server cannot be asked for verifiers",
        "request cancelled",
        "cancel request with an unknown key",
        "cancel request could not be sent",
        "cancel request not confirmed",
        "backend lost",
        "TLS with a client failed",
        "error ignored",
    }
)
MAX_SHOWN: Final = 1_000
"""Characters of a field that are written; a stranger's user name may have ten thousand."""
MAX_TRACEBACK: Final = 50_000
"""The same of a traceback."""

EventDict = MutableMapping[str, Any]

log = structlog.get_logger(__name__)


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Blank the values of fields whose names sound like secrets."""
    for name in event:
        if any(word in name.lower() for word in SECRET_WORDS):
            event[name] = "********"
    return event


def printable(text: str) -> str:
    """Spell out what does not print: line ends, terminal sequences, marks of direction, halves of surrogate pairs."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def clean(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Make whatever strangers, servers and libraries have put into an event fit for a line and a terminal.

    A traceback keeps its lines, set in, so that none of them looks like an event.
    """
    exception = event.pop("exception", None)
    for name in event:
        event[name] = _cleaned(event[name])
    if exception is not None:
        lines = str(exception)[:MAX_TRACEBACK].split("\n")
        event["exception"] = "\n".join(f"  {printable(line)}" for line in lines)
    return event


def _cleaned(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(one) for one in value]
    if isinstance(value, dict):
        return {printable(str(name)): _cleaned(one) for name, one in value.items()}
    text = value if isinstance(value, str) else repr(value)
    return printable(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def mask(text: str) -> str:
    """Blank what looks like a secret in a line that is about to be written, tracebacks included."""
    return SECRET_TEXTS.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    kept = match["url"] or match["scram"] or match["md5"]
    return f"{kept}********{'@' if match['url'] else ''}"


@dataclass(slots=True)
class _Second:
    """What was logged of one event since `start`."""

    start: float
    written: int = 0
    left_out: int = 0


class Limiter:
    """Leaves out events of one kind beyond `most` in a second; 0: none is left out.

    How many that were, the next one tells as `suppressed`, or `tell` where none comes.  `left_out` counts them all.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.left_out: dict[str, int] = {}
        self._clock = clock
        self._seconds: dict[str, _Second] = {}

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        name = str(event.get("event"))
        if name not in LIMITED_EVENTS:
            return event
        now = self._clock()
        second = self._seconds.get(name)
        if second is None or now - second.start >= 1.0:
            if second is not None and second.left_out:
                event["suppressed"] = second.left_out
            second = self._seconds[name] = _Second(now)
        if self.most and second.written >= self.most:
            second.left_out += 1
            self.left_out[name] = self.left_out.get(name, 0) + 1
            raise structlog.DropEvent
        second.written += 1
        return event

    def tell(self) -> None:
        """Log how many were left out in seconds that are over and that no line has told of."""
        now = self._clock()
        for name, second in self._seconds.items():
            if second.left_out and now - second.start >= 1.0:
                log.warning("log lines left out", of=name, lines=second.left_out, bound=self.most)
                second.left_out = 0


def configure_logs(*, style: str, level: str, limiter: Limiter, stream: TextIO | None = None) -> None:
    """Set up the process's log: `style` is console or json, `level` the least that is written.

    It may be called again while the program runs.
    """
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
    else:
        # The default prints the local variables of each frame, and those may be passwords.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)
    last = [structlog.processors.format_exc_info, clean, renderer, lambda _logger, _method, line: mask(line)]
    structlog.configure(
        processors=[limiter, *shared, *last],
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
        log.warning("error ignored", error=type(error).__name__, reason=str(error))

    before, sys.unraisablehook = sys.unraisablehook, note
    try:
        yield
    finally:
        sys.unraisablehook = before
