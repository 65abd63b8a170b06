"""What the resolver has found of a connection, and what is to be done with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.auth import ScramVerifier
from proxy.errors import Failure
from proxy.routing.explain import Explanation, explanation
from proxy.routing.names import Selectors
from proxy.routing.verdict import Survey
from registry.contract import AuthMethod, Credentials, Login, Route, VerifierSource


@dataclass(frozen=True, slots=True)
class Resolution:
    """What to do with a client.

    Hold the same conversation with every client: check its proof against `verifier`, by one of `methods`.  Where
    that fails, tell `refusal`; where it succeeds and `failure` is not None, tell that; else the client may use
    `route` with `role`.  `settings` are its startup options without those that name the tenant.  `barred`: its address
    is none of the tenant's, so that there is no login, and `verifier` only looks like that of the one there is.
    """

    selectors: Selectors
    user: str
    route: Route | None
    login: Login | None
    verifier: ScramVerifier = field(repr=False)
    refusal: Failure
    failure: Failure | None
    settings: tuple[tuple[str, str], ...] = field(repr=False)
    mock_selector: bytes = field(repr=False)
    survey: Survey = field(repr=False)
    barred: bool = False

    @property
    def is_for_all(self) -> bool:
        """Whether the login is one for all tenants."""
        return self.login is not None and self.login.tenant_id is None

    @property
    def certificate_name(self) -> str:
        """What the certificate of the login says: the user with its tenant, where nothing else is agreed on.

        One authority may sign for all tenants, so that a user's name alone would be every tenant's.
        """
        if self.login is not None and self.login.certificate is not None:
            return self.login.certificate
        if self.route is None or self.login is None or self.login.tenant_id is None:
            return self.user
        return f"{self.user}.{self.route.slug}"

    @property
    def methods(self) -> frozenset[AuthMethod]:
        return self.login.methods if self.login is not None else frozenset({AuthMethod.SCRAM})

    @property
    def role(self) -> Credentials | None:
        """The role with which the backend logs in: the login's own or itself, else the route's."""
        if self.login is not None and self.login.source is VerifierSource.SERVER:
            return Credentials(self.login.user)
        if self.login is not None and self.login.role is not None:
            return self.login.role
        return None if self.route is None else self.route.role

    def explain(self) -> Explanation:
        """How this result came about."""
        return explanation(self.survey, self.failure)
