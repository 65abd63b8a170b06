"""Reading typed values out of a manifest's tables, with the line in every error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from registry.contract import Secret
from registry.domain.models import KEEP, Keep
from registry.errors import Invalid, RegistryError

E = TypeVar("E", bound=StrEnum)

MAX_FILE_BYTES: Final = 1_048_576
_HEADER: Final = re.compile(r"\s*\[")
_HEAD: Final = re.compile(r"\s*\[\[\s*(\w+)\s*\]\]")
_REFER: Final = "refer to a secret by _env or _file"
_NAME_FILE: Final = "name a small text file; the name is relative to the manifest's directory"
_SHAPES: Final = {
    "text in quotes": '{key} = "..."',
    "a whole number": "{key} = 10, without quotes",
    "a number": "{key} = 2.5, without quotes",
    "true or false": "{key} = true, without quotes",
    "a list": '{key} = ["...", "..."]',
    "a table": "{key} = {{ name = value }}",
}


class ManifestError(RegistryError):
    """A manifest cannot be applied; the message begins with file and line."""


@dataclass(frozen=True)
class Source:
    """A manifest's text and what its references mean: files relative to `directory`, variables of `environment`."""

    name: str
    text: str = field(repr=False)
    directory: Path
    environment: Mapping[str, str] = field(repr=False)

    @cached_property
    def blocks(self) -> Mapping[str, Sequence[Sequence[tuple[int, str]]]]:
        """The numbered lines of each `[[kind]]`, by kind and in their order; the first one is the head."""
        found: dict[str, list[list[tuple[int, str]]]] = {}
        present, kind = None, ""
        for number, text in enumerate(self.text.splitlines(), start=1):
            head = _HEAD.match(text)
            if head is not None:
                kind, present = head[1], [(number, text)]
                found.setdefault(kind, []).append(present)
            elif _HEADER.match(text) and kind not in text:
                present = None
            elif present is not None:
                present.append((number, text))
        return found

    def error(self, line: int | None, message: str, hint: str) -> ManifestError:
        """An error that names the place."""
        return ManifestError(f"{self.name}:{line}: {message}" if line else f"{self.name}: {message}", hint)


@dataclass(frozen=True, slots=True)
class MissingVariable:
    """A secret whose environment variable is not set: it can only stay what it is."""

    variable: str
    key: str


SecretSpec = Secret | MissingVariable | None


