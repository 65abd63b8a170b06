"""The log: for people, for machines, without secrets, and bounded under a storm."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from proxy.observability.logs import EVENTS_PER_SECOND, LIMITED_EVENTS, Limiter, configure_logs, mask


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_is_a_line_per_event() -> None:
    out = io.StringIO()
    configure_logs(style="json", level="info", stream=out)
    structlog.get_logger("x").info("client connected", tenant="acme")
    logging.getLogger("library").warning("careful: %s", "now")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["event"], first["tenant"], first["level"]) == ("client connected", "acme", "info")
    assert (second["event"], second["level"]) == ("careful: now", "warning")


def test_levels_below_the_set_one_are_silent() -> None:
    out = io.StringIO()
    configure_logs(style="console", level="warning", stream=out)
    structlog.get_logger("x").info("quiet")
    structlog.get_logger("x").warning("loud")
    assert "loud" in out.getvalue()
    assert "quiet" not in out.getvalue()


def test_fields_that_sound_like_secrets_are_blanked() -> None:
    out = io.StringIO()
    configure_logs(style="json", level="info", stream=out)
    structlog.get_logger("x").info("careless", password="pw1", admin_token="pw2", cancel_key="pw3", tenant="acme")
    assert "pw" not in out.getvalue().replace("password", "")
    assert "acme" in out.getvalue()


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_traceback_shows_neither_local_variables_nor_secrets_in_its_text(style: str) -> None:
    out = io.StringIO()
    configure_logs(style=style, level="info", stream=out)
    found = "hunter" + "2"
    try:
        raise ValueError("cannot open postgresql://app:pa:ss@wo" + "rd@db.example.com/x")
    except ValueError:
        structlog.get_logger("x").exception("first")
        logging.getLogger("library").exception("second")
    assert found not in out.getvalue()
    assert "pa:ss" not in out.getvalue()
    assert out.getvalue().count("postgresql://app:********@db.example.com/x") >= 2


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("postgresql://app@db/x and http://h:80/a@b", "postgresql://app@db/x and http://h:80/a@b"),
        ("SCRAM-SHA-256$4096:c2FsdA==$a2V5:a2V5 is bad", "SCRAM-SHA-256$******** is bad"),
        ("md5" + "0f" * 16, "md5********"),
        ("the method md5 and scram-sha-256", "the method md5 and scram-sha-256"),
    ],
)
def test_what_looks_like_a_secret_is_masked_and_nothing_else(text: str, written: str) -> None:
    assert mask(text) == written


def test_a_name_chosen_by_a_client_cannot_forge_a_line() -> None:
    out = io.StringIO()
    configure_logs(style="console", level="info", stream=out)
    structlog.get_logger("x").info("client refused", user="a\n2026 [info] forged \x1b[2J")
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()


def test_a_storm_of_refusals_is_cut_and_counted() -> None:
    now = [0.0]
    limiter = Limiter(clock=lambda: now[0])
    passed = 0
    for _ in range(EVENTS_PER_SECOND + 50):
        try:
            limiter(None, "info", {"event": "client refused"})
            passed += 1
        except structlog.DropEvent:
            pass
    assert passed == EVENTS_PER_SECOND
    now[0] = 1.5
    assert limiter(None, "info", {"event": "client refused"})["suppressed"] == 50
    assert "suppressed" not in limiter(None, "info", {"event": "client refused"})


def test_other_events_are_never_cut() -> None:
    limiter = Limiter(most=1, clock=lambda: 0.0)
    for _ in range(5):
        assert limiter(None, "error", {"event": "internal error contained"})


def test_the_events_that_operators_read_about_are_those_that_are_logged() -> None:
    root = Path(__file__).parents[2]
    sources = "\n".join(path.read_text() for path in (root / "proxy").rglob("*.py"))
    page = (root / "docs" / "operations.md").read_text().partition("## What the log says")[2]
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    assert rows
    for row in rows:
        events = re.findall("`([^`]+)`", row[1])
        assert events, row
        for event in events:
            assert f'"{event}' in sources
            assert (event in LIMITED_EVENTS) == (row[4].strip() == str(EVENTS_PER_SECOND)), event
    for event in LIMITED_EVENTS:
        assert sources.count(f'"{event}"') > 1, f"{event} is limited and never logged"
