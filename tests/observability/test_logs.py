"""The log: for people, for machines, without secrets, and bounded under a storm."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase

import pytest
import structlog
from harness.references import ROOT

from proxy.observability.logs import LIMITED_EVENTS, MAX_SHOWN, EventDict, Limiter, configure_logs, mask

MOST = 100


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
    configure_logs(style="json", level="info", limiter=Limiter(MOST), stream=out)
    structlog.get_logger("x").info("client connected", tenant="acme")
    logging.getLogger("library").warning("careful: %s", "now")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["event"], first["tenant"], first["level"]) == ("client connected", "acme", "info")
    assert (second["event"], second["level"]) == ("careful: now", "warning")


def test_levels_below_the_set_one_are_silent() -> None:
    out = io.StringIO()
    configure_logs(style="console", level="warning", limiter=Limiter(MOST), stream=out)
    structlog.get_logger("x").info("quiet")
    structlog.get_logger("x").warning("loud")
    assert "loud" in out.getvalue()
    assert "quiet" not in out.getvalue()


def test_fields_that_sound_like_secrets_are_blanked() -> None:
    out = io.StringIO()
    configure_logs(style="json", level="info", limiter=Limiter(MOST), stream=out)
    structlog.get_logger("x").info("careless", password="pw1", admin_token="pw2", cancel_key="pw3", tenant="acme")
    assert "pw" not in out.getvalue().replace("password", "")
    assert "acme" in out.getvalue()


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_traceback_shows_neither_local_variables_nor_secrets_in_its_text(style: str) -> None:
    out = io.StringIO()
    configure_logs(style=style, level="info", limiter=Limiter(MOST), stream=out)
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
    configure_logs(style="console", level="info", limiter=Limiter(MOST), stream=out)
    structlog.get_logger("x").info("client refused", user="a\n2026 [info] forged \x1b[2J")
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()


class Storm:
    """A limiter, on a clock of its own; `log` says what comes through."""

    def __init__(self, most: int) -> None:
        self.now = 0.0
        self.limiter = Limiter(most, clock=lambda: self.now)

    def log(self, times: int, event: str = "client connected") -> list[EventDict]:
        through = []
        for _ in range(times):
            with suppress(structlog.DropEvent):
                through.append(self.limiter(None, "info", {"event": event}))
        return through


def test_a_storm_is_cut_and_the_next_line_tells_how_many_were_left_out() -> None:
    storm = Storm(MOST)
    assert len(storm.log(MOST + 50)) == MOST
    storm.now = 1.5
    assert storm.log(1) == [{"event": "client connected", "suppressed": 50}]
    assert storm.log(1) == [{"event": "client connected"}]
    assert storm.limiter.left_out == {"client connected": 50}


def test_what_was_left_out_is_told_although_no_line_of_its_kind_comes_any_more() -> None:
    storm, out = Storm(2), io.StringIO()
    configure_logs(style="json", level="info", limiter=storm.limiter, stream=out)
    storm.log(5)
    storm.limiter.tell()
    assert not out.getvalue(), "more may come in this second"
    storm.now = 1.0
    storm.limiter.tell()
    storm.limiter.tell()
    [told] = map(json.loads, out.getvalue().splitlines())
    assert (told["event"], told["of"], told["lines"]) == ("log lines left out", "client connected", 3)
    assert storm.log(1) == [{"event": "client connected"}], "it is told once"


def test_without_a_bound_an_audit_has_every_line_and_the_bound_may_change_at_any_time() -> None:
    storm = Storm(0)
    assert len(storm.log(10 * MOST)) == 10 * MOST
    storm.limiter.most = 5
    assert storm.log(10) == []
    storm.now = 1.0
    assert len(storm.log(10)) == 5


def test_other_events_are_never_cut() -> None:
    assert len(Storm(1).log(5, "internal error contained")) == 5


def logged_events() -> dict[str, set[str]]:
    """The events of the source by their whole names, with the levels at which they are logged; "" is one or another.

    What is put into a name stands as `*`.
    """
    found: dict[str, set[str]] = {}
    calls = [
        node
        for room in ("proxy", "registry")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and node.args
    ]
    for call in calls:
        match call.func:
            case ast.Attribute(ast.Name("log"), level):
                level = "error" if level == "exception" else level
            case ast.Name("say" | "says"):
                level = ""
            case _:
                continue
        for name in names_in(call.args[0]):
            found.setdefault(name, set()).add(level)
    return found


def names_in(expression: ast.expr) -> list[str]:
    match expression:
        case ast.Constant(str(name)):
            return [name]
        case ast.JoinedStr(parts):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)]
        case ast.IfExp(_, one, other):
            return [*names_in(one), *names_in(other)]
        case _:
            return []


def test_the_events_that_operators_read_about_are_those_that_are_logged() -> None:
    logged = logged_events()
    page = (ROOT / "docs" / "operations.md").read_text().partition("## What the log says")[2]
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("| `")]
    documented: set[str] = set()
    for _, names, levels, _, bounded, _ in rows:
        for event in re.findall("`([^`]+)`", names):
            documented.add(event)
            found = [at for name, at in logged.items() if fnmatchcase(event, name)]
            assert found, f"{event} is the name of no event"
            assert all(not level or level in levels for at in found for level in at), f"{event} has another level"
            assert (event in LIMITED_EVENTS) == (bounded == "yes"), event
    assert documented >= LIMITED_EVENTS, "an audit has to know what may be left out"
    assert logged.keys() >= LIMITED_EVENTS


HOSTILE = [
    ("a\nb", "a\\nb"),
    ("a\r\x1b[2Jb", "a\\r\\x1b[2Jb"),
    ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
    ("c1 \x9b31m \x85", "c1 \\x9b31m \\x85"),
    ("line\u2028and\u2029paragraph", "line\\u2028and\\u2029paragraph"),
    ("\u202egnp.exe\u2066\u200b\ufeff", "\\u202egnp.exe\\u2066\\u200b\\ufeff"),
    ("half \udce9 a pair", "half \\udce9 a pair"),
    ("\x00\x7f", "\\x00\\x7f"),
    ("Zoë 東京", "Zoë 東京"),
]


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.parametrize(("text", "written"), HOSTILE)
def test_what_does_not_print_is_spelled_out_in_every_part_of_a_line(style: str, text: str, written: str) -> None:
    out = io.StringIO()
    configure_logs(style=style, level="info", limiter=Limiter(MOST), stream=out)
    structlog.get_logger("x").info("client refused", user=text, names=[text], sums={text: 1}, error=ValueError(text))
    logging.getLogger("library").warning('role "%s"', text)
    try:
        raise ValueError(text)
    except ValueError:
        structlog.get_logger("x").exception("first", user=text)
        logging.getLogger("library").exception("second")
    lines = out.getvalue().split("\n")
    assert all(line.isprintable() for line in lines)
    shown = [json.loads(line) for line in lines if line] if style == "json" else []
    seen = "".join(f"{one}{one.get('user')}{one.get('exception')}" for one in shown) or out.getvalue()
    assert written in seen
    begun = [line for line in lines if line and not line.startswith(" ")]
    assert len(begun) == 4, "no line of a traceback begins where that of an event does"


def test_a_field_is_cut_where_a_stranger_has_sent_a_very_long_one() -> None:
    out = io.StringIO()
    configure_logs(style="console", level="info", limiter=Limiter(MOST), stream=out)
    structlog.get_logger("x").info("client refused", user="u" * 10_000)
    assert len(out.getvalue()) < MAX_SHOWN + 200
