"""File descriptors: how many this process may have, and how they are shared out before they run out.

Every connection takes one.  Where there are too few for what the settings allow, clients are refused while there are
still some for HTTP, the console and backends: else one stranger could take the last one, and with it all of those.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger(__name__)

RESERVE: Final = 128
"""For what is counted nowhere: listening sockets, the registry, verifiers that servers are asked for, cancel requests,
files."""

UNLIMITED: Final = 1 << 30
BACKENDS_PART: Final = 3
"""Where descriptors are few, backends get a third of them at most, as clients share backends."""
LOGINS_PART: Final = 4
"""Of the others a quarter is for logins under way: clients stay, and would leave none for those who come."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How many there may be at once of each; `aside` is for HTTP and the console."""

    clients: int
    logins: int
    queued: int
    backends: int
    aside: int

    @property
    def total(self) -> int:
        """The descriptors that all of it may take together."""
        return self.clients + self.logins + self.queued + self.backends + self.aside + RESERVE


def raise_limit() -> int:
    """Raise this process's soft limit of descriptors to its hard one; returns what is in force then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return current_limit()


def current_limit() -> int:
    """How many descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, UNLIMITED)


def share_out(limit: int, wanted: Shares) -> Shares:
    """What there may be of each with `limit` descriptors: what is wanted where that fits, else less.

    The queue gives way first: it is only for those who may wait elsewhere.
    """
    if wanted.total <= limit:
        return wanted
    rest = max(limit - RESERVE - wanted.aside, BACKENDS_PART * LOGINS_PART)
    backends = min(wanted.backends, rest // BACKENDS_PART)
    rest -= backends
    clients = min(wanted.clients, rest - min(wanted.logins, rest // LOGINS_PART))
    rest -= clients
    queued = min(wanted.queued, max(rest - wanted.logins, rest // LOGINS_PART))
    logins = min(wanted.logins, rest - queued)
    return Shares(clients, logins, queued, backends, wanted.aside)


def shortfall(wanted: Shares, got: Shares) -> str:
    """What does not fit, by the names of the settings; empty where all of it does."""
    pairs = {
        "listen.max_clients": (wanted.clients, got.clients),
        "listen.max_logins": (wanted.logins, got.logins),
        "pool.max_backends": (wanted.backends, got.backends),
    }
    return ", ".join(f"{has} of {name} = {wants}" for name, (wants, has) in pairs.items() if has < wants)


def say_shortfall(what: str, limit: int, wanted: Shares) -> None:
    """Tell the log what does not fit, and how many descriptors it would take."""
    log.warning(
        "too few file descriptors for the settings",
        limit=limit,
        needed=wanted.total,
        enough_for=what,
        hint="raise the hard limit of open files (systemd: LimitNOFILE=), or lower these settings",
    )
