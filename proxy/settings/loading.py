"""Where settings come from: the environment, else the file, else the default."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError

from proxy.settings.fields import Setting, SettingsError
from proxy.settings.model import Settings

ENV_PREFIX: Final = "PGTENANT_"
"""Variables `PGTENANT_<SECTION>__<NAME>` override the file."""

REGISTRY_VARIABLE: Final = "PGTENANT_REGISTRY"
"""The registry's URL, for a node as for the commands that change it."""

_PLAIN_NAME: Final = re.compile(r"[\w.@-]{1,63}")


def load_settings(path: Path | None, env: Mapping[str, str] = os.environ) -> Settings:
    """Read the file, if there is one, and the environment; raises SettingsError."""
    data = {} if path is None else _read(path)
    found = _from_environment(env)
    for setting, variable in found.items():
        section, name = setting
        values = data.setdefault(section, {})
        if isinstance(values, dict):
            values[name] = _parsed(setting, env[variable])
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise _explained(error, "the settings" if path is None else str(path), found) from None


def admin_token(settings: Settings) -> str | None:
    """The admin token, from the settings or its file; raises SettingsError when the file has none."""
    http = settings.http
    if http.admin_token is not None:
        return http.admin_token.get_secret_value()
    if http.admin_token_file is None:
        return None
    try:
        token = http.admin_token_file.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(
            f"http.admin_token_file {http.admin_token_file} cannot be read: {reason}",
            "Check that the file exists and that this user may read it.",
        ) from None
    if not token:
        raise SettingsError(
            f"http.admin_token_file {http.admin_token_file} has no token in its first line",
            "Write a long random word into it, or leave admin_token_file out to switch reloading over HTTP off.",
        )
    return token


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"settings file {path} cannot be read: {error.strerror}",
            "Give the right path with --config, or leave it out to run with the defaults.",
        ) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"settings file {path} is not TOML: {error}",
            "Compare it with configs/pgtenant.toml, which has every setting.",
        ) from None


def _from_environment(env: Mapping[str, str]) -> dict[Setting, str]:
    """Find the settings among the variables; returns the variable of each."""
    found: dict[Setting, str] = {}
    if env.get(REGISTRY_VARIABLE):
        found["registry", "url"] = REGISTRY_VARIABLE
    for variable in env:
        section, divider, name = variable.removeprefix(ENV_PREFIX).lower().partition("__")
        if not variable.startswith(ENV_PREFIX) or not divider:
            continue
        if section not in Settings.model_fields:
            raise SettingsError(f"environment variable {variable}: {_no_such((section,))}", _names_like((section,)))
        found[section, name] = variable
    return found


def _parsed(setting: Setting, text: str) -> object:
    """Read a variable as its setting's kind of value, lists with commas; what is no such value is refused later.

    Tables are lists of `name=value`.
    """
    section, name = setting
    field = _model_of(section).model_fields.get(name)
    if field is None:
        return text
    default = field.default
    if isinstance(default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(default, dict):
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        # What is no name may be a secret that was put in its place, and errors tell names.
        named = all(sign and _PLAIN_NAME.fullmatch(name.strip()) for name, sign, _ in pairs)
        return {key.strip(): value.strip() for key, _, value in pairs} if named else text
    if not isinstance(default, int | float):
        return text
    try:
        return TypeAdapter(type(default)).validate_strings(text.strip())
    except ValidationError:
        return text


def _explained(error: ValidationError, origin: str, variables: Mapping[Setting, str]) -> SettingsError:
    """Say in one sentence what is wrong with the first setting that is."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = tuple(str(part) for part in first["loc"])
    variable = variables.get((where[0], where[1])) if len(where) > 1 else None
    source = origin if variable is None else f"environment variable {variable}"
    if first["type"] == "extra_forbidden":
        return SettingsError(f"{source}: {_no_such(where)}", _names_like(where))
    if first["type"] == "model_type":
        return SettingsError(f"{source}: {where[0]} is a section", f"Write [{where[0]}] and its settings below it.")
    more = error.error_count() - 1
    also = f" (and {more} more)" if more else ""
    return SettingsError(
        f"{source}: {'.'.join(where)}: {first['msg'].removeprefix('Value error, ')}{also}",
        "configs/pgtenant.toml explains every setting; environment variables PGTENANT_<SECTION>__<NAME> override it.",
    )


def _no_such(where: tuple[str, ...]) -> str:
    return f"there is no setting {'.'.join(where)}"


def _names_like(where: tuple[str, ...]) -> str:
    names = sorted(Settings.model_fields if len(where) == 1 else _model_of(where[0]).model_fields)
    close = difflib.get_close_matches(where[-1], names, n=1)
    return f"Did you mean {close[0]}?" if close else f"It may be one of: {', '.join(names)}."


def _model_of(section: str) -> type[BaseModel]:
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model
