from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from harness.process import run

TREE = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))
TEXT = {".py", ".toml", ".md", ".txt", ".ini", ".mako", ".sql", ".yml", ".yaml", ""}


@pytest.mark.parametrize("contract", [contract["id"] for contract in PROJECT["tool"]["importlinter"]["contracts"]])
def test_rooms_import_only_what_they_may(contract: str) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--contract", contract, "--no-cache", "--no-logo"]
    checked = run(command, cwd=TREE, seconds=120)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_extension_module_shadows_the_source() -> None:
    assert [str(path) for package in ("proxy", "registry") for path in (TREE / package).rglob("*.so")] == []


def test_every_package_directory_is_a_package() -> None:
    folders = {path.parent for package in ("proxy", "registry") for path in (TREE / package).rglob("*.py")}
    assert sorted(str(folder) for folder in folders if not (folder / "__init__.py").is_file()) == []


def test_no_tracked_file_names_a_home_directory() -> None:
    listing = run(["git", "ls-files", "-z"], cwd=TREE)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    home = re.compile(r"/(?:home|Users)/\w+/|/root/\w|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
    found = [
        name
        for name in listing.stdout.split("\0")
        if name and Path(name).suffix in TEXT and (TREE / name).is_file()
        if name != "tests/packaging/test_architecture.py"
        if home.search((TREE / name).read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []
