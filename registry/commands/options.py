"""Options that several commands share, and what they mean."""

from __future__ import annotations

import getpass
import os
import sys
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from registry.contract import Limits, Secret
from registry.domain.limits import COUNTS, LIMIT_NAMES
from registry.domain.models import KEEP, Keep
from registry.errors import Invalid, RegistryError
from registry.keyfile import find_keys
from registry.secrets import KeyRing

DEFAULT_URL: Final = "sqlite:///pgtenant.db"
URL_VARIABLE: Final = "PGTENANT_REGISTRY"
SETTING_VARIABLE: Final = "PGTENANT_REGISTRY__URL"
KEYS_FILE_VARIABLE: Final = "PGTENANT_REGISTRY__ENCRYPTION_KEYS_FILE"
STDIN: Final = "-"
MAX_PASSWORD_FILE: Final = 65_536

E = TypeVar("E", bound=StrEnum)

RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="URL",
        envvar=URL_VARIABLE,
        help="sqlite:///FILE or postgresql://user@host/database; else what --config says.",
        rich_help_panel="Where the registry is",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="PGTENANT_CONFIG",
        help="Settings of the node, which name the registry.",
        rich_help_panel="Where the registry is",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
NoTestOption = Annotated[bool, typer.Option("--no-test", help="Do not connect to a server to try this out.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse what would only be warned of.")]
PasswordFile = Annotated[
    str | None,
    typer.Option("--password-file", metavar="FILE", help="File with the password; `-` reads or asks for it."),
]
PasswordEnv = Annotated[
    str | None, typer.Option("--password-env", metavar="NAME", help="Environment variable with the password.")
]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


def choice(name: str, kind: type[E], text: str) -> Any:
    """An option that takes one of an enumeration's values; another one is refused in the same words by every typer."""

    def parse(value: str) -> E:
        try:
            return kind(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(kind)}", param_hint=repr(name)) from None

    return typer.Option(name, parser=parse, metavar=f"[{'|'.join(kind)}]", autocompletion=lambda: list(kind), help=text)


def registry_url(registry: str | None, config: Path | None, environment: Mapping[str, str] = os.environ) -> str:
    """Where the registry is: the option, the environment, the settings file, or the default.

    Raises RegistryError for a settings file that cannot be read.
    """
    return registry or environment.get(SETTING_VARIABLE) or _configured(config, "url") or DEFAULT_URL


def registry_keys(config: Path | None, environment: Mapping[str, str] = os.environ) -> KeyRing | None:
    """The registry's keys, in the file that the environment or the settings file names, and in the environment.

    Raises RegistryError for a file that cannot be used.
    """
    file = environment.get(KEYS_FILE_VARIABLE) or _configured(config, "encryption_keys_file")
    return find_keys(Path(file) if file else None, environment)


def _configured(config: Path | None, setting: str) -> str | None:
    """A setting of the section [registry], None where it is not there."""
    if config is None:
        return None
    try:
        section: Any = tomllib.loads(config.read_text(encoding="utf-8")).get("registry", {})
    except OSError as error:
        raise RegistryError(f"settings file {config} cannot be read: {error.strerror}", "check --config") from None
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"settings file {config} is not TOML: {error}", "check --config") from None
    value = section.get(setting) if isinstance(section, dict) else None
    return value if isinstance(value, str) else None


def read_secret(
    name: str,
    *,
    file: str | None,
    variable: str | None,
    stdin: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Secret | None:
    """The secret from the one source that was named, None where none was; raises Invalid."""
    if sum((file is not None, variable is not None, stdin)) > 1:
        raise Invalid(name, f"more than one source for the {name}", "name one of file, variable and standard input")
    if variable is not None:
        text = environment.get(variable, "")
        source = f"the environment variable {variable}"
    elif stdin or file == STDIN:
        text, source = _from_terminal(name), "standard input"
    elif file is not None:
        text, source = _from_file(name, Path(file)), file
    else:
        return None
    if not text:
        raise Invalid(name, f"there is no {name} in {source}", "put it there, without quotes")
    return Secret(text)


def read_limits(texts: list[str], before: Limits) -> Limits:
    """Limits from `name=value`; `default` as value takes one away.  Raises Invalid."""
    values: dict[str, Any] = {name: getattr(before, name) for name in LIMIT_NAMES}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in values:
            raise Invalid("limit", f"{text!r} is no limit", f"NAME=VALUE, with one of: {', '.join(LIMIT_NAMES)}")
        try:
            values[name] = None if value == "default" else int(value) if name in COUNTS else float(value)
        except ValueError:
            raise Invalid("limit", f"{value!r} is no value for {name}", "a number, or `default`") from None
    return Limits(**values)


def given(value: Any, *, cleared: bool = False) -> Any | Keep:
    """The value of an option for a change: None, where it was asked to be cleared, KEEP where it was left out.

    Raises Invalid where it is given and cleared at once.
    """
    if cleared and value is not None:
        raise Invalid("option", "a value is given and taken away at once", "leave out one of the two options")
    if cleared:
        return None
    return KEEP if value is None else value


def _from_terminal(name: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"{name}: ")
    return _line(name, sys.stdin.read(MAX_PASSWORD_FILE + 1), "standard input")


def _from_file(name: str, path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return _line(name, file.read(MAX_PASSWORD_FILE + 1), str(path))
    except OSError as error:
        raise Invalid(name, f"{path} cannot be read: {error.strerror}", "name a file that this user may read") from None
    except UnicodeDecodeError:
        raise Invalid(name, f"{path} is not UTF-8 text", "name a file with the secret alone in it") from None


def _line(name: str, text: str, where: str) -> str:
    if len(text) > MAX_PASSWORD_FILE:
        raise Invalid(name, f"{where} has more than {MAX_PASSWORD_FILE} characters", "give the secret alone")
    return text.removesuffix("\n").removesuffix("\r")
