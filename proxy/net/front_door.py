"""A client's way in: from an accepted socket to a link, one coroutine per login."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.auth import ClientKey, ClientKeys, Slowdown
from proxy.errors import (
    INTERNAL,
    INVALID_OPTIONS,
    LOGIN_TIMEOUT,
    NO_ROLE,
    NODE_STOPPING,
    PROTOCOL_VIOLATION,
    QUERY_CANCELED,
    SCRAM_NEEDED,
    TENANT_TOO_MANY_CLIENTS,
    TERMINATED,
    TOO_MANY_CLIENTS,
    TOO_MANY_LOGINS,
    Failure,
)
from proxy.net.acceptor import PeerAddress
from proxy.net.admission import Admissions, NoPlace
from proxy.net.arrivals import Arrivals
from proxy.net.client_authentication import Proof
from proxy.net.client_handshake import (
    AuthPolicy,
    ClientGone,
    Greeting,
    GreetPolicy,
    NoStartup,
    farewell,
    greet,
    login_complete,
    send_failure,
)
from proxy.net.client_link import ClientLink
from proxy.net.dialer import Dialer, serving
from proxy.net.doorkeeper import Doorkeeper
from proxy.net.failures import as_fatal
from proxy.net.handshake_io import HandshakeSocket, TlsFailed, Turnstile
from proxy.net.hub import KEY_REFUSED, Hub, held_back
from proxy.net.link_host import MODE_SESSION
from proxy.net.pipe_link import PipeClient
from proxy.net.probe import Probe
from proxy.net.real_address import HeaderRefused, ProxyPolicy
from proxy.net.replication import ReplicationDesk, check_access, check_backend
from proxy.net.side_door import Console, Guest, is_meant, resolve_aside
from proxy.net.statuses import StatusCache, encode_statuses
from proxy.net.visit import Visit, keep_to_own_limit
from proxy.pool.ledger import FLAG_HELD_BACK, PoolLedger, Waiter
from proxy.pool.pool import NEVER
from proxy.pool.tenancy import PassThrough, Tenancy
from proxy.routing.lookups import SingleFlight
from proxy.routing.names import selectors_from_startup
from proxy.routing.resolution import Resolution
from proxy.routing.resolver import Resolver
from proxy.routing.verdict import state_failure
from proxy.session.parameters import ParameterSet, ParameterTable, makes_temporary
from proxy.session.pins import PIN_SESSION, PIN_SET, pin_names
from proxy.session.statements import StatementTable
from proxy.wire import ProtocolError
from proxy.wire.reports import ErrorResponse
from proxy.wire.startup import CancelRequest, ReplicationMode
from registry.contract import Credentials, Route, VerifierSource

log = structlog.get_logger(__name__)

LONG_KEY: Final = 32
SHORT_KEY: Final = 4
"""All that protocol 3.0 has room for.  With the random part of the process id there are 56 bits to guess."""
NODE_SHIFT: Final = 24
"""A cancel key's process id is the node's number above this bit, and random bits below it."""


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """What every login is held to; times in seconds.

    `proxied` is set where clients come through load balancers that say so (PROXY protocol).
    """

    login_timeout: float
    max_clients: int
    node_id: int
    greet: GreetPolicy
    auth: AuthPolicy
    slowdown: Slowdown
    shares_statements: bool = False
    proxied: ProxyPolicy | None = None


@dataclass(slots=True)
class ClientInfo:
    """What is known of a client besides its link; for logs, metrics and the console."""

    user: str
    address: str
    tls: bool
    since: float
    pid: int
    key: bytes


class SettingsRefused(Exception):
    """PostgreSQL refused a client's startup parameters; `message` is its ErrorResponse, as FATAL."""

    def __init__(self, message: ErrorResponse) -> None:
        super().__init__(message.message)
        self.message = message


