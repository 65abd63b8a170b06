"""The file of keys: what it may look like, who may read it, and what it has to do with the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.errors import SecretError
from registry.keyfile import MAX_FILE, find_keys
from registry.secrets import KEYS_VARIABLE, KeyRing, generate_key

ONE, TWO, THREE = (generate_key(name, random=bytes) for name in ("one", "two", "three"))


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "text",
    [f"{ONE},{TWO}", f"{ONE}\n{TWO}\n", f"# made in May\n\n{ONE} ,\r\n  {TWO}\n# the end"],
    ids=["as the variable", "a line each", "with comments"],
)
def test_keys_may_have_a_line_each(tmp_path: Path, text: str) -> None:
    found = find_keys(key_file(tmp_path, text), {})
    assert found is not None
    assert found.is_same(KeyRing.parse(f"{ONE},{TWO}"))


def test_the_files_keys_come_before_those_of_the_variable(tmp_path: Path) -> None:
    found = find_keys(key_file(tmp_path, f"{ONE}\n{TWO}"), {KEYS_VARIABLE: f"{TWO},{THREE}"})
    assert found is not None
    assert found.is_same(KeyRing.parse(f"{ONE},{TWO},{THREE}"))
    assert find_keys(None, {}) is None


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="two keys with the id 'one'"):
        find_keys(key_file(tmp_path, ONE), {KEYS_VARIABLE: generate_key("one")})


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o660, 0o620])
def test_a_file_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SecretError, match="may be read or changed by others") as refused:
        find_keys(key_file(tmp_path, ONE, mode), {})
    assert "chmod 600" in refused.value.hint


def test_a_file_that_its_group_may_read_is_told_unless_it_is_roots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = key_file(tmp_path, ONE, 0o640)
    assert find_keys(path, {}) is not None
    assert ("may be read by all of its group" in caplog.text) == (path.stat().st_uid != 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no key in"),
        ("# nothing yet\n", "there is no key in"),
        (f"{ONE}\nhunter2\n", r"key 2 of .*keys has no id"),
        ("one:hunter2!\n", r"key 1 of .*keys is not base64"),
        ("one:é\n", "is not plain text"),
        ("x" * (MAX_FILE + 1), "is larger than"),
    ],
)
def test_a_file_that_has_no_keys_is_refused_without_repeating_it(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SecretError, match=said) as refused:
        find_keys(key_file(tmp_path, text), {})
    assert "hunter2" not in str(refused.value)


def test_what_is_no_file_holds_up_nobody(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="is no file"):
        find_keys(tmp_path, {})
    with pytest.raises(SecretError, match="cannot be read"):
        find_keys(tmp_path / "missing", {})


def test_a_ring_opens_with_what_it_has_taken(tmp_path: Path) -> None:
    ring = KeyRing.parse(ONE)
    sealed = KeyRing.parse(TWO).seal(b"secret", "here")
    ring.take(KeyRing.parse(f"{TWO},{ONE}"))
    assert ring.open(sealed, "here") == b"secret"
    assert ring.is_current(sealed)
    assert ring.covers(KeyRing.parse(ONE))
    assert not KeyRing.parse(ONE).covers(ring)
    assert not ring.is_same(KeyRing.parse(f"{ONE},{TWO}")), "another one seals"
