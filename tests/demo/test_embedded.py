from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.process import END_PATIENCE, Result, run, started
from harness.waiting import wait_until

from proxy.demo import ports
from proxy.demo.embedded import EmbeddedServer
from proxy.demo.install import EmbeddedError, find_installation, reachable_installation, server_account
from proxy.demo.kept import KeptProcess
from proxy.demo.ports import claim_port, free_port, is_free


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(params=[18, 17])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(request.param, durable=False, max_connections=12) as running:
        yield running


def test_server_starts_with_the_version_and_settings_asked_for(server: EmbeddedServer) -> None:
    version, limit, fsync = server.psql("show server_version; show max_connections; show fsync").split("\n")
    assert int(version.split(".")[0]) == server.version
    assert (limit, fsync) == ("12", "off")


def test_server_wants_the_password(server: EmbeddedServer) -> None:
    def psql(url: str) -> Result:
        return run([server.bin_dir / "psql", "-X", "-Atc", "select 1", url])

    assert psql(server.url()).stdout == "1\n"
    refused = psql(server.url(user="postgres", password="wrong"))
    assert refused.returncode != 0
    assert "password authentication failed" in refused.stderr


def test_data_survive_stop_crash_and_restart_on_the_same_port(server: EmbeddedServer) -> None:
    port = server.port
    server.psql("create table kept (n int); insert into kept values (1)")
    server.restart()
    server.psql("insert into kept values (2)")
    server.kill()
    assert not server.running
    assert is_free(port)
    server.start()
    assert server.port == port
    assert server.psql("select sum(n) from kept") == "3"


def test_close_leaves_no_process_and_no_file(server: EmbeddedServer) -> None:
    pid, base = server.pid, server.base_dir
    server.close()
    assert not lives(pid)
    assert not base.exists()


def test_failing_script_tells_what_the_server_said(server: EmbeddedServer) -> None:
    with pytest.raises(EmbeddedError, match="division by zero"):
        server.psql("select 1/0")


def test_taken_port_is_named_in_the_hint() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        server = EmbeddedServer(18, port=port, durable=False)
        with pytest.raises(EmbeddedError, match=f"port {port} is taken"):
            server.start()
        server.close()


def test_bad_setting_shows_the_servers_log() -> None:
    server = EmbeddedServer(18, settings={"no_such_setting": "1"})
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        server.start()
    server.close()


def test_unknown_version_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EmbeddedError, match="17, 18"):
        EmbeddedServer(9)


def test_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"pgtenant\[demo\]"):
        find_installation(18)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the servers as another user")
@pytest.mark.parametrize("version", [18, 17])
def test_installation_in_a_private_directory_is_copied_to_where_the_servers_user_may_go(
    version: int, tmp_path: Path
) -> None:
    account = server_account()
    assert account is not None
    private = tmp_path / "private"
    original = find_installation(version)
    private.mkdir(mode=0o700)
    hidden_package = private / original.prefix.parent.name
    hidden_package.symlink_to(original.prefix.parent)
    libraries = original.prefix.parent.with_name(f"{original.prefix.parent.name}.libs")
    if libraries.exists():
        hidden_package.with_name(libraries.name).symlink_to(libraries)
    hidden = type(original)(version, hidden_package / "pginstall")

    reachable = EmbeddedServer(version, durable=False)
    reachable.installation = hidden
    with reachable:
        assert reachable.psql("select 1") == "1"
        assert (reachable.base_dir / "pg").is_dir()
    assert reachable_installation(original, None, tmp_path) is original


OWNER = """
import sys, time
from proxy.demo.embedded import EmbeddedServer
servers = [EmbeddedServer(version, durable=False) for version in (18, 17)]
for server in servers:
    server.start()
print(*(server.pid for server in servers), *(server.base_dir for server in servers), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_servers_and_their_files_go_when_their_owner_is_killed(number: signal.Signals) -> None:
    with started([sys.executable, "-c", OWNER], stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None
        first, second, *directories = owner.stdout.readline().split()
        assert lives(int(first))
        assert lives(int(second))
        owner.send_signal(number)
        assert owner.wait(END_PATIENCE) == -number
    wait_until(lambda: not lives(int(first)) and not lives(int(second)))
    wait_until(lambda: not any(Path(directory).exists() for directory in directories))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_command_dies_with_its_keeper(tmp_path: Path) -> None:
    with KeptProcess(["sleep", "600"], env={"PATH": os.environ["PATH"]}, log=tmp_path / "log") as kept:
        keeper = parent(kept.pid)
        assert keeper != os.getpid()
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not lives(kept.pid))
        assert kept.wait(5) != 0


def test_status_of_the_command_is_passed_on(tmp_path: Path) -> None:
    def status(script: str) -> int:
        with KeptProcess(["sh", "-c", script], env=dict(os.environ), log=tmp_path / "log") as kept:
            return kept.wait(30)

    assert status("exit 7") == 7
    assert status("kill -TERM $$") == 128 + signal.SIGTERM
    assert status("kill -KILL $$") == 128 + signal.SIGKILL


def test_sweep_ends_what_the_command_left_in_the_background(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with KeptProcess(["sh", "-c", "sleep 600 & echo $!"], env=dict(os.environ), log=log, sweep=True) as kept:
        assert kept.wait(30) == 0
    wait_until(lambda: not lives(int(log.read_text())))


def test_unknown_command_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        KeptProcess(["/no/such/program"], env={}, log=tmp_path / "log")


def test_free_ports_lie_below_the_ephemeral_range() -> None:
    ports = {free_port() for _ in range(20)}
    assert max(ports) < 32_768
    assert all(is_free(port) for port in ports)


def test_a_claimed_port_is_given_to_nobody_else_though_nothing_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = claim_port()
    monkeypatch.setattr(ports, "LOWEST", claim.port)
    monkeypatch.setattr(ports, "HIGHEST", claim.port)
    with pytest.raises(OSError, match="no free TCP port"):
        free_port()
    port = claim.port
    del claim
    assert free_port() == port
