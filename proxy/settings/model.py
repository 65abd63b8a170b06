"""All settings of a node."""

from __future__ import annotations

from proxy.settings.clients import AuthSettings, ListenSettings
from proxy.settings.fields import Section
from proxy.settings.naming import RegistrySettings, RoutingSettings
from proxy.settings.operating import (
    ConsoleSettings,
    HttpSettings,
    LogSettings,
    NodeSettings,
    RelaySettings,
    ShutdownSettings,
)
from proxy.settings.pooling import PoolSettings


class Settings(Section):
    """All of `pgtenant.toml`."""

    listen: ListenSettings = ListenSettings()
    http: HttpSettings = HttpSettings()
    console: ConsoleSettings = ConsoleSettings()
    auth: AuthSettings = AuthSettings()
    pool: PoolSettings = PoolSettings()
    routing: RoutingSettings = RoutingSettings()
    registry: RegistrySettings = RegistrySettings()
    relay: RelaySettings = RelaySettings()
    log: LogSettings = LogSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    node: NodeSettings = NodeSettings()
