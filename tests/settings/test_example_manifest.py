"""The example manifest in configs/ is one that the command of the README accepts."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import typer
from harness.references import ROOT
from typer.testing import CliRunner

from registry import cli
from registry.secrets import generate_key

MANIFEST = ROOT / "configs" / "tenants.toml"


def test_a_rehearsal_of_the_example_shows_all_that_it_would_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()
    cli.register(app)
    monkeypatch.setenv("PGTENANT_REGISTRY", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("PGTENANT_ENCRYPTION_KEYS", generate_key("k1"))
    result = CliRunner().invoke(app, ["registry", "apply", str(MANIFEST), "--dry-run"])
    assert result.exit_code == 0, result.output
    objects = sum(len(of_one_kind) for of_one_kind in tomllib.loads(MANIFEST.read_text()).values())
    assert f"{objects} to add, 0 to change, 0 to remove" in result.output


def test_the_example_holds_no_secret() -> None:
    for of_one_kind in tomllib.loads(MANIFEST.read_text()).values():
        for item in of_one_kind:
            assert not {"password", "role_password", "admin_password"} & set(item)
