from __future__ import annotations

import importlib
import json
import os
import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import proxy
from proxy import version
from proxy.version import BuildInfo, build_info, is_native, listed_modules, source_digest

PACKAGE = Path(proxy.__file__).parent
TREE = Path(__file__).resolve().parents[2]
NATIVE = EXTENSION_SUFFIXES[0]


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up installation of two listed modules, as the build leaves it."""
    package = tmp_path / "proxy"
    package.mkdir()
    shutil.copy(version.__file__, package)
    (package / version.LIST_NAME).write_text("# what is compiled\nproxy/one.py\n\nproxy/two.py\n", encoding="utf-8")
    for name in ("one", "two"):
        (package / f"{name}.py").write_text(f"NAME = {name!r}\n", encoding="utf-8")
    record = {"digest": source_digest(tmp_path, ["proxy/one.py", "proxy/two.py"]), "commit": "abc123"}
    (package / version.RECORD_NAME).write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.setattr(version, "__file__", str(package / "version.py"))
    return package


def compile_(package: Path, *names: str) -> None:
    for name in names:
        (package / f"{name}{NATIVE}").touch()


def test_the_relay_under_test_is_the_expected_one() -> None:
    expected = os.environ.get("PGTENANT_EXPECT_RELAY")
    if expected is None:
        pytest.skip("PGTENANT_EXPECT_RELAY is not set: either relay will do")
    assert build_info().relay == expected
    assert build_info().source_matches
    for module in listed_modules(PACKAGE):
        loaded = importlib.import_module(module.removesuffix(".py").replace("/", "."))
        assert loaded.__file__ is not None
        assert loaded.__file__.endswith(NATIVE if expected == "compiled" else ".py"), loaded
        assert (Path(loaded.__file__).parent == (TREE / module).parent) is (expected == "interpreted"), loaded


def test_nothing_is_left_out_of_the_installation() -> None:
    files = [path for package in ("proxy", "registry") for path in (TREE / package).rglob("*") if path.is_file()]
    wanted = [path.relative_to(TREE) for path in files if path.suffix not in {".pyc", ".so"}]
    visible = [path for path in wanted if not any(part.startswith(".") for part in path.parts)]
    assert [str(path) for path in visible if not (PACKAGE.parent / path).is_file()] == []


def test_every_listed_module_exists_once() -> None:
    modules = listed_modules(PACKAGE)
    assert modules
    assert len(set(modules)) == len(modules)
    assert [module for module in modules if not (PACKAGE.parent / module).is_file()] == []


def test_all_modules_native_and_the_source_unchanged(installation: Path) -> None:
    compile_(installation, "one", "two")
    info = build_info()
    assert (info.relay, info.source_matches, info.commit) == ("compiled", True, "abc123")


def test_a_source_changed_since_it_was_compiled_is_told(installation: Path) -> None:
    compile_(installation, "one", "two")
    (installation / "two.py").write_text("NAME = 'three'\n", encoding="utf-8")
    info = build_info()
    assert (info.relay, info.source_matches) == ("compiled", False)
    assert "reinstall" in str(info)


def test_half_compiled_is_not_compiled(installation: Path) -> None:
    compile_(installation, "one")
    assert is_native(installation / "one.py")
    assert not is_native(installation / "two.py")
    info = build_info()
    assert (info.relay, info.source_matches) == ("interpreted", False)


def test_the_reason_for_running_interpreted_is_told(installation: Path) -> None:
    record = {"digest": "", "reason": version.NO_COMPILER, "commit": None}
    (installation / version.RECORD_NAME).write_text(json.dumps(record), encoding="utf-8")
    info = build_info()
    assert (info.relay, info.source_matches, info.reason) == ("interpreted", True, version.NO_COMPILER)
    assert version.NO_COMPILER in str(info)


def test_a_source_tree_has_no_record(installation: Path) -> None:
    (installation / version.RECORD_NAME).unlink()
    info = build_info()
    assert (info.relay, info.source_matches, info.reason, info.commit) == ("interpreted", True, None, None)


def test_the_line_for_people_says_what_runs() -> None:
    info = BuildInfo(version="1.2.3", relay="compiled", source_matches=True, python="CPython 3.11.7", commit="abc123")
    assert str(info) == "pgtenant 1.2.3 (relay compiled; CPython 3.11.7; commit abc123)"
