"""The shared database: where those tenants are served that have said so, having none of their own.

It is a tenant like any other, named in the node's settings, and lends its server, database and role.  What leads there
is the tenant's own word alone: never a state, and never a server that is down.
"""

from __future__ import annotations

from dataclasses import replace

from registry.contract import Route, TenantState


def on_shared(route: Route, shared: Route | None) -> Route:
    """The route of a tenant that has said so by way of the shared tenant's; any other route as it is.

    A role of its own stays the tenant's: by that the shared database may tell its tenants apart.  The generation
    changes with that of either.
    """
    if not route.shared or route.state is not TenantState.READY or route.database_name is not None:
        return route
    if shared is None or shared.state is not TenantState.READY or shared.shared or shared.database_name is None:
        return route
    return replace(
        route,
        server=shared.server,
        database_name=shared.database_name,
        role=route.role or shared.role,
        generation=route.generation + shared.generation,
    )