class FrontDoor:
    """Logs clients in.

    `clients` are the linked ones by the process id of their cancel key.  `console` may be set before the first one
    comes; its users are none of them, and get in when the node has all the clients that it may have.
    """

    def __init__(
        self,
        hub: Hub,
        resolver: Resolver,
        tenancy: Tenancy,
        statuses: StatusCache,
        table: ParameterTable,
        dialer: Dialer,
        settings: DoorSettings,
        admissions: Admissions,
        *,
        client_keys: ClientKeys,
        clock: Callable[[], float],
    ) -> None:
        self._hub = hub
        self._client_keys = client_keys
        tls = settings.greet.tls
        self._keeper = Doorkeeper(
            resolver, settings.auth, settings.slowdown, None if tls is None else tls.mode, clock=clock
        )
        self._resolver = resolver
        self._tenancy = tenancy
        self._statuses = statuses
        self._table = table
        self._dialer = dialer
        self._settings = settings
        self._clock = clock
        self._replication = ReplicationDesk(hub, tenancy, table.empty)
        self._flights = SingleFlight()
        self._turnstile = Turnstile()
        self._arrivals = Arrivals(admissions, settings.proxied)
        self._next_ident = 1
        self._statements = StatementTable(secrets.token_hex(8).encode())
        self._promised: set[int] = set()
        self.clients: dict[int, ClientLink] = {}
        self.console: Console | None = None
        self.refused: dict[str, int] = {}
        self.logins = 0
        self.internal_errors = 0
        self.stopping = False

    def follow(self, settings: DoorSettings) -> None:
        """Hold logins to other settings from now on; nobody who is logged in is dropped."""
        tls = settings.greet.tls
        self._settings = settings
        self._arrivals.proxied = settings.proxied
        self._keeper.follow(settings.auth, settings.slowdown, None if tls is None else tls.mode)

    async def welcome(self, sock: socket.socket, peer: PeerAddress) -> None:
        """Take one accepted connection through its login, and leave nothing behind if that fails."""
        io = HandshakeSocket(sock, turnstile=self._turnstile)
        visit = Visit(f"{peer[0]}:{peer[1]}", self._clock(), self._settings.login_timeout)
        request = self._arrivals.request_place(io, peer[0])
        try:
            async with asyncio.timeout(visit.limit) as visit.deadline:
                await self._arrivals.admit(io, peer, visit, request)
                await self._login(io, visit)
        except HeaderRefused as refusal:
            self._count_refusal(visit, "proxy_header", str(refusal), log.warning)
        except NoPlace:
            self._arrivals.refuse(io)
            self.refused[TOO_MANY_LOGINS.name] = self.refused.get(TOO_MANY_LOGINS.name, 0) + 1
        except TlsFailed as failed:
            log.info("TLS with a client failed", address=visit.address, reason=str(failed))
        except NoStartup as nothing:
            self._count_refusal(visit, PROTOCOL_VIOLATION.name, str(nothing), log.warning)
            # Closed in good order: bytes left unread would reset the connection, which some clients report as an error.
            await farewell(io, b"")
        except ClientGone as gone:
            log.debug("client left before its login", address=visit.address, reason=str(gone))
        except TimeoutError:
            self._hub.count_timeout("login_timeout")
            await self._refuse(io, visit, Failure(LOGIN_TIMEOUT, seconds=visit.limit))
        except Failure as failure:
            await self._refuse(io, visit, failure)
        except ProtocolError as error:
            await self._refuse(io, visit, Failure(PROTOCOL_VIOLATION, reason=error))
        except SettingsRefused as refusal:
            self._count_refusal(visit, "settings_refused", str(refusal), log.info)
            await farewell(io, refusal.message.encode())
        except Exception:
            self.internal_errors += 1
            log.exception("a login failed inside the proxy", address=visit.address)
            await send_failure(io, Failure(INTERNAL))
        finally:
            request.leave()
            io.close()

    def client_pinned(self, client: ClientLink, reasons: str) -> None:
        """Say that a client keeps its backend, once for each reason."""
        info = client.info
        assert isinstance(info, ClientInfo)
        log.info("client pinned", tenant=client.pool.tenant.slug, user=info.user, address=info.address, reason=reasons)

    def client_gone(self, client: ClientLink, reason: str) -> None:
        """Take a client off the books."""
        info = client.info
        assert isinstance(info, ClientInfo)
        if self.clients.pop(info.pid, None) is None:
            return
        tenant = client.pool.tenant
        tenant.clients -= 1
        now = self._clock()
        client.pool.last_used = now
        log.info(
            "client disconnected",
            tenant=tenant.slug,
            user=info.user,
            address=info.address,
            reason=reason,
            duration=round(now - info.since, 3),
            pinned_by=", ".join(pin_names(client.ever_pinned)) or None,
        )

    @property
    def slowed(self) -> int:
        """How many logins had to wait because of earlier failures."""
        return self._keeper.slowed

    async def close(self) -> None:
        """Stop the probes that are under way."""
        await self._flights.close()

    async def _login(self, io: HandshakeSocket, visit: Visit) -> None:
        greeting = await greet(io, self._settings.greet, self._arrivals.tls_turn(visit))
        if greeting.cancel is not None:
            await self._cancel(greeting.cancel, visit)
            return
        startup = greeting.startup
        assert startup is not None
        if self.stopping:
            raise Failure(NODE_STOPPING)
        selectors = selectors_from_startup(startup, greeting.sni, self._resolver.rules)
        visit.user = selectors.user
        look = self._keeper.look(selectors, visit.host)
        if is_meant(self.console, selectors, greeting):
            resolution = await resolve_aside(self.console, self._resolver, selectors, visit.host, look)
        else:
            self._check_room()
            resolution = await self._resolver.resolve(selectors, visit.host, look)
        visit.tenant = resolution.route.slug if resolution.route is not None else None
        proof = await self._keeper.prove(io, greeting, resolution, visit.host)
        # A reload may have changed the console's users meanwhile: only a proof of the verifier of now counts.
        if is_meant(self.console, selectors, greeting) and self.console.verifier(selectors.user) == resolution.verifier:
            await self._send_aside(self.console, io, greeting, resolution, visit, proof)
            return
        if resolution.route is None and resolution.failure is None:
            raise resolution.refusal
        self._check_room()
        if resolution.failure is not None:
            raise resolution.failure
        keep_to_own_limit(visit, resolution)
        self._keeper.check_owner(greeting, resolution)
        await self._admit(io, greeting, resolution, visit, proof)

    def _check_room(self) -> None:
        if len(self.clients) >= self._settings.max_clients:
            raise Failure(TOO_MANY_CLIENTS, limit=self._settings.max_clients)

    async def _send_aside(
        self,
        console: Console,
        io: HandshakeSocket,
        greeting: Greeting,
        resolution: Resolution,
        visit: Visit,
        proof: Proof,
    ) -> None:
        """Send somebody to the console who has proved to be one of its users."""
        self._keeper.check_owner(greeting, resolution)
        pid, key = self._new_key(greeting.minor)
        try:
            await console.receive(Guest(io, greeting, resolution, proof, visit.address, visit.started, pid, key))
        finally:
            self._promised.discard(pid)

    async def _admit(
        self,
        io: HandshakeSocket,
        greeting: Greeting,
        resolution: Resolution,
        visit: Visit,
        proof: Proof,
    ) -> None:
        """Give an authenticated client its place, or refuse it for want of one."""
        pool = self._pool_of(resolution, proof)
        tenant = pool.tenant
        if tenant.clients >= tenant.max_clients:
            raise Failure(TENANT_TOO_MANY_CLIENTS, tenant=tenant.slug, limit=tenant.max_clients)
        tenant.clients += 1
        begin = self._begin_session if greeting.replication is ReplicationMode.NONE else self._begin_replication
        try:
            link, pid, key = await begin(io, greeting, resolution, pool, proof)
        except BaseException:
            tenant.clients -= 1
            raise
        self._next_ident += 1
        link.info = ClientInfo(resolution.user, visit.address, greeting.tls is not None, visit.started, pid, key)
        self.clients[pid] = link
        self.logins += 1
        self._hub.selector.add(link, link.reading())
        if link.tls:
            self._hub.selector.serve_buffered(link)
        if isinstance(link, PipeClient):
            link.attach()
        log.info(
            "client connected",
            tenant=tenant.slug,
            user=resolution.user,
            address=visit.address,
            tls=greeting.tls is not None,
            duration=round(self._clock() - visit.started, 4),
        )

    async def _begin_session(
        self, io: HandshakeSocket, greeting: Greeting, resolution: Resolution, pool: PoolLedger, proof: Proof
    ) -> tuple[ClientLink, int, bytes]:
        """Complete the login of a client that shares backends; returns its link and cancel key."""
        parameters = self._parameters_of(resolution)
        statuses = await self._statuses_for(pool, parameters, resolution)
        pid, key = await self._welcome(io, greeting, proof, statuses)
        if pool.flags & FLAG_HELD_BACK:
            raise held_back(pool)
        link = ClientLink(self._hub, self._hub.selector, io.detach(), self._next_ident, pool, parameters)
        link.mode, link.serves_all = pool.mode, resolution.is_for_all
        if link.mode == MODE_SESSION:
            link.front.pins |= PIN_SESSION
        elif self._settings.shares_statements:
            link.front.desk.table = self._statements
            link.front.desk.meaning = parameters.meaning
        if makes_temporary(parameters.values):
            link.front.pins |= PIN_SET
        return link, pid, key

    async def _begin_replication(
        self, io: HandshakeSocket, greeting: Greeting, resolution: Resolution, pool: PoolLedger, proof: Proof
    ) -> tuple[ClientLink, int, bytes]:
        """Complete the login of a client that has a backend of its own; returns its link and cancel key."""
        check_access(resolution, greeting.replication)
        backend = await self._replication.open(pool, greeting.replication, resolution)
        try:
            pid, key = await self._welcome(io, greeting, proof, encode_statuses(backend.state.params))
            check_backend(backend)
            return self._replication.client(io.detach(), self._next_ident, backend, resolution), pid, key
        except BaseException:
            self._replication.give_up(backend)
            raise

    async def _welcome(
        self, io: HandshakeSocket, greeting: Greeting, proof: Proof, statuses: bytes
    ) -> tuple[int, bytes]:
        """Tell a client that it is logged in, and by which key its cancel requests will be known."""
        pid, key = self._new_key(greeting.minor)
        try:
            await io.send(proof.final + login_complete(statuses, pid, key))
        finally:
            self._promised.discard(pid)
        return pid, key

    def _pool_of(self, resolution: Resolution, proof: Proof) -> PoolLedger:
        assert resolution.route is not None
        # The route may have changed while the client proved who it is.
        route = self._resolver.current(resolution.route.tenant_id) or resolution.route
        failure = state_failure(route)
        if failure is not None:
            raise failure
        override = self._role_of(resolution, route, proof)
        if (override or route.role) is None:
            raise Failure(NO_ROLE, tenant=route.slug)
        pool = self._tenancy.pool_for(route, override, self._hub.selector.now)
        if pool.flags & FLAG_HELD_BACK:
            raise held_back(pool)
        return pool

    def _role_of(self, resolution: Resolution, route: Route, proof: Proof) -> Credentials | PassThrough | None:
        """The role in place of the route's own: a login's, or a role of the server itself, with the key it has shown.

        Such a role never gets another one's credentials: on a server with many tenants it may be any tenant's.
        """
        login = resolution.login
        if login is None or login.source is not VerifierSource.SERVER:
            return None if login is None else login.role
        if route.role is not None and route.role.user == login.user and route.role.password is not None:
            return None
        if proof.client_key is None:
            raise Failure(SCRAM_NEEDED, user=login.user)
        key = ClientKey(resolution.verifier, proof.client_key)
        return PassThrough(login.user, self._client_keys.keep((route.tenant_id, login.user), key))

    def _parameters_of(self, resolution: Resolution) -> ParameterSet:
        pairs = [
            (name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
            for name, value in resolution.settings
        ]
        try:
            return self._table.intern(pairs)
        except ValueError as error:
            raise Failure(INVALID_OPTIONS, reason=error) from None

    async def _statuses_for(self, pool: PoolLedger, parameters: ParameterSet, resolution: Resolution) -> bytes:
        """What the client is told of the server's parameters; a backend is needed only for what is not yet known.

        Where the server does not take a password that it took a moment ago, its change is what the client is told.
        """
        known = self._statuses.get(pool, parameters)
        if known is not None:
            return known
        key = (pool, pool.generation, parameters)
        try:
            return await self._flights.run(key, lambda: self._probe(pool, parameters))
        except Failure as failure:
            if failure.spec is TERMINATED and pool.login_refused == KEY_REFUSED:
                raise resolution.refusal from None
            raise

    async def _probe(self, pool: PoolLedger, parameters: ParameterSet) -> bytes:
        future: asyncio.Future[Probe] = asyncio.get_running_loop().create_future()
        probe = Probe(parameters, future)
        now = self._hub.selector.now
        deadline = now + pool.queue_wait_timeout if pool.queue_wait_timeout else NEVER
        waiter = Waiter(pool, now, deadline, probe)
        generation = pool.generation
        self._hub.driver.request(waiter, now)
        try:
            await future
        finally:
            # A backend that was granted meanwhile gives itself back when it has answered.
            self._hub.driver.abandon(waiter)
        if probe.failure is not None:
            raise probe.failure
        if probe.error:
            raise SettingsRefused(as_fatal(probe.error))
        return self._statuses.put(pool, generation, parameters, probe.statuses)

    def _new_key(self, minor: int) -> tuple[int, bytes]:
        """Make an unguessable cancel key that no other client has, with the node's number in it."""
        while True:
            pid = (self._settings.node_id << NODE_SHIFT) | secrets.randbits(NODE_SHIFT)
            if pid and pid not in self.clients and pid not in self._promised:
                self._promised.add(pid)
                return pid, secrets.token_bytes(LONG_KEY if minor >= 2 else SHORT_KEY)

    async def _cancel(self, request: CancelRequest, visit: Visit) -> None:
        """Cancel what the client with this key is doing; whoever has no such key is told nothing."""
        client = self.clients.get(request.pid)
        info = client.info if client is not None else None
        if client is None or not isinstance(info, ClientInfo) or not hmac.compare_digest(info.key, request.key):
            log.info("cancel request with an unknown key", address=visit.address)
            return
        if self._hub.cancel_queued(client, Failure(QUERY_CANCELED)):
            return
        backend = client.backend
        if backend is None or not backend.state.owes() or backend.state.swallowing_own:
            return
        entry, readies = backend.entry, backend.state.readies
        await self._dialer.cancel(entry, lambda: serving(entry, client, readies))

    async def _refuse(self, io: HandshakeSocket, visit: Visit, failure: Failure) -> None:
        says = {"debug": log.debug, "info": log.info, "warning": log.warning, "error": log.error}
        self._count_refusal(visit, failure.spec.name, failure.message, says[failure.spec.log_level])
        await send_failure(io, failure)

    def _count_refusal(self, visit: Visit, name: str, reason: str, say: Callable[..., object]) -> None:
        self.refused[name] = self.refused.get(name, 0) + 1
        say(
            "client refused",
            tenant=visit.tenant,
            user=visit.user,
            address=visit.address,
            error=name,
            reason=reason,
            duration=round(self._clock() - visit.started, 4),
        )
