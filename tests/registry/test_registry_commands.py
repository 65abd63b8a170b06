from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from harness.databases import Database
from harness.shared import ca_file
from typer.testing import CliRunner, Result

from proxy.demo.facts import ServerFacts
from registry import cli
from registry.secrets import generate_key
from registry.verifiers import build_verifier, fits

Run = Callable[..., Result]
TESTING = (("server", "add"), ("server", "set"), ("tenant", "add"), ("tenant", "set"), ("registry", "apply"))
"""The commands that try servers out; most tests here are about servers that there are not."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `pgtenant ARGUMENTS` on an SQLite registry of this test's own; `tests`: and let it try servers out."""
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
    cli.register(app)
    monkeypatch.setenv("PGTENANT_REGISTRY", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("PGTENANT_ENCRYPTION_KEYS", generate_key("k1"))
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, stdin: str = "", status: int = 0, tests: bool = False) -> Result:
        more = ["--no-test"] if arguments[:2] in TESTING and "--help" not in arguments and not tests else []
        result = CliRunner().invoke(app, [*arguments, *more], input=stdin)
        assert result.exit_code == status, result.output
        return result

    return invoke


@pytest.fixture
def filled(run: Run) -> Run:
    run(
        "server",
        "add",
        "eu1",
        "--host",
        "10.0.0.1",
        "--role",
        "app",
        "--role-password-file",
        "-",
        stdin="role secret\n",
    )
    run("tenant", "add", "acme", "--server", "eu1", "-d", "acme_data", "--alias", "acme-old", "--limit", "pool_size=4")
    run("login", "add", "app", "-t", "acme", "--password-stdin", stdin="sesame\n")
    return run


def answer(run: Run, *arguments: str, **options: Any) -> Any:
    return json.loads(run(*arguments, "--json", **options).stdout)


def test_lists_show_what_was_added(filled: Run) -> None:
    for group, expected in (("server", "10.0.0.1:5432"), ("tenant", "acme_data"), ("login", "scram-sha-256")):
        assert expected in filled(group, "list").stdout
    assert answer(filled, "server", "list")[0]["hosts"] == ["10.0.0.1:5432"]
    tenant = answer(filled, "tenant", "show", "acme-old")
    assert (tenant["slug"], tenant["limits"], tenant["logins"]) == ("acme", {"pool_size": 4}, ["app"])
    assert answer(filled, "server", "show", "eu1")["tenants"] == ["acme"]


