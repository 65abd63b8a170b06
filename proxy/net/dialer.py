"""Opens backends and sends cancel requests: the coroutine side of what the driver plans."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.auth import ClientKey, ClientKeys
from proxy.net.backend_handshake import BackendOpenFailed, ReadyBackend, open_backend
from proxy.net.backend_link import BackendLink, link_of
from proxy.net.cancel import CancelUncertain, send_cancel
from proxy.net.host_names import HostNames
from proxy.net.hub import KEY_REFUSED, KEY_REFUSED_STATE, Hub
from proxy.net.pipe_link import PipeBackend
from proxy.net.scram_keys import ScramKeyCache
from proxy.net.statuses import StatusCache
from proxy.net.tls import ServerTlsContexts
from proxy.pool.ledger import CLOSING, GONE, BackendEntry, PoolLedger, mark_obsolete
from proxy.pool.pool import FAULT_LOGIN, FAULT_MISSING, FAULT_SERVER
from proxy.pool.tenancy import PassThrough, Target
from proxy.session.parameters import ParameterSet
from registry.contract import Credentials, ServerInfo

log = structlog.get_logger(__name__)

STARTING_UP: Final = "57P03"
DOES_NOT_EXIST: Final = frozenset({"3D000", "28000"})
"""What PostgreSQL says to a database and a role that it does not have; the latter where it asks for no password."""
RETRY_SOON: Final = 1.0
"""Seconds at most until a server is asked again that is starting, or has not got a database or role yet."""
CANCELS_PER_BACKEND: Final = 2
"""Cancel requests of clients for one backend at once; a second one may come for the next request of the same client."""


@dataclass(frozen=True, slots=True)
class DialSettings:
    """How backends are opened; times in seconds, the jitter as a share of the lifetime.

    A backend is closed when a cancel request for it takes longer than `cancel_wait`.  It has at most `max_statements`
    prepared for the clients that share it.
    """

    retry_first: float = 0.2
    retry_most: float = 15.0
    lifetime_jitter: float = 0.1
    cancel_wait: float = 10.0
    max_cancels: int = 32
    max_statements: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """Where a backend really is: the address that answered, and whether TLS is on."""

    ready: ReadyBackend
    server: ServerInfo


class Dialer:
    """Opens backends for one node.

    `spawn` starts a coroutine as a task that the node owns.  `client_keys` are those of roles that pass through;
    `on_key_refused` is told the tenant, server and role of each that a server does not take.
    """

    def __init__(
        self,
        hub: Hub,
        statuses: StatusCache,
        plain: ParameterSet,
        settings: DialSettings,
        *,
        spawn: Callable[..., object],
        chance: random.Random,
        tls_contexts: ServerTlsContexts,
        keys: ScramKeyCache,
        names: HostNames,
        client_keys: ClientKeys,
        on_key_refused: Callable[[int, int, str], None],
    ) -> None:
        self._hub = hub
        self._statuses = statuses
        self._plain = plain
        self._settings = settings
        self._spawn = spawn
        self._chance = chance
        self._tls = tls_contexts
        self._keys = keys
        self._names = names
        self._client_keys = client_keys
        self._on_key_refused = on_key_refused
        self._cancels: dict[int, asyncio.Semaphore] = {}
        self._where: dict[BackendEntry, Opened] = {}

    def follow(self, settings: DialSettings) -> None:
        """Open backends by other settings from now on, and let those that there are live as long as new ones.

        Backends that have lived longer already are not all replaced at once, but spread over the jitter.
        """
        if settings.max_cancels != self._settings.max_cancels:
            self._cancels.clear()
        self._settings = settings
        for entry in self._where:
            self._limit_life(entry, entry.opened_at)

    async def open(self, entry: BackendEntry) -> None:
        """Open the backend for a slot, and report how that ended."""
        target = entry.target
        assert isinstance(target, Target)
        try:
            credentials, client_key = self._credentials(entry.pool, target.credentials)
            ready = await open_backend(
                target.server,
                target.database,
                credentials,
                connect_timeout=entry.pool.connect_timeout,
                tls_contexts=self._tls,
                keys=self._keys,
                names=self._names,
                client_key=client_key,
                startup_parameters=target.startup,
            )
        except BackendOpenFailed as failure:
            if failure.key_refused:
                self._drop_key(entry.pool, target)
                failure.sqlstate, failure.refusal = KEY_REFUSED_STATE, KEY_REFUSED
            if target.startup and failure.sqlstate is not None:
                # The server has answered: what it refuses (no more WAL senders, say) does not concern other backends.
                failure.whole_server = False
            self._failed(entry, failure)
            return
        except Exception:
            log.exception("opening a backend failed inside the proxy", server=entry.server.name)
            self._failed(entry, BackendOpenFailed("an internal error of the proxy", whole_server=False))
            return
        except asyncio.CancelledError:
            self._failed(entry, BackendOpenFailed("the node is shutting down", whole_server=False))
            raise
        self._take(entry, ready, target)

    def _credentials(
        self, pool: PoolLedger, credentials: Credentials | PassThrough
    ) -> tuple[Credentials, ClientKey | None]:
        """As whom to log in, and with which client's key, if it is with one; raises BackendOpenFailed without it."""
        if not isinstance(credentials, PassThrough):
            return credentials, None
        key = self._client_keys.find((pool.tenant.tenant_id, credentials.user), credentials.serial)
        if key is None:
            text = f'nobody has proved the password of role "{credentials.user}" lately'
            raise BackendOpenFailed(text, whole_server=False, key_refused=True)
        return Credentials(credentials.user), key

    def _drop_key(self, pool: PoolLedger, target: Target) -> None:
        """Forget a key that the server does not take, and what it has said of the role; without a key, open nothing."""
        credentials = target.credentials
        assert isinstance(credentials, PassThrough)
        tenant_id = pool.tenant.tenant_id
        self._client_keys.drop((tenant_id, credentials.user), credentials.serial)
        self._on_key_refused(tenant_id, target.server.server_id, credentials.user)
        if pool.target is target:
            pool.min_size = 0

    async def cancel(self, entry: BackendEntry, still_wanted: Callable[[], bool]) -> None:
        """Send a cancel request for what a backend does, if `still_wanted` says so once it can be sent.

        From then until the server has closed that connection the backend serves nobody else.  Nothing is done where
        `CANCELS_PER_BACKEND` requests for it are under way: one of those is as good.
        """
        if entry.cancels < CANCELS_PER_BACKEND:
            await self._cancel(entry, still_wanted)

    async def _cancel(self, entry: BackendEntry, still_wanted: Callable[[], bool]) -> None:
        opened = self._where.get(entry)
        link = entry.link
        if opened is None or not isinstance(link, BackendLink) or not opened.ready.key:
            return
        self._hub.driver.cancel_begins(entry)
        certain = False
        # A server that does not answer holds up no cancel request but its own.
        turns = self._cancels.setdefault(opened.server.server_id, asyncio.Semaphore(self._settings.max_cancels))
        try:
            async with turns:
                await send_cancel(
                    opened.server,
                    opened.ready.address,
                    opened.ready.pid,
                    opened.ready.key,
                    still_wanted=still_wanted,
                    timeout=self._settings.cancel_wait,
                    tls_contexts=self._tls,
                )
            certain = True
        except CancelUncertain as error:
            log.warning("cancel request not confirmed", server=entry.server.name, reason=str(error))
        finally:
            self._cancel_over(entry, certain)

    def cancel_closing(self, entry: BackendEntry) -> None:
        """Make a server notice that the client of a busy backend is gone."""
        self._spawn(self._cancel(entry, lambda: entry.state >= CLOSING and entry.state != GONE))

    def gone(self, entry: BackendEntry) -> None:
        """Forget a backend that is closed."""
        self._where.pop(entry, None)

    def _take(self, entry: BackendEntry, ready: ReadyBackend, target: Target) -> None:
        hub, plain = self._hub, self._plain
        if target.startup:
            link: BackendLink = PipeBackend(hub, hub.selector, ready.sock, entry, plain)
        else:
            link = BackendLink(hub, hub.selector, ready.sock, entry, plain, self._settings.max_statements)
        link.introduce(ready.pid)
        link.state.params = dict(ready.params)
        self._where[entry] = Opened(ready, target.server)
        now = self._hub.selector.now
        self._limit_life(entry, now)
        if entry.generation == entry.pool.generation and not target.startup:
            self._statuses.observe(entry.pool, entry.generation, self._plain, ready.params)
        log.debug(
            "backend opened",
            tenant=entry.pool.tenant.slug,
            server=entry.server.name,
            role=entry.pool.role,
            pid=ready.pid,
        )
        if entry.server.failures or entry.pool.failures:
            log.info(
                "backends can be opened again",
                tenant=entry.pool.tenant.slug,
                server=entry.server.name,
                role=entry.pool.role,
                failures=max(entry.server.failures, entry.pool.failures),
            )
        self._hub.backend_ready(link)

    def _limit_life(self, entry: BackendEntry, since: float) -> None:
        lifetime, now = entry.pool.lifetime, self._hub.selector.now
        spread = self._chance.random() * lifetime * self._settings.lifetime_jitter
        ends = since + lifetime - spread
        entry.expires_at = (ends if ends > now else now + spread) if lifetime else 0.0

    def _failed(self, entry: BackendEntry, failure: BackendOpenFailed) -> None:
        fault = _fault_of(failure)
        pause = self._pause_after(failure, fault, entry)
        log.warning(
            "backend could not be opened",
            tenant=entry.pool.tenant.slug,
            server=entry.server.name,
            role=entry.pool.role,
            reason=failure.text,
            sqlstate=failure.sqlstate,
            retry_in=round(pause, 3),
        )
        if failure.timed_out:
            self._hub.count_timeout("connect_timeout")
        now = self._hub.selector.now
        self._hub.driver.open_failed(entry, now, now + pause, failure.summary, fault, failure.refusal)

    def _pause_after(self, failure: BackendOpenFailed, fault: int, entry: BackendEntry) -> float:
        """Seconds until the next attempt: the more have failed the longer, and none after the first in vain."""
        failures = entry.server.failures if fault == FAULT_SERVER else entry.pool.failures
        if fault == FAULT_MISSING and failures == 0:
            return 0.0
        pause = min(self._settings.retry_most, self._settings.retry_first * 2.0 ** min(failures, 16))
        if fault == FAULT_MISSING or failure.sqlstate == STARTING_UP:
            pause = min(pause, RETRY_SOON)
        return pause * (0.5 + self._chance.random() / 2)

    def _cancel_over(self, entry: BackendEntry, certain: bool) -> None:
        """Let the backend serve others again, or close it, now or when released, if the request may still hit it."""
        now = self._hub.selector.now
        if not certain:
            mark_obsolete(entry)
        self._hub.driver.cancel_done(entry, now)


def _fault_of(failure: BackendOpenFailed) -> int:
    if failure.whole_server:
        return FAULT_SERVER
    return FAULT_MISSING if failure.sqlstate in DOES_NOT_EXIST else FAULT_LOGIN


def serving(entry: BackendEntry, client: object, readies: int) -> bool:
    """Say whether a backend is still linked to this client and at the same request."""
    if entry.state == GONE:
        return False
    link = link_of(entry)
    return link.client is client and link.state.readies == readies and link.state.owes()
