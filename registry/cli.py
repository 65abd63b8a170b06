"""The registry's part of the command line."""

from __future__ import annotations

import typer

from registry.commands import keys, logins, manifests, servers, tenants


def register(app: typer.Typer) -> None:
    """Mount the registry's groups of commands: server, tenant, login, registry and secrets."""
    for group in (servers, tenants, logins, manifests, keys):
        group.register(app)
