"""Reads the mailbox: everything that code inside `select()` has left for the coroutine side to do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from proxy.errors import Failure
from proxy.net.client_link import ClientLink
from proxy.net.dialer import Dialer
from proxy.net.front_door import FrontDoor
from proxy.net.hub import (
    MAIL_BACKEND_GONE,
    MAIL_CANCEL,
    MAIL_CLIENT_GONE,
    MAIL_CLOSED,
    MAIL_ERROR,
    MAIL_OPEN,
    MAIL_PINNED,
    MAIL_PROBED,
    MAIL_REFUSED,
    MAIL_ROLES_CHANGED,
    MAIL_SEATED,
    MAIL_STATUS_CHANGED,
    Hub,
    Mail,
)
from proxy.net.pipe_link import Seat
from proxy.net.probe import Probe
from proxy.net.relay_loop import mailbox_pipe
from proxy.net.sessions import ClientInfo
from proxy.net.statuses import StatusCache
from proxy.pool.ledger import BackendEntry

log = structlog.get_logger(__name__)


class Mailroom:
    """Hands each piece of mail to whom it concerns, first thing in every turn of the loop.

    `open` registers with the running loop, `close` undoes that.  `spawn` starts a task that the node owns;
    `roles_changed` is told the ids of servers whose roles a client has changed.
    """

    def __init__(
        self,
        hub: Hub,
        dialer: Dialer,
        door: FrontDoor,
        statuses: StatusCache,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        roles_changed: Callable[[int], None],
    ) -> None:
        self._hub = hub
        self._dialer = dialer
        self._door = door
        self._statuses = statuses
        self._spawn = spawn
        self._roles_changed = roles_changed
        self._pipe: tuple[int, int] | None = None

    def open(self) -> None:
        """Begin to read mail."""
        self._pipe = mailbox_pipe()
        asyncio.get_running_loop().add_reader(self._pipe[0], self.read)
        self._hub.selector.watch_mailbox(self._pipe[0])

    def close(self) -> None:
        """Read what is left, and stop."""
        if self._pipe is None:
            return
        self.read()
        asyncio.get_running_loop().remove_reader(self._pipe[0])
        self._hub.selector.watch_mailbox(-1)
        for end in self._pipe:
            os.close(end)
        self._pipe = None

    def read(self) -> None:
        """Read all mail that there is, and what comes while doing so."""
        selector = self._hub.selector
        while selector.mailbox:
            box = selector.mailbox
            selector.mailbox = []
            for mail in box:
                if isinstance(mail, Mail):
                    try:
                        self._deliver(mail)
                    except Exception:
                        log.exception("a piece of mail could not be dealt with", kind=mail.kind)
                else:
                    log.error("the relay could not contain an error", error=repr(mail))

    def _deliver(self, mail: Mail) -> None:
        subject = mail.subject
        if mail.kind == MAIL_OPEN:
            assert isinstance(subject, BackendEntry)
            self._spawn(self._dialer.open(subject))
        elif mail.kind == MAIL_CANCEL:
            assert isinstance(subject, BackendEntry)
            self._dialer.cancel_closing(subject)
        elif mail.kind == MAIL_CLIENT_GONE:
            assert isinstance(subject, ClientLink)
            self._door.client_gone(subject, mail.text)
        elif mail.kind in (MAIL_PROBED, MAIL_SEATED):
            assert isinstance(subject, Probe | Seat)
            future = subject.future
            if isinstance(future, asyncio.Future) and not future.done():
                future.set_result(None)
        elif mail.kind == MAIL_STATUS_CHANGED:
            assert isinstance(subject, BackendEntry)
            self._statuses.forget(subject.pool)
        elif mail.kind == MAIL_ROLES_CHANGED:
            assert isinstance(subject, BackendEntry)
            self._roles_changed(subject.server.server_id)
        elif mail.kind == MAIL_PINNED:
            assert isinstance(subject, ClientLink)
            self._door.client_pinned(subject, mail.text)
        elif mail.kind == MAIL_REFUSED:
            assert isinstance(subject, tuple)
            _tell_refused(*subject)
        elif mail.kind == MAIL_ERROR:
            log.error("internal error contained", traceback=mail.text)
        elif mail.kind in (MAIL_BACKEND_GONE, MAIL_CLOSED):
            assert isinstance(subject, BackendEntry)
            self._backend_gone(subject, mail)

    def _backend_gone(self, entry: BackendEntry, mail: Mail) -> None:
        self._dialer.gone(entry)
        lost = mail.kind == MAIL_BACKEND_GONE
        say = log.warning if lost else log.debug
        say(
            "backend lost" if lost else "backend closed",
            tenant=entry.pool.tenant.slug,
            server=entry.server.name,
            role=entry.pool.role,
            reason=entry.close_reason,
        )


def _tell_refused(client: ClientLink, failure: Failure) -> None:
    """Say that a client that stays was told that there is no backend for its request."""
    info = client.info
    assert isinstance(info, ClientInfo)
    log.warning(
        "request refused",
        tenant=client.pool.tenant.slug,
        user=info.user,
        address=info.address,
        error=failure.spec.name,
        reason=failure.message,
    )
