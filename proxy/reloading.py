"""Reading all that a node is told once more, and judging it whole before anything of it is put in force."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from proxy.admin.console import ConsoleRules
from proxy.net.client_tls import ClientTls
from proxy.net.tls import TlsConfigError
from proxy.routing.names import NameRules
from proxy.settings import ReloadFailed, Settings, SettingsError, change_settings
from proxy.wiring import client_tls, console_rules, rules_of
from registry.contract import RegistryUnavailable
from registry.errors import SecretError
from registry.secrets import KeyRing

InspectSecrets: TypeAlias = Callable[[KeyRing], Awaitable[str]]
"""Says why the registry's secrets cannot be opened with these keys, `""` if they can; raises RegistryUnavailable."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a node is told from outside: its settings, and what stands in files beside them."""

    settings: Settings
    keys: KeyRing
    admin_token: str | None


Tell: TypeAlias = Callable[[], Told]
"""Reads all of it anew; raises SettingsError and SecretError."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a reload puts in force: nothing in it can fail any more.

    `settings` are those from now on, `changed` and `needs_restart` the names of what differs from before.
    """

    settings: Settings
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]
    keys: KeyRing
    admin_token: str | None
    tls: ClientTls | None
    rules: NameRules
    console: ConsoleRules | None


async def plan_reload(before: Told, tell: Tell, inspect: InspectSecrets, *, were_fit: bool) -> Plan:
    """Read everything, and make of it what can be made before it is in force; raises ReloadFailed.

    `were_fit` says that the keys of before open the registry's secrets, as far as is known.
    """
    try:
        told = tell()
        change = change_settings(before.settings, told.settings)
        settings, changed = change.settings, list(change.changed)
        if told.admin_token != before.admin_token and not {"http.admin_token", "http.admin_token_file"} & set(changed):
            changed.append("http.admin_token_file")
        if not told.keys.is_same(before.keys):
            await _check_keys(before.keys, told.keys, inspect, were_fit=were_fit)
            if "registry.encryption_keys_file" not in changed:
                changed.append("registry.encryption_keys_file")
        return Plan(
            settings,
            tuple(changed),
            change.refused,
            told.keys,
            told.admin_token,
            client_tls(settings),
            rules_of(settings),
            console_rules(settings),
        )
    except (SettingsError, TlsConfigError, SecretError) as error:
        raise ReloadFailed(str(error), error.hint, is_mistake=True) from None
    except RegistryUnavailable as error:
        raise registry_is_down(error) from None


def registry_is_down(error: RegistryUnavailable) -> ReloadFailed:
    """What is told of a reload that could not ask the registry."""
    hint = "Nothing has been changed, not the settings either; reload again once the registry answers."
    return ReloadFailed(str(error), hint, is_mistake=False)


async def _check_keys(before: KeyRing, after: KeyRing, inspect: InspectSecrets, *, were_fit: bool) -> None:
    """Raise SecretError for keys that open less than those before did: one was taken away that is still needed."""
    if after.covers(before) or not were_fit:
        return
    problem = await inspect(after)
    if problem:
        raise SecretError(
            f"a key was taken away that the registry still needs: {problem}",
            "put it back behind the first one; `pgtenant secrets rotate` seals with the first what it has sealed",
        )