def test_how_users_prove_who_they_are_is_set_and_taken_back(filled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKER", "asker secret")
    filled("server", "set", "eu1", "--auth-role", "asker", "--auth-password-env", "ASKER", "--auth-database", "x")
    server = answer(filled, "server", "show", "eu1")
    assert (server["auth_role"], server["auth_password"], server["auth_database"]) == ("asker", True, "x")
    filled("server", "set", "eu1", "--no-auth-role")
    server = answer(filled, "server", "show", "eu1")
    assert (server["auth_role"], server["auth_password"], server["auth_database"]) == (None, False, None)
    filled("tenant", "set", "acme", "--verifiers", "server", "--network", "10.0.0.0/8", "--network", "::1")
    tenant = answer(filled, "tenant", "show", "acme")
    assert (tenant["verifiers"], tenant["networks"]) == ("server", ["10.0.0.0/8", "::1/128"])
    filled("tenant", "set", "acme", "--no-verifiers", "--no-network")
    tenant = answer(filled, "tenant", "show", "acme")
    assert (tenant["verifiers"], tenant["networks"]) == (None, [])


def test_a_login_by_certificate_alone_has_no_password_to_be_told(filled: Run) -> None:
    made = answer(filled, "login", "add", "batch", "-t", "acme", "--method", "cert", "--certificate", "dn:CN=batch,O=A")
    assert (made["methods"], made["certificate"]) == (["cert"], "dn:CN=batch,O=A")
    assert "password" not in made


def test_empty_lists_say_how_to_begin(run: Run) -> None:
    run("registry", "upgrade")
    for group in ("server", "tenant", "login"):
        assert f"pgtenant {group} add" in run(group, "list").stdout
        assert answer(run, group, "list") == []


def test_nothing_that_is_printed_holds_a_secret(filled: Run) -> None:
    filled("tenant", "set", "acme", "--role", "own", "--role-password-file", "-", stdin="own secret")
    for command in (
        ("server", "list"),
        ("server", "show", "eu1"),
        ("tenant", "show", "acme"),
        ("login", "list"),
        ("registry", "export"),
    ):
        for more in ((), ("--json",)):
            output = filled(*command, *more).output
            assert not any(secret in output for secret in ("role secret", "own secret", "sesame"))


def test_a_made_password_is_printed_once(filled: Run) -> None:
    added = filled("login", "add", "made", "--tenant", "acme")
    password = added.stdout.strip()
    assert len(password) == 24
    assert "not shown again" in added.stderr
    assert password not in filled("login", "list", "--json").output
    rotated = answer(filled, "login", "rotate", "made", "--tenant", "acme")
    assert rotated["password"] not in {password, ""}
    given = filled("login", "rotate", "made", "-t", "acme", "--password-stdin", stdin="chosen by hand\n")
    assert given.stdout == ""
    assert "chosen by hand" not in given.output


def test_a_password_may_come_from_a_file_a_variable_or_a_verifier(
    filled: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pw").write_text("from a file\n")
    monkeypatch.setenv("PW", "from a variable")
    (tmp_path / "verifier").write_text(build_verifier("elsewhere", b"0123456789abcdef") + "\n")
    filled("login", "add", "a", "--all-tenants", "--password-file", "pw")
    filled("login", "add", "b", "--all-tenants", "--password-env", "PW")
    filled("login", "add", "c", "--all-tenants", "--verifier-file", "verifier")
    exported = filled("registry", "export").stdout
    verifiers = [line.split('"')[1] for line in exported.splitlines() if line.startswith("verifier")]
    for password in ("from a file", "from a variable", "elsewhere", "sesame"):
        assert any(fits(password, verifier) for verifier in verifiers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tenant", "show", "nobody"), "there is no tenant 'nobody'"),
        (("server", "remove", "eu1", "--yes"), "server 'eu1' has 1 tenant"),
        (("login", "add", "app", "-t", "acme"), "there is a login 'app' of tenant 'acme' already"),
        (("login", "rotate", "x", "-t", "acme"), "there is no login 'x' of tenant 'acme'"),
        (("registry", "apply", "none.toml"), "none.toml cannot be read"),
        (("tenant", "list", "--registry", "sqlite:///none.db"), "there is no registry sqlite:///none.db"),
        (("tenant", "list", "--registry", "postgresql://u:secret@127.0.0.1:1/x"), "the registry cannot be reached"),
        (("secrets", "generate-key", "--id", "a b"), "a key's id must have"),
    ],
)
def test_what_is_refused_is_answered_with_a_hint(filled: Run, arguments: tuple[str, ...], message: str) -> None:
    _explained(filled(*arguments, status=1), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tenant", "add", "Acme"), "'Acme' is no slug"),
        (("tenant", "set", "acme", "--limit", "pool=3"), "'pool=3' is no limit"),
        (("tenant", "set", "acme", "--limit", "weight=3"), "'weight=3' is no limit"),
        (("tenant", "set", "acme", "--shared"), "from its own database and from the shared one"),
        (("tenant", "set", "acme", "--shared", "--no-shared"), "a value is given and taken away at once"),
        (("tenant", "set", "acme", "--limit", "pool_size=many"), "'many' is no value for pool_size"),
        (("server", "add", "eu2"), "a server needs a host"),
        (("server", "add", "eu2", "--host", "a:b"), "'a:b' is no address"),
        (("server", "set", "eu1", "--reserve", "-1"), "reserve is -1"),
        (("server", "set", "eu1", "--tls-ca", "none.pem"), "none.pem cannot be read"),
        (("server", "set", "eu1", "--auth-role", "a", "--no-auth-role"), "a value is given and taken away at once"),
        (("tenant", "set", "acme", "--alias", "a", "--no-alias"), "a value is given and taken away at once"),
        (("login", "set", "app", "-t", "acme", "--certificate", "a", "--no-certificate"), "a value is given and taken"),
        (("server", "remove", "eu1"), "this needs a confirmation"),
        (("tenant", "remove", "acme"), "this needs a confirmation"),
        (("login", "add", "app"), "a login is of one tenant or of all"),
        (("login", "add", "x", "-t", "acme", "--password-stdin"), "there is no password in standard input"),
        (("login", "add", "x", "-t", "acme", "--password-env", "NONE"), "there is no password in the environment"),
        (("tenant", "list", "--registry", "mysql://secret@x/y"), "the registry's URL begins with 'mysql'"),
    ],
)
def test_a_value_that_breaks_a_rule_is_a_mistake_of_usage(
    filled: Run, arguments: tuple[str, ...], message: str
) -> None:
    _explained(filled(*arguments, status=2), message)


