"""The way to the console: an operator logs in on the clients' port, by the console's database name.

Only who asks for that database and has the name of one of the console's users goes there; everybody else goes on as
ever, so that a stranger learns neither whether there is a console nor whose it is.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from proxy.auth import ScramVerifier
from proxy.errors import INVALID_PASSWORD, Failure
from proxy.net.client_authentication import Proof
from proxy.net.client_handshake import Greeting
from proxy.net.handshake_io import HandshakeSocket
from proxy.net.sessions import CancelKey
from proxy.routing.lookups import Look
from proxy.routing.names import Reading, Selectors, Source, Statement
from proxy.routing.resolution import Resolution
from proxy.routing.resolver import Resolver
from proxy.routing.verdict import Found, Survey
from proxy.wire.startup import ReplicationMode


@dataclass(frozen=True, slots=True)
class Guest:
    """Somebody who has proved to be one of the console's users and has not been told so yet.

    `key` is the cancel key to tell.  `started` is when the login began, by the door's clock.
    """

    io: HandshakeSocket
    greeting: Greeting
    resolution: Resolution
    proof: Proof
    address: str
    started: float
    key: CancelKey

    @property
    def user(self) -> str:
        return self.resolution.user

    @property
    def shadowed(self) -> str | None:
        """The tenant that the same login would have reached, had the console not been there."""
        survey = self.resolution.survey
        return None if survey.route is None or survey.effective_login is None else survey.route.slug


class Console(Protocol):
    """What the front door knows of a console: see `proxy.admin.console`."""

    @property
    def database(self) -> str:
        """The database name that stands for it."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it has users at all."""
        ...

    @property
    def sessions(self) -> int:
        """Its sessions now."""
        ...

    @property
    def logins(self) -> int:
        """Its sessions so far."""
        ...

    def verifier(self, user: str) -> ScramVerifier | None:
        """The verifier of one of its users, None for everybody else."""
        ...

    async def receive(self, guest: Guest) -> None:
        """Complete a login and take the socket over; raises Failure, and PeerGone."""
        ...


def is_meant(console: Console | None, selectors: Selectors, greeting: Greeting) -> TypeGuard[Console]:
    """Whether a connection asks for the console's database, whoever it is."""
    if console is None or not console.is_open or greeting.replication is not ReplicationMode.NONE:
        return False
    return (selectors.database or selectors.user) == console.database


async def resolve_aside(
    console: Console, resolver: Resolver, selectors: Selectors, host: str, look: Look
) -> Resolution:
    """Resolve a connection that asks for the console's database; the console's users, to no tenant.

    The registry is asked the same questions for everybody.  Where it is down, or others would be refused before they
    have proved anything, the console's users get in all the same, and strangers have the same conversation with a mock
    verifier: else it would show whose the console is.  So they have where other selectors contradict the console's
    name, which no user of the console has to heed.  Raises Failure where there is no mock verifier.
    """
    verifier = console.verifier(selectors.user)
    found: Resolution | None = None
    with suppress(Failure):
        found = await resolver.resolve(selectors, host, look)
    if verifier is None and found is not None and found.survey.contradicting is None:
        return found
    statement = Statement(Source.DATABASE, console.database, (console.database,))
    reading = Reading(selectors.user, selectors.user, (statement,), (), ())
    survey = Survey(reading, Found(statement, None, "the console"), None, login_certain=True)
    refusal = Failure(INVALID_PASSWORD, user=selectors.user) if found is None else found.refusal
    return Resolution(
        selectors=selectors,
        user=selectors.user,
        route=None,
        login=None,
        verifier=verifier or await resolver.mock_login(survey.mock_selector),
        refusal=refusal,
        failure=None,
        settings=(),
        mock_selector=survey.mock_selector,
        survey=survey if found is None else found.survey,
    )
