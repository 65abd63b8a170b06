"""The table of errors: complete, consistent, and safe against what clients put into names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from proxy import errors
from proxy.errors import ERRORS, MAX_FIELD_CHARS, ErrorSpec, Failure, Severity

LEVELS = {"debug", "info", "warning", "error"}


def every_spec() -> list[ErrorSpec]:
    return list(ERRORS.values())


def sample(spec: ErrorSpec) -> dict[str, Any]:
    numbers = {"seconds": 2.5, "limit": 10, "pinned": 3, "pool_size": 4}
    return {name: numbers.get(name, f"some {name}") for name in spec.fields}


def test_every_constant_of_the_module_is_in_the_table_under_its_own_name() -> None:
    constants = {name.lower(): value for name, value in vars(errors).items() if isinstance(value, ErrorSpec)}
    assert constants == dict(ERRORS)


def test_every_error_of_the_table_is_one_that_the_proxy_can_tell() -> None:
    table = Path(errors.__file__).parent
    sources = [path for path in table.parent.rglob("*.py") if path.parent != table]
    words = {word for path in sources for word in re.findall(r"[A-Z_]{4,}", path.read_text())}
    assert {name.upper() for name in ERRORS} <= words


@pytest.mark.parametrize("spec", every_spec(), ids=lambda spec: spec.name)
def test_a_spec_has_a_valid_sqlstate_level_and_a_hint_that_says_what_to_do(spec: ErrorSpec) -> None:
    assert re.fullmatch(r"[0-9A-Z]{5}", spec.sqlstate)
    assert spec.log_level in LEVELS
    assert not spec.text.endswith(".")
    assert spec.hint is not None and spec.hint.endswith(".")


@pytest.mark.parametrize("spec", every_spec(), ids=lambda spec: spec.name)
def test_a_failure_fills_text_and_hint_of_its_spec(spec: ErrorSpec) -> None:
    failure = Failure(spec, **sample(spec))
    assert failure.sqlstate == spec.sqlstate
    assert failure.severity is spec.severity
    assert "{" not in failure.message
    assert failure.hint is not None and "{" not in failure.hint
    assert str(failure) == failure.message


def test_a_missing_field_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        Failure(errors.UNKNOWN_TENANT)


def test_a_name_chosen_by_a_client_cannot_break_out_of_the_text() -> None:
    failure = Failure(errors.UNKNOWN_TENANT, tenant="a\x00b\r\nc\x1b[31m\u202e\udc80{tenant!r}")
    assert failure.message == 'there is no tenant "a?b??c?[31m??{tenant!r}"'


def test_a_long_name_is_cut() -> None:
    failure = Failure(errors.INVALID_PASSWORD, user="u" * 10_000)
    assert len(failure.message) < MAX_FIELD_CHARS + 100


def test_a_hint_can_be_replaced_and_an_error_made_fatal() -> None:
    failure = Failure(errors.SERVER_DOWN, hint="Wait.", closing=True, tenant="acme", reason="connection refused")
    assert (failure.hint, failure.severity) == ("Wait.", Severity.FATAL)


def test_before_login_only_uniform_codes_tell_about_users_and_tenants() -> None:
    """An attacker must not learn from a code or text whether a user or tenant exists."""
    assert errors.INVALID_PASSWORD.fields == {"user"}
    assert errors.INVALID_PASSWORD.sqlstate == "28P01"


def test_seconds_are_written_without_trailing_zeros() -> None:
    failure = Failure(errors.QUEUE_TIMEOUT, tenant="acme", seconds=120.0, reason="all 20 are in use")
    assert failure.message == 'no database connection for tenant "acme" became free within 120 s: all 20 are in use'
