"""What settings are made of: kinds of values, and whether a running node takes a new value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo

Setting = tuple[str, str]
"""A setting's section and name."""

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
# Models are strict, so that a string is no number and a number no switch; these are written as strings and lists.
File = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Verifiers = dict[Annotated[str, Field(min_length=1, max_length=63)], SecretStr]

_NEEDS_RESTART: Final = "needs_restart"


class SettingsError(Exception):
    """The settings cannot be used; the text says where and why, `hint` what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class Section(BaseModel):
    """A section of `pgtenant.toml`, each of its fields made by `live` or `fixed`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


def live(*, default: Any, description: str, **rules: Any) -> Any:
    """A setting that a reload changes; `rules` are those of pydantic's `Field`.

    Whoever adds one sees to it that a reload brings the new value to where it is used.
    """
    return Field(default=default, description=description, json_schema_extra={_NEEDS_RESTART: False}, **rules)


def fixed(*, default: Any, description: str, **rules: Any) -> Any:
    """A setting that keeps the value that the node started with; a reload that finds another one says so."""
    return Field(default=default, description=description, json_schema_extra={_NEEDS_RESTART: True}, **rules)


def needs_restart(field: FieldInfo) -> bool:
    """Whether a field is `fixed`; raises TypeError for one that is neither fixed nor live."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or _NEEDS_RESTART not in extra:
        raise TypeError("make a setting by `live` or `fixed`")
    return bool(extra[_NEEDS_RESTART])
