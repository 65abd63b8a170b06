"""Time limits of sessions: what a sweep sees of one, and what is due then.

There is no timer per query.  A few times a second a sweep looks at the sessions that hold a backend (and at some of
the others), notes what each is doing, and asks `plan_limit` whether it has been doing that for too long.  Two looks see
the same request, or the same transaction, where its number is the same.  A limit counts from the first look that sees
what it limits: so it is never kept too early, and late by two sweeps at most.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

# What a session is doing.
RESTING: Final = 0
"""Between transactions."""
RUNNING: Final = 1
"""The server owes an answer."""
PAUSED: Final = 2
"""Within a transaction, or holding a backend otherwise, and the server waits for the client."""

# What is due.
WITHIN: Final = 0
CANCEL_QUERY: Final = 1
END_QUERY: Final = 2
"""The request was to be cancelled, and the server has not ended it: the session ends."""
END_TRANSACTION: Final = 3
END_IDLE_TRANSACTION: Final = 4
END_IDLE_CLIENT: Final = 5

CANCEL_GRACE: Final = 3.0
"""Seconds that a server has to end a request which it was asked to cancel."""


class TimeLimits:
    """The limits of one pool's sessions in seconds; 0 is no limit."""

    def __init__(
        self,
        query: float = 0.0,
        transaction: float = 0.0,
        idle_transaction: float = 0.0,
        client_idle: float = 0.0,
    ) -> None:
        self.query: float = query
        self.transaction: float = transaction
        self.idle_transaction: float = idle_transaction
        self.client_idle: float = client_idle

    def limit_backends(self) -> bool:
        """Say whether any of them concerns sessions that hold a backend."""
        return self.query > 0.0 or self.transaction > 0.0 or self.idle_transaction > 0.0


class Watch:
    """What the sweeps have seen of one session; `owner` is the client, which the net room compares."""

    def __init__(self, owner: object, now: float) -> None:
        self.owner: object = owner
        self.doing: int = RESTING
        self.request: i64 = -1
        self.transaction: i64 = -1
        self.doing_since: float = now
        self.transaction_since: float = now
        self.cancelled_at: float = 0.0
        self.cancel_sent: bool = False

    def look(self, doing: int, request: i64, transaction: i64, now: float) -> None:
        """Take note of what the session is doing now.

        `request` is another number after every answered request, `transaction` after every end of a transaction.
        """
        if doing != self.doing or request != self.request or transaction != self.transaction:
            self.doing_since = now
            self.cancelled_at = 0.0
            self.cancel_sent = False
        if self.doing == RESTING or transaction != self.transaction:
            self.transaction_since = now
        self.doing = doing
        self.request = request
        self.transaction = transaction


def plan_limit(watch: Watch, limits: TimeLimits, now: float) -> int:
    """Say which limit is over for a session, as it was last seen; WITHIN if none is."""
    lasted = now - watch.doing_since
    if watch.doing == RESTING:
        return END_IDLE_CLIENT if 0.0 < limits.client_idle <= lasted else WITHIN
    if 0.0 < limits.transaction <= now - watch.transaction_since:
        return END_TRANSACTION
    if watch.doing == PAUSED:
        return END_IDLE_TRANSACTION if 0.0 < limits.idle_transaction <= lasted else WITHIN
    if watch.cancelled_at > 0.0:
        return END_QUERY if now - watch.cancelled_at >= CANCEL_GRACE else WITHIN
    return CANCEL_QUERY if 0.0 < limits.query <= lasted else WITHIN
