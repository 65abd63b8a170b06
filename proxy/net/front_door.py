"""A client's way in: from an accepted socket to a link, one coroutine per login."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
from proxy.net.handshake_io import HandshakeSocket, TlsFailed, Turnstile
from proxy.net.hub import Hub, held_back
from proxy.net.link_host import MODE_SESSION
from proxy.net.real_address import HeaderRefused, ProxyPolicy
from proxy.net.replication import ReplicationDesk, check_access, check_backend
from proxy.net.session_desk import SessionDesk, SettingsRefused
from proxy.net.sessions import CancelKey, ClientInfo, Sessions
from proxy.net.side_door import Console, Guest, is_meant, resolve_aside
from proxy.net.statuses import StatusCache, encode_statuses
from proxy.net.visit import Visit, keep_to_own_limit
from proxy.pool.ledger import FLAG_HELD_BACK, PoolLedger
from proxy.pool.tenancy import PassThrough, Tenancy
from proxy.routing.names import selectors_from_startup
from proxy.routing.resolution import Resolution
from proxy.routing.resolver import Resolver
from proxy.routing.verdict import state_failure
from proxy.session.parameters import ParameterSet, ParameterTable, makes_temporary
from proxy.session.pins import PIN_SESSION, PIN_SET, pin_names
from proxy.session.statements import StatementTable
from proxy.wire import ProtocolError
from proxy.wire.startup import CancelRequest, ReplicationMode
from registry.contract import Credentials, Route, VerifierSource

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """What every login is held to; times in seconds.

    `proxied` is set where clients come through load balancers that say so (PROXY protocol).  With `real_pids`, clients
    in session mode have their backend from the login on, and are told the process id of its server.
    """

    login_timeout: float
    max_clients: int
    node_id: int
    greet: GreetPolicy
    auth: AuthPolicy
    slowdown: Slowdown
    shares_statements: bool = False
    real_pids: bool = False
    proxied: ProxyPolicy | None = None


@dataclass(frozen=True, slots=True)
class Entrance:
    """A client that has been told that it is logged in; `attach` is called when the selector has its link."""

    link: ClientLink
    key: CancelKey
    attach: Callable[[], None] | None = None


class FrontDoor:
    """Logs clients in.

    `sessions` is the register of those who are, `clients` their links.  `console` may be set before the first one
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
        self._table = table
        self._dialer = dialer
        self._settings = settings
        self._clock = clock
        self._replication = ReplicationDesk(hub, tenancy, table.empty)
        self._desk = SessionDesk(hub, statuses)
        self._turnstile = Turnstile()
        self._arrivals = Arrivals(admissions, settings.proxied)
        self._next_ident = 1
        self._statements = StatementTable(secrets.token_hex(8).encode())
        self.sessions = Sessions()
        self.clients = self.sessions.links
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
        if not self.sessions.remove(client):
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
        await self._desk.close()

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
        key = self.sessions.promise(self._settings.node_id, greeting.minor)
        try:
            await console.receive(Guest(io, greeting, resolution, proof, visit.address, visit.started, key))
        finally:
            self.sessions.forget(key)

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
        if greeting.replication is not ReplicationMode.NONE:
            begin = self._begin_replication
        elif self._settings.real_pids and pool.mode == MODE_SESSION:
            begin = self._begin_linked
        else:
            begin = self._begin_session
        try:
            entrance = await begin(io, greeting, resolution, pool, proof)
        except BaseException:
            tenant.clients -= 1
            raise
        self._next_ident += 1
        link, key = entrance.link, entrance.key
        link.info = ClientInfo(resolution.user, visit.address, greeting.tls is not None, visit.started, key)
        link.told_pid = key.pid.to_bytes(4, "big")
        self.sessions.add(link)
        self.logins += 1
        self._hub.selector.add(link, link.reading())
        if link.tls:
            self._hub.selector.serve_buffered(link)
        if entrance.attach is not None:
            entrance.attach()
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
    ) -> Entrance:
        """Complete the login of a client that has a backend only while it needs one."""
        parameters = self._parameters_of(resolution)
        statuses = await self._desk.statuses(pool, parameters, resolution)
        key = await self._welcome(io, greeting, proof, statuses)
        if pool.flags & FLAG_HELD_BACK:
            raise held_back(pool)
        return Entrance(self._client(io, pool, parameters, resolution, pool.mode), key)

    async def _begin_linked(
        self, io: HandshakeSocket, greeting: Greeting, resolution: Resolution, pool: PoolLedger, proof: Proof
    ) -> Entrance:
        """Complete the login of a client in session mode that has its backend from now on."""
        parameters = self._parameters_of(resolution)
        claim = await self._desk.claim(io, pool, parameters, resolution)
        try:
            pid = self._desk.check(claim, pool).pid
            key = await self._welcome(io, greeting, proof, encode_statuses(claim.statuses), pid)
            self._desk.check(claim, pool)
            link = self._client(io, pool, parameters, resolution, MODE_SESSION)
        except BaseException:
            self._desk.give_up(claim)
            raise
        return Entrance(link, key, partial(self._desk.seat, link, claim))

    async def _begin_replication(
        self, io: HandshakeSocket, greeting: Greeting, resolution: Resolution, pool: PoolLedger, proof: Proof
    ) -> Entrance:
        """Complete the login of a client with a backend that is opened for it."""
        check_access(resolution, greeting.replication)
        backend = await self._replication.open(pool, greeting.replication, resolution)
        try:
            key = await self._welcome(io, greeting, proof, encode_statuses(backend.state.params))
            check_backend(backend)
            link = self._replication.client(io.detach(), self._next_ident, backend, resolution)
        except BaseException:
            self._replication.give_up(backend)
            raise
        return Entrance(link, key, link.attach)

    def _client(
        self, io: HandshakeSocket, pool: PoolLedger, parameters: ParameterSet, resolution: Resolution, mode: int
    ) -> ClientLink:
        link = ClientLink(self._hub, self._hub.selector, io.detach(), self._next_ident, pool, parameters)
        link.mode, link.serves_all = mode, resolution.is_for_all
        if mode == MODE_SESSION:
            link.front.pins |= PIN_SESSION
        elif self._settings.shares_statements:
            link.front.desk.table = self._statements
            link.front.desk.meaning = parameters.meaning
        if makes_temporary(parameters.values):
            link.front.pins |= PIN_SET
        return link

    async def _welcome(
        self, io: HandshakeSocket, greeting: Greeting, proof: Proof, statuses: bytes, pid: int = 0
    ) -> CancelKey:
        """Tell a client that it is logged in, and by which key its cancel requests will be known.

        Its process id is `pid`, unless that is 0.
        """
        key = self.sessions.promise(self._settings.node_id, greeting.minor, pid)
        try:
            await io.send(proof.final + login_complete(statuses, key.pid, key.secret))
        finally:
            # Nothing comes between this and its entry.
            self.sessions.forget(key)
        return key

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

    async def _cancel(self, request: CancelRequest, visit: Visit) -> None:
        """Cancel what the client with this key is doing; whoever has no such key is told nothing."""
        client = self.sessions.find(request.pid, request.key)
        if client is None:
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