def _explained(result: Result, message: str) -> None:
    assert message in result.stderr
    assert "hint:" in result.stderr
    assert "secret@" not in result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_an_unknown_choice_is_answered_with_those_there_are(filled: Run) -> None:
    answer = " ".join(filled("server", "set", "eu1", "--tls", "sure", status=2).stderr.split())
    assert "Invalid value for '--tls': 'sure' is not one of disable, prefer, require" in answer.replace("│ ", "")


def test_other_keys_than_the_registrys_are_refused_before_anything_is_sealed(
    filled: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTENANT_ENCRYPTION_KEYS", generate_key("other"))
    result = filled("server", "set", "eu1", "--role-password-file", "-", stdin="x", status=1)
    assert "'k1', which is not on the key ring" in result.stderr
    monkeypatch.delenv("PGTENANT_ENCRYPTION_KEYS")
    result = filled("server", "set", "eu1", "--role-password-file", "-", stdin="x", status=1)
    assert "pgtenant secrets generate-key" in result.stderr


def test_a_verifier_for_the_console_is_made_and_kept_nowhere(run: Run, tmp_path: Path) -> None:
    assert fits("sesame", run("secrets", "verifier", "--password-stdin", stdin="sesame\n").stdout.strip())
    made = answer(run, "secrets", "verifier")
    assert fits(made["password"], made["verifier"])
    assert list(tmp_path.iterdir()) == []


def test_keys_are_rotated(filled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    new = filled("secrets", "generate-key", "--id", "k2").stdout.strip()
    monkeypatch.setenv("PGTENANT_ENCRYPTION_KEYS", f"{new},{os.environ['PGTENANT_ENCRYPTION_KEYS']}")
    assert answer(filled, "secrets", "rotate") == {"sealed_anew": 2, "secrets": 2}
    monkeypatch.setenv("PGTENANT_ENCRYPTION_KEYS", new)
    assert "have the first key already" in filled("secrets", "rotate").stderr


def test_tenants_are_suspended_resumed_changed_and_removed(filled: Run) -> None:
    assert answer(filled, "tenant", "suspend", "acme")["state"] == "SUSPENDED"
    assert [one["slug"] for one in answer(filled, "tenant", "list", "--state", "SUSPENDED")] == ["acme"]
    assert answer(filled, "tenant", "resume", "acme")["state"] == "READY"
    changed = answer(
        filled, "tenant", "set", "acme", "-d", "other", "--limit", "pool_size=default", "--limit", "max_clients=3"
    )
    assert (changed["database"], changed["limits"], changed["generation"]) == ("other", {"max_clients": 3}, 2)
    assert answer(filled, "tenant", "set", "acme", "--no-database", "--no-alias")["state"] == "PENDING"
    filled("tenant", "remove", "acme", "--yes")
    assert answer(filled, "login", "list") == []
    filled("server", "remove", "eu1", "--yes")


def test_a_server_that_is_drained_takes_no_tenants_that_it_has_not(filled: Run) -> None:
    assert answer(filled, "server", "drain", "eu1")["draining"] is True
    filled("tenant", "add", "initech")
    for command in (("add", "globex"), ("set", "initech")):
        refused = filled("tenant", *command, "--server", "eu1", "-d", "x", status=1).stderr
        assert "server 'eu1' is draining: it takes no new tenants" in refused
        assert "`pgtenant server undrain eu1`" in refused
        assert answer(filled, "tenant", *command, "--server", "eu1", "-d", "x", "--force")["server"] == "eu1"
    filled("tenant", "set", "acme", "--server", "eu1", "-d", "other")
    assert answer(filled, "server", "undrain", "eu1")["draining"] is False
    filled("tenant", "add", "hooli", "--server", "eu1", "-d", "hooli")


def test_a_tenant_is_served_from_the_shared_database_when_it_says_so_and_not_before(filled: Run) -> None:
    taken = answer(filled, "tenant", "set", "acme", "--no-database")
    assert (taken["state"], taken["shared"]) == ("PENDING", False)
    refused = filled("tenant", "add", "newco").stderr
    assert "added tenant 'newco', PENDING; `pgtenant tenant set newco --server NAME --database NAME`" in refused
    shared = answer(filled, "tenant", "set", "newco", "--shared")
    assert (shared["state"], shared["shared"], shared["generation"]) == ("READY", True, 2)
    assert "(shared)" in filled("tenant", "list").stdout
    both = filled("tenant", "set", "newco", "--server", "eu1", "-d", "newco_data", status=2).stderr
    assert "from its own database and from the shared one" in both
    moved = answer(filled, "tenant", "set", "newco", "--server", "eu1", "-d", "newco_data", "--no-shared")
    assert (moved["state"], moved["shared"], moved["generation"]) == ("READY", False, 3)
    added = answer(filled, "tenant", "add", "other", "--shared")
    assert (added["state"], added["shared"]) == ("READY", True)
    assert answer(filled, "tenant", "suspend", "other")["state"] == "SUSPENDED"
    assert answer(filled, "tenant", "resume", "other")["state"] == "READY"
    assert answer(filled, "tenant", "set", "other", "--no-shared")["state"] == "PENDING"


def test_an_export_is_applied_and_shown_as_a_diff(filled: Run, tmp_path: Path) -> None:
    filled("registry", "export", "--output", "out.toml")
    assert (tmp_path / "out.toml").stat().st_mode & 0o777 == 0o600
    assert "Nothing to change." in filled("registry", "apply", "out.toml").stdout
    filled("tenant", "set", "acme", "--limit", "pool_size=9")
    filled("tenant", "add", "more")
    rehearsed = filled("registry", "apply", "out.toml", "--dry-run", "--prune").stdout
    assert "~ tenant acme\n    pool_size: 9 -> 4\n" in rehearsed
    assert "- tenant more" in rehearsed
    assert "0 to add, 1 to change, 1 to remove.  Nothing was changed." in rehearsed
    applied = answer(filled, "registry", "apply", "out.toml", "--prune")
    assert [(one["action"], one["name"]) for one in applied["differences"]] == [("remove", "more"), ("change", "acme")]


def test_the_settings_file_says_where_the_registry_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGTENANT_REGISTRY")
    (tmp_path / "node.toml").write_text(f'[registry]\nurl = "sqlite:///{tmp_path}/other.db"\n')
    assert answer(run, "registry", "upgrade", "--config", "node.toml")["before"] is None
    assert "already" in run("registry", "upgrade", "--config", "node.toml").stderr
    assert (tmp_path / "other.db").exists()


def test_a_server_is_tried_out(run: Run, pg17: ServerFacts, pg18: ServerFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    for server, name, tls in ((pg17, "new", "verify-ca"), (pg18, "old", "disable")):
        monkeypatch.setenv("PW", server.password)
        more = ("--tls-ca", str(ca_file(server))) if tls == "verify-ca" else ()
        run("server", "add", name, "--host", f"{server.host}:{server.port}", "--tls", tls, *more,
            "--admin", server.superuser, "--admin-password-env", "PW", "--max-connections", "100000")  # fmt: skip
    found = answer(run, "server", "test", "new")
    (probe,) = found["probes"]
    assert found["ok"] is True
    assert probe["version"].startswith("17")
    assert probe["tls"].startswith("TLSv1")
    assert probe["may_create_databases"] is True
    assert 0 < probe["latency"] < 1
    told = {check["name"]: check for check in found["checks"] if check["status"] != "ok"}
    assert list(told) == ["max_connections"]
    assert "the registry allows 100000 connections" in told["max_connections"]["text"]
    assert f"pgtenant server set new --max-connections {probe['max_connections']}" in told["max_connections"]["hint"]
    text = run("server", "test", "old")
    assert "PostgreSQL 18" in text.stdout
    assert "none" in text.stdout


def test_a_server_that_cannot_be_asked_for_verifiers_is_found_out(
    run: Run, pg18: ServerFacts, make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database(pg18)
    monkeypatch.setenv("PW", pg18.password)
    monkeypatch.setenv("ROLE_PW", database.password)

    def denials() -> list[str]:
        checks = answer(run, "server", "test", "new")["checks"]
        return [check["text"] for check in checks if check["name"] == "verifiers" and check["status"] == "warning"]

    run("server", "add", "new", "--host", f"{pg18.host}:{pg18.port}", "--tls", "disable",
        "--admin", pg18.superuser, "--admin-password-env", "PW", "--auth-role", pg18.superuser)  # fmt: skip
    assert denials() == []
    run("server", "set", "new", "--auth-role", database.role, "--auth-password-env", "ROLE_PW")
    (denied,) = denials()
    assert "permission denied for table pg_authid" in denied
    for query, told in (("SELECT $1::text, 1, 2", "must have $1 alone"), ("SELECT 'x', $1::text", "does not exist")):
        run("server", "set", "new", "--auth-query", query)
        (warning,) = denials()
        assert told in warning


def test_a_server_that_cannot_be_used_says_why(
    run: Run, pg18: ServerFacts, make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database(pg18)
    monkeypatch.setenv("PW", database.password)
    add = ("server", "add", "x", "--host", "127.0.0.1:1", "--host", f"{pg18.host}:{pg18.port}")
    run(*add, "--role", database.role, "--role-password-env", "PW")
    tried = run("server", "test", "x")
    assert "127.0.0.1:1: connection refused; another host of the server answers" in tried.stderr
    assert "may create databases  no" in tried.stdout
    monkeypatch.setenv("PW", "wrong password")
    run("server", "set", "x", "--role-password-env", "PW")
    failed = run("server", "test", "x", status=1)
    assert "password authentication failed" in failed.stderr
    assert "wrong password" not in failed.output
    run("server", "set", "x", "--tls", "require")
    assert "SSL" in run("server", "test", "x", status=1).stderr
    run("server", "set", "x", "--host", "127.0.0.1:1")
    assert "127.0.0.1:1: connection refused" in run("server", "test", "x", status=1).stderr


def test_a_server_is_tested_before_it_is_registered(
    run: Run, pg18: ServerFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW", pg18.password)
    monkeypatch.setenv("WRONG", "wrong password")
    there = ("--host", f"{pg18.host}:{pg18.port}", "--tls", "disable", "--admin", pg18.superuser)
    refused = run("server", "add", "eu1", *there, "--admin-password-env", "WRONG", status=1, tests=True)
    assert "server 'eu1' was not added: " in refused.stderr
    assert "password authentication failed" in refused.stderr
    assert "--force registers it all the same" in refused.stderr
    assert "wrong password" not in refused.output
    assert answer(run, "server", "list") == []
    added = run("server", "add", "eu1", *there, "--admin-password-env", "PW", tests=True).stderr
    assert "added server 'eu1': PostgreSQL 18" in added
    assert "connections in use" in added
    moved = run("server", "set", "eu1", "--host", "127.0.0.1:1", status=1, tests=True).stderr
    assert "server 'eu1' was not changed: 127.0.0.1:1: connection refused" in moved
    assert answer(run, "server", "show", "eu1")["hosts"] == [f"{pg18.host}:{pg18.port}"]
    forced = run("server", "set", "eu1", "--host", "127.0.0.1:1", "--force", tests=True).stderr
    assert "warning: 127.0.0.1:1: connection refused" in forced
    assert answer(run, "server", "show", "eu1")["hosts"] == ["127.0.0.1:1"]
    back = answer(run, "server", "set", "eu1", "--host", f"{pg18.host}:{pg18.port}", tests=True)
    assert {check["status"] for check in back["checks"]} == {"ok"}
    assert {"address", "version", "tls", "max_connections"} == {check["name"] for check in back["checks"]}


def test_a_server_without_a_role_is_only_reached(run: Run, pg18: ServerFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", pg18.password)
    added = run("server", "add", "bare", "--host", f"{pg18.host}:{pg18.port}", tests=True).stderr
    assert "nobody has logged in to it; `pgtenant server set bare --admin USER" in added
    assert "127.0.0.1:1: connection refused" in run(
        "server", "add", "none", "--host", "127.0.0.1:1", status=1, tests=True
    ).stderr  # fmt: skip
    # A password of the person who runs this is none that nodes have.
    lacking = run("server", "add", "x", "--host", f"{pg18.host}:{pg18.port}", "--tls", "disable", "--admin",
                  pg18.superuser, status=1, tests=True).stderr  # fmt: skip
    assert "server 'x' was not added" in lacking


def test_a_tenant_that_cannot_be_served_is_added_with_a_warning_or_strictly_not_at_all(
    run: Run, pg18: ServerFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW", pg18.password)
    run("server", "add", "eu1", "--host", f"{pg18.host}:{pg18.port}", "--tls", "disable",
        "--admin", pg18.superuser, "--admin-password-env", "PW")  # fmt: skip
    asked = ("tenant", "add", "acme", "--server", "eu1", "-d", "nowhere")
    refused = run(*asked, "--strict", status=1, tests=True).stderr
    assert "tenant 'acme' was not added: tenant 'acme' has no role to log in with" in refused
    assert "hint: `pgtenant tenant set acme --role USER" in refused
    assert answer(run, "tenant", "list") == []
    added = run(*asked, tests=True).stderr
    assert "warning: there is no database 'nowhere' on server 'eu1'" in added
    assert "added tenant 'acme', READY" in added
    changed = answer(run, "tenant", "set", "acme", "-d", "nowhere-else", tests=True)
    assert [check["name"] for check in changed["checks"]] == ["role", "database"]
    assert answer(run, "tenant", "set", "acme", "--limit", "pool_size=3", tests=True)["checks"] == []
    assert "was not changed" in run("tenant", "set", "acme", "-d", "x", "--strict", status=1, tests=True).stderr
    twin = '[[tenant]]\nslug = "twin"\nserver = "eu1"\ndatabase = "nowhere-else"\nrole = "r"\n'
    (tmp_path / "m.toml").write_text(twin)
    rehearsed = run("registry", "apply", "m.toml", "--dry-run", tests=True).stderr
    assert "as is 'acme': they reach each other's data" in rehearsed
    assert "cannot log in" not in rehearsed, "a dry run tries nothing"
    strict = run("registry", "apply", "m.toml", "--strict", status=1, tests=True).stderr
    assert "error: nothing was applied: " in strict
    assert "cannot log in to database 'nowhere-else'" in run("registry", "apply", "m.toml", tests=True).stderr
    assert "Nothing to change." in run("registry", "apply", "m.toml", "--strict", tests=True).stdout


class Node(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        status, body = {
            "Bearer admin secret": (200, b'{"version": 7}'),
            "Bearer during an outage": (503, b"no registry"),
        }.get(self.headers["Authorization"], (401, b"wrong token"))
        self.send_response(status if self.path == "/reload" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def node() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Node) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_node_is_told_to_reload(run: Run, node: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "no admin token" in run("registry", "reload", "--http", node, status=2).stderr
    monkeypatch.setenv("PGTENANT_ADMIN_TOKEN", "admin secret")
    assert "version 7" in run("registry", "reload", "--http", node).stderr
    (tmp_path / "token").write_text("another\n")
    refused = run("registry", "reload", "--http", node, "--token-file", "token", status=1)
    assert "the node refused (401): wrong token" in refused.stderr
    assert "the admin token is taken from --token-file" in refused.stderr
    monkeypatch.setenv("PGTENANT_ADMIN_TOKEN", "during an outage")
    down = run("registry", "reload", "--http", node, status=1).stderr
    assert "the node refused (503): no registry" in down
    assert "what was in force stays in force" in down
    assert "check --http" in run("registry", "reload", "--http", f"{node}/x", status=1).stderr
    for url, status in (("http://127.0.0.1:1", 1), ("file:///etc/passwd", 2)):
        assert "hint:" in run("registry", "reload", "--http", url, status=status).stderr


def test_every_command_explains_itself(run: Run) -> None:
    for group in ("server", "tenant", "login", "registry", "secrets"):
        listing = run(group, "--help").stdout
        assert "Commands" in listing
    for command in (("server", "add"), ("tenant", "set"), ("login", "add"), ("registry", "apply")):
        text = run(*command, "--help").stdout
        assert "pgtenant " in text
        assert "PGTENANT_REGISTRY" in text


def test_a_login_is_allowed_to_replicate_and_a_tenant_gets_time_limits(filled: Run) -> None:
    filled("login", "set", "app", "-t", "acme", "--replication", "database")
    assert answer(filled, "login", "list")[0]["replication"] == "database"
    assert "all tenants" in filled("login", "set", "app", "-t", "acme", "--replication", "server", status=2).stderr
    filled("tenant", "set", "acme", "--limit", "query_timeout=2.5", "--limit", "idle_transaction_timeout=60")
    limits = answer(filled, "tenant", "show", "acme")["limits"]
    assert (limits["query_timeout"], limits["idle_transaction_timeout"], limits["pool_size"]) == (2.5, 60.0, 4)
    assert "cannot be switched off" in filled("tenant", "set", "acme", "--limit", "login_timeout=0", status=2).stderr


def test_a_dry_run_makes_no_registry_and_says_what_there_would_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('[[server]]\nname = "eu1"\nhost = "10.0.0.1"\n')
    rehearsed = run("registry", "apply", "m.toml", "--dry-run").stdout
    assert "+ server eu1" in rehearsed
    assert "1 to add, 0 to change, 0 to remove.  Nothing was changed." in rehearsed
    assert not (tmp_path / "registry.db").exists()


def test_a_dry_run_refuses_keys_that_are_not_the_registrys(
    filled: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "m.toml").write_text('[[server]]\nname = "eu2"\nhost = "10.0.0.2"\n')
    monkeypatch.setenv("PGTENANT_ENCRYPTION_KEYS", generate_key("other"))
    for options in ((), ("--dry-run",)):
        assert "key 'k1'" in filled("registry", "apply", "m.toml", *options, status=1).stderr


def test_of_many_warnings_a_terminal_is_told_the_first_ones(run: Run, tmp_path: Path) -> None:
    logins = [f'[[login]]\nuser = "u{number}"\nall_tenants = true\npassword = "x"\n' for number in range(30)]
    (tmp_path / "m.toml").write_text("\n".join(logins))
    told = run("registry", "apply", "m.toml").stderr
    assert told.count("stands in the file") == 20
    assert "10 more warnings; --json shows all" in told
