from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.process import Result, Terminal, output, run, started
from harness.waiting import wait_until

import proxy
from proxy.demo.ports import free_port, is_free

DEMO = [sys.executable, "-P", "-m", "proxy", "demo"]
PACKAGE_ROOT = str(Path(proxy.__file__).parents[1])
SLUGS = ["acme", "globex", "initech", "umbrella"]


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """An environment whose temporary directory is the demo's alone; nothing may run or lie there afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="pgtenant-test-"))
    directory.chmod(0o711)
    yield {**os.environ, "TMPDIR": str(directory), "PYTHONPATH": PACKAGE_ROOT}
    wait_until(lambda: not processes_of(directory), what="the end of every process of the demo")
    wait_until(lambda: not list(directory.iterdir()), what="the end of every file of the demo")
    directory.rmdir()


def processes_of(directory: Path) -> list[str]:
    """The command lines of processes that work in this directory or were told of it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(directory) in command:
                found.append(command)
    return found


def run_demo(environment: dict[str, str], command: str, *options: str) -> Result:
    return run([*DEMO, *options, "--run", command], env=environment, seconds=90)


@pytest.fixture
def another_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a source tree in it that is not the one that runs."""
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text('raise RuntimeError("not the package that runs the demo")\n')
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("another_tree")
def test_command_reaches_every_tenant_and_finds_programs_registry_and_token(environment: dict[str, str]) -> None:
    query = 'psql -XAtc "select slug from shop"'
    script = " && ".join(
        [
            *(f'{query} "${slug.upper()}_URL"' for slug in SLUGS),
            "echo $PGTENANT_PORT $PGTENANT_HTTP_URL",
            'test -n "$PGTENANT_ADMIN_TOKEN"',
            'psql -XAtc "show version" "$PGTENANT_CONSOLE_URL"',
            "pgbench --version",
            "command -v python",
            "python -P -m proxy tenant list --json",
        ]
    )
    ran = run_demo(environment, f"{script} && exit 7")
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert lines[:4] == SLUGS
    port, url = lines[4].split()
    assert url.startswith("http://127.0.0.1:")
    assert is_free(int(port))
    assert lines[5].startswith("pgtenant ")
    assert lines[6].startswith("pgbench (PostgreSQL) 18")
    assert Path(lines[7]).parent == Path(sys.executable).parent
    assert [tenant["slug"] for tenant in json.loads("".join(lines[8:]))] == SLUGS
    assert ran.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_command_and_all(environment: dict[str, str], number: signal.Signals) -> None:
    command = [*DEMO, "--run", "echo begun; sleep 600 & sleep 600"]
    # A shell without job control starts so what is to run in the background, which leaves Ctrl-C to others.
    with started(command, env=environment, ignored=[signal.SIGINT]) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline() == "begun\n"
        demo.send_signal(signal.SIGINT)
        demo.send_signal(number)
        assert demo.wait(60) == 128 + number


def test_killed_demo_leaves_nothing(environment: dict[str, str]) -> None:
    with started([*DEMO, "--run", "echo begun; sleep 600"], env=environment) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline() == "begun\n"
        demo.kill()
        demo.wait()


def test_printed_line_connects_and_ctrl_c_ends_it_all(environment: dict[str, str]) -> None:
    port, http_port = free_port(), free_port()
    with started([*DEMO, "--port", str(port), "--http-port", str(http_port)], env=environment) as demo:
        assert demo.stdout is not None
        lines: list[str] = []
        while "Ctrl-C" not in (line := demo.stdout.readline()):
            assert line, f"the demo ended: {lines}"
            lines.append(line.strip())
        urls = [line.split("'")[1] for line in lines if "psql" in line and "postgresql://" in line]
        assert [url.rpartition("/")[2] for url in urls] == [*SLUGS, "pgtenant"]
        console = next(line for line in lines if "show clients" in line)
        assert "pool_mode" in output(["sh", "-c", f"{console} -X"], env=environment)
        psql = next(line for line in lines if "acme" in line)
        assert output(["sh", "-c", f"{psql} -XAtc 'select name from shop'"], env=environment) == "Acme Corporation\n"
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
    assert is_free(port)
    assert is_free(http_port)


def test_taken_port_is_a_clear_message_before_anything_starts(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        ran = run_demo(environment, "true", "--port", str(port))
    assert ran.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in ran.stderr
    assert "--port" in ran.stderr.partition("hint:")[2]


def test_terminals_ctrl_c_reaches_the_command_which_has_the_terminal(environment: dict[str, str]) -> None:
    # exec: a shell that forks just now may lose the signal, and would then wait for its child.
    command = [*DEMO, "--run", "read line; echo got $line; exec sleep 600"]
    with Terminal() as terminal, terminal.started(command, env=environment) as demo:
        terminal.type("typed\n")
        terminal.wait_for("got typed")
        terminal.type("\x03")
        assert demo.wait(60) == 128 + signal.SIGINT


def test_end_of_the_terminal_ends_it_all(environment: dict[str, str]) -> None:
    ports = ["--port", str(free_port()), "--http-port", str(free_port())]
    with Terminal() as terminal, terminal.started([*DEMO, *ports], env=environment) as demo:
        terminal.wait_for("Ctrl-C")
        terminal.close()
        assert demo.wait(60) == 128 + signal.SIGHUP


def test_end_of_the_terminal_ends_nothing_under_nohup(environment: dict[str, str], tmp_path: Path) -> None:
    """Neither the demo nor its command, which has the terminal and so is sent the hang-up when the shell ends."""
    went_on = tmp_path / "went-on"
    query = f"psql -XAtc 'select slug from shop' $ACME_URL >{went_on}"
    demo = shlex.join([*DEMO, "--run", f"echo begun; read line; while kill -0 $LEADER; do sleep 0.02; done; {query}"])
    with (
        Terminal() as terminal,
        terminal.started(["sh", "-c", f"(trap '' HUP; export LEADER=$$; exec {demo}); :"], env=environment) as shell,
    ):
        terminal.wait_for("begun")
        terminal.close()
        assert shell.wait(10) == -signal.SIGHUP
        wait_until(lambda: went_on.exists() and went_on.read_text() == "acme\n", what="the answer to the command")
        left = Path(environment["TMPDIR"])
        wait_until(lambda: not list(left.iterdir()), what="the end of the demo after its command")
