"""The shared database: where tenants are served that have no database of their own yet.

It is a tenant like any other, named in the node's settings, and lends its server, database and role to tenants in
the state PENDING.  It is never a reaction to a server that is down.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from registry.contract import Route, TenantState

_BELOW_ALL: Final = -(1 << 62)
_OWN_STEP: Final = 1 << 32


def on_shared(route: Route, shared: Route | None) -> Route:
    """The route of a PENDING tenant by way of the shared tenant's; any other route as it is.

    Its generation grows with that of either, and is negative: below every generation that the tenant can get with
    a database of its own, so that backends of the shared database end when the tenant moves out.
    """
    if route.state is not TenantState.PENDING or shared is None or shared.tenant_id == route.tenant_id:
        return route
    if shared.state is not TenantState.READY:
        return route
    return replace(
        route,
        server=shared.server,
        database_name=shared.database_name,
        role=shared.role,
        generation=_BELOW_ALL + route.generation * _OWN_STEP + shared.generation,
    )


def is_shared(route: Route) -> bool:
    """Whether this route leads to the shared database."""
    return route.generation < 0
