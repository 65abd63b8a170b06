"""docs/from-pgbouncer.md names only what there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from typer.testing import CliRunner

from proxy.admin.catalogue import ORDERS, TOPICS
from proxy.cli import make_app
from proxy.settings import Settings
from registry.contract import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "from-pgbouncer.md").read_text()
WORDS = re.findall("`([^`]+)`", PAGE)
SETTINGS = {
    f"{section}.{name}"
    for section, field in Settings.model_fields.items()
    for name in getattr(field.annotation, "model_fields", {})
}


def cells(table: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [row for row in rows if not set(row[0]) <= set("-: ") and "PgBouncer" not in row[0]]


def test_every_setting_that_it_names_exists() -> None:
    sections = "|".join(Settings.model_fields)
    named = {word for word in WORDS if re.fullmatch(rf"({sections})\.[a-z_]+", word)}
    assert len(named) > 30
    assert named - SETTINGS == set()


def test_every_limit_that_it_names_exists() -> None:
    named = set(re.findall(r"--limit ([a-z_]+)", PAGE))
    assert len(named) > 10
    assert named - {field.name for field in fields(Limits)} == set()


def test_every_command_and_option_that_it_names_exists() -> None:
    commands = [word.split() for word in WORDS if word.startswith("pgtenant ")]
    assert len(commands) > 10
    known = set().union(*(options([one, "add"]) for one in ("server", "tenant", "login")))
    for _, *words in commands:
        path = words[:1] if words[0] == "serve" else words[:2]
        assert {word for word in words if word.startswith("--")} <= options(path), words
    assert {word.split()[0] for word in WORDS if word.startswith("--")} <= known


def options(path: list[str]) -> set[str]:
    shown = CliRunner().invoke(make_app(), [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0, path
    return set(re.findall(r"--[a-z0-9-]+", shown.output))


def test_every_command_of_the_console_that_it_gives_exists() -> None:
    console = PAGE.partition("## The console\n")[2].partition("Columns that have another name")[0]
    given = [word for row in cells(console) for word in re.findall("`([^`]+)`", row[1]) if word.split()[0].isupper()]
    assert len(given) > 5
    for word in given:
        assert word in ORDERS or word.split()[1] in TOPICS, word


def test_every_column_that_it_gives_exists() -> None:
    sections = re.findall(r"^### SHOW (\w+)\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert len(sections) >= 5
    for topic, section in sections:
        columns = {column.name for column in TOPICS[topic].columns}
        given = [re.match(" *`([^`]+)`", row[1]) for row in cells(section) if row[1].strip()]
        assert given
        assert {found[1] if found else None for found in given} <= columns, topic
        renamed = {name for row in cells(section) if not row[1].strip() for name in re.findall("`([^`]+)`", row[0])}
        assert renamed & columns == set(), f"SHOW {topic} has what the page says it lacks"