class Table:
    """One `[[server]]`, `[[tenant]]` or `[[login]]`; every key has to be asked for, or `finish` complains."""

    def __init__(self, source: Source, kind: str, number: int, values: Mapping[str, Any]) -> None:
        self.source = source
        self.kind = kind
        self.warnings: list[str] = []
        self._values = values
        self._number = number
        self._known: set[str] = set()

    def error(self, key: str | None, message: str, hint: str) -> ManifestError:
        """An error at a key, or at the head of the table."""
        name = next((self._values[one] for one in ("slug", "name", "user") if one in self._values), None)
        label = self.kind if name is None else f"{self.kind} {name!r}"
        return self.source.error(self.line(key), f"{label}: {message}", hint)

    def line(self, key: str | None) -> int | None:
        """The line of a key, else that of the table's head."""
        blocks = self.source.blocks.get(self.kind, ())
        if self._number >= len(blocks):
            return None
        block = blocks[self._number]
        if key is not None:
            wanted = re.compile(rf"\s*['\"]?{re.escape(key)}['\"]?\s*=")
            for number, text in block:
                if wanted.match(text):
                    return number
        return block[0][0]

    def has(self, key: str) -> bool:
        self._known.add(key)
        return key in self._values

    def text(self, key: str) -> str | None:
        """A string, or None where the key is missing."""
        value: str | None = self._value(key, str, "text in quotes")
        return value

    def required(self, key: str) -> str:
        """A string that must be there."""
        value = self.text(key)
        if value is None:
            raise self.error(None, f"the key {key!r} is missing", f'add {key} = "..."')
        return value

    def integer(self, key: str) -> int | None:
        value: int | None = self._value(key, int, "a whole number")
        return value

    def number(self, key: str) -> float | None:
        value = self._value(key, (int, float), "a number")
        try:
            return None if value is None else float(value)
        except OverflowError:
            raise self.error(key, f"{key} is too large", "seconds, as a number") from None

    def boolean(self, key: str) -> bool | None:
        value: bool | None = self._value(key, bool, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings."""
        values: list[Any] | None = self._value(key, list, "a list")
        if values is None:
            return None
        if not all(isinstance(value, str) for value in values):
            raise self.error(key, f"{key} must be a list of texts in quotes", f'{key} = ["...", "..."]')
        return tuple(values)

    def choice(self, key: str, choices: type[E], default: E) -> E:
        """One of the values of an enumeration."""
        text = self.text(key)
        return default if text is None else self._choose(key, text, choices)

    def optional_choice(self, key: str, choices: type[E]) -> E | None:
        """The same, or None where the key is missing."""
        text = self.text(key)
        return None if text is None else self._choose(key, text, choices)

    def choices(self, key: str, choices: type[E], default: Iterable[E]) -> frozenset[E]:
        """Some of the values of an enumeration."""
        texts = self.texts(key)
        return frozenset(default if texts is None else (self._choose(key, text, choices) for text in texts))

    def table(self, key: str) -> Table:
        """A table within this one, empty where it is missing; its keys are found by their own names."""
        return Table(self.source, self.kind, self._number, self._value(key, dict, "a table") or {})

    def secret(self, key: str) -> SecretSpec:
        """A secret from `<key>_env`, `<key>_file`, or, with a warning, from the key itself."""
        variable, file, plain = self.text(f"{key}_env"), self.text(f"{key}_file"), self.text(key)
        if sum(value is not None for value in (variable, file, plain)) > 1:
            raise self.error(key, f"more than one of {key}, {key}_env and {key}_file", "keep one of them")
        if variable is not None:
            value = self.source.environment.get(variable)
            return Secret(value) if value else MissingVariable(variable, f"{key}_env")
        if file is not None:
            return Secret(self.content(f"{key}_file", file).removesuffix("\n").removesuffix("\r"))
        if plain is not None:
            self.warnings.append(
                str(
                    self.error(key, f"the {key} stands in the file; use {key}_env or {key}_file, or a verifier", _REFER)
                )
            )
            return Secret(plain)
        return None

    def content(self, key: str, name: str) -> str:
        """The content of a small file, named relative to the manifest."""
        path = self.source.directory / name
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise self.error(key, f"{name} is larger than {MAX_FILE_BYTES:,} bytes", _NAME_FILE)
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise self.error(key, f"{name} cannot be read: {error.strerror}", _NAME_FILE) from None
        except UnicodeDecodeError:
            raise self.error(key, f"{name} is not UTF-8 text", _NAME_FILE) from None
        except ValueError:
            raise self.error(key, f"{name!r} is no file's name", _NAME_FILE) from None

    def finish(self) -> None:
        """Complain about keys that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(self._known))}"
                raise self.error(key, f"unknown key {key!r}", hint)

    def _value(self, key: str, kind: Any, described: str) -> Any:
        self._known.add(key)
        value = self._values.get(key)
        # In Python, and not in TOML, a boolean is a number.
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise self.error(key, f"{key} must be {described}", _SHAPES[described].format(key=key))
        return value

    def _choose(self, key: str, text: str, choices: type[E]) -> E:
        try:
            return choices(text)
        except ValueError:
            raise self.error(key, f"{text!r} is no {key}", f"one of: {', '.join(choices)}") from None


def wanted_secret(spec: SecretSpec, table: Table, *, present: bool, rehearsal: bool) -> Secret | Keep | None:
    """What to do about a secret: one whose variable is not set stays, with a warning, where there is one.

    Raises ManifestError where there is none; a rehearsal goes on with a stand-in.
    """
    if not isinstance(spec, MissingVariable):
        return spec
    unset = table.error(
        spec.key, f"the environment variable {spec.variable} is not set", "set it to the secret, and apply again"
    )
    if present:
        table.warnings.append(f"{unset}, so the present secret stays as it is")
        return KEEP
    if rehearsal:
        table.warnings.append(f"{unset}, which applying needs")
        return Secret(spec.variable)
    raise unset


@contextmanager
def blamed(table: Table) -> Iterator[None]:
    """Name the file and line of what the registry refuses."""
    try:
        yield
    except ManifestError:
        raise
    except Invalid as error:
        raise table.error(error.field, error.message, error.hint) from None
    except RegistryError as error:
        raise table.error(None, error.message, error.hint) from None
