"""The command line as a whole: what goes wrong is said without a traceback, with a hint and a status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.cli import main
from registry.secrets import generate_key

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `pgtenant ARGUMENTS` in an empty directory; returns status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGTENANT_ENCRYPTION_KEYS", generate_key("k1"))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pgtenant", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        status = ended.value.code
        return status if isinstance(status, int) else 0, said.out, said.err

    return invoke


def test_an_argument_that_is_no_text_is_a_mistake_of_usage(run: Run) -> None:
    status, _, errors = run("tenant", "show", "caf\udce9")
    assert status == 2
    assert "error: an argument is not UTF-8 text" in errors
    assert "hint:" in errors


@pytest.mark.parametrize("command", [("serve",), ("config", "check"), ("route", "explain", "-U", "app")])
def test_a_settings_file_that_is_missing_is_told_with_a_hint(run: Run, command: tuple[str, ...]) -> None:
    status, _, errors = run(*command, "--config", "none.toml")
    assert status == 1
    assert "error: settings file none.toml cannot be read" in errors
    assert "hint:" in errors


def test_names_with_brackets_are_shown_as_they_are(run: Run) -> None:
    run("registry", "upgrade")
    assert run("server", "add", "eu1", "--host", "h", "--role", "[/role]", "--no-test")[0] == 0
    assert run("tenant", "add", "acme", "--server", "eu1", "--database", "[/data]", "--no-test")[0] == 0
    status, output, _ = run("route", "explain", "--user", "[/user]", "--database", "acme")
    assert status == 1
    for name in ("[/user]", "[/data]", "[/role]"):
        assert name in output
    assert json.loads(run("route", "explain", "-U", "[/user]", "-d", "acme", "--json")[1])["user"] == "[/user]"


def test_an_explanation_says_that_a_database_is_shared_or_missing_in_words_that_people_read(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "node.toml").write_text('[routing]\nshared_tenant = "commons"\n')
    run("server", "add", "eu1", "--host", "h", "--role", "app", "--no-test")
    run("tenant", "add", "commons", "--server", "eu1", "--database", "everybodys", "--no-test")
    for slug, *more in (("newco", "--shared"), ("pending",)):
        run("tenant", "add", slug, *more)
        run("login", "add", "app", "--tenant", slug)
    asked = ("route", "explain", "-U", "app", "--config", "node.toml", "-d")
    status, output, _ = run(*asked, "newco")
    assert status == 0
    assert "tenant newco (READY), generation 2\nserver eu1 (h:5432), database everybodys, shared\n" in output
    status, output, _ = run(*asked, "pending")
    assert status == 1
    assert 'refused (57P03): tenant "pending" has no database yet' in output
    assert "None" not in output
    assert "hint: The operator gives it one with" in output


def test_a_checked_configuration_shows_where_the_registry_is_without_its_password(run: Run, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        '[registry]\nurl = "postgresql://u:sesame@127.0.0.1:1/reg"\n[pool]\npool_size = 7\n'
    )
    status, output, _ = run("config", "check", "--config", "node.toml", "--json")
    assert status == 0
    assert json.loads(output)["changed"] == {"registry.url": "postgresql://u@127.0.0.1:1/reg", "pool.pool_size": 7}
    assert "sesame" not in output


def test_a_registry_url_that_cannot_be_read_fails_the_check(run: Run, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[registry]\nurl = "postgresql://u:ses/ame@db/reg"\n')
    status, _, errors = run("config", "check", "--config", "node.toml")
    assert status == 1
    assert "error: the registry's URL cannot be read" in errors
    assert "ame" not in errors.replace("name", "")
