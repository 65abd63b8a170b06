"""What becomes of the settings when they are read again while the node runs."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.settings.fields import needs_restart
from proxy.settings.model import Settings


@dataclass(frozen=True, slots=True)
class Change:
    """The settings from now on, and the names of those that differ from before.

    `changed` are in force now; `refused` keep the values that the node started with, as they need a restart.
    """

    settings: Settings
    changed: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload has come to: the registry's version, and the names of settings, never their values."""

    registry_version: int
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


class ReloadFailed(Exception):
    """A reload changed nothing; the text says why and `hint` what to do.

    `is_mistake` tells what was written wrongly from what may go well at the next attempt.
    """

    def __init__(self, text: str, hint: str, *, is_mistake: bool) -> None:
        super().__init__(text)
        self.hint = hint
        self.is_mistake = is_mistake


def change_settings(before: Settings, after: Settings) -> Change:
    """What a running node makes of other settings."""
    sections = {}
    changed: list[str] = []
    refused: list[str] = []
    for section in Settings.model_fields:
        old, new = getattr(before, section), getattr(after, section)
        kept = {}
        for name, field in type(old).model_fields.items():
            if getattr(old, name) == getattr(new, name):
                continue
            if needs_restart(field):
                kept[name] = getattr(old, name)
            (refused if name in kept else changed).append(f"{section}.{name}")
        sections[section] = new.model_copy(update=kept)
    return Change(before.model_copy(update=sections), tuple(changed), tuple(refused))
