"""What goes wrong in the registry, in words for the person at the command line."""

from __future__ import annotations


class RegistryError(Exception):
    """An operation was refused or failed; `message` says what happened, `hint` what to do about it.

    Neither holds a secret.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Invalid(RegistryError):
    """A value breaks a rule; `field` names it as the manifest spells it."""

    def __init__(self, field: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.field = field


class NotFound(RegistryError):
    """There is no such server, tenant or login."""


class Conflict(RegistryError):
    """Something else is in the way: a name taken, an object still used, a state that forbids it."""


class SecretError(RegistryError):
    """A secret cannot be sealed or opened: no key, the wrong key, or data that was tampered with."""


class SchemaError(RegistryError):
    """The registry's tables are missing, or of another version than this program."""
