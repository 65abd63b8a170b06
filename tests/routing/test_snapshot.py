from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from routing.fake_registry import SERVER, FakeRegistry, make_login, make_route

from proxy.errors import Failure
from proxy.routing.names import Selectors
from proxy.routing.resolver import Resolver
from proxy.routing.snapshot import (
    Snapshot,
    SnapshotError,
    SnapshotFile,
    SnapshotKeeper,
    decode_snapshot,
    encode_snapshot,
    unusable,
)
from registry.contract import (
    AuthMethod,
    AuthQuery,
    ChannelBinding,
    Credentials,
    Limits,
    PoolMode,
    ResetPolicy,
    Secret,
    ServerHealth,
    SessionStatePolicy,
    TenantState,
    TlsMode,
    VerifierSource,
)

NOW = 1_800_000_000.0
ACME = Selectors("app", "acme")


class TestSealer:
    """Stands in for the key ring: hides the text and notices every change."""

    __test__ = False

    def __init__(self, key: bytes = b"k") -> None:
        self._key = key

    def seal(self, plaintext: bytes, context: str) -> bytes:
        return self._tag(plaintext, context) + bytes(byte ^ 0x5A for byte in plaintext)

    def open(self, sealed: bytes, context: str) -> bytes:
        plaintext = bytes(byte ^ 0x5A for byte in sealed[32:])
        if not hmac.compare_digest(self._tag(plaintext, context), sealed[:32]):
            raise ValueError("not sealed by this key")
        return plaintext

    def _tag(self, plaintext: bytes, context: str) -> bytes:
        return hmac.digest(self._key, context.encode() + b"\0" + plaintext, hashlib.sha256)


@pytest.fixture
def registry() -> FakeRegistry:
    fake = FakeRegistry()
    fake.put(make_route(1, "acme", aliases=("acme-corp",)))
    fake.put(make_route(2, "globex"))
    fake.put_login(make_login(1, "app", 1))
    return fake


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "routes.snapshot"


def keeper(
    registry: FakeRegistry, path: Path, *, now: float = NOW, key: bytes = b"k"
) -> tuple[Resolver, SnapshotKeeper]:
    resolver = Resolver(registry)
    return resolver, SnapshotKeeper(resolver, SnapshotFile(path, TestSealer(key)), wall_clock=lambda: now)


async def saved(registry: FakeRegistry, path: Path) -> None:
    resolver, snapshots = keeper(registry, path)
    await resolver.resolve(ACME)
    await resolver.resolve(Selectors("nobody", "nowhere"))
    await resolver.resolve(Selectors("app", "acme_data"))
    assert await snapshots.save()


def seen(path: Path) -> tuple[int, list[str], bytes]:
    return path.stat().st_mode & 0o777, [one.name for one in path.parent.iterdir()], path.read_bytes()


def do_damage(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "cut":
        path.write_bytes(content[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()


async def test_a_restart_without_the_registry_serves_what_was_known(registry: FakeRegistry, path: Path) -> None:
    await saved(registry, path)
    registry.down = True
    resolver, snapshots = keeper(registry, path, now=NOW + 3600)
    assert await snapshots.restore()
    for selectors in (ACME, Selectors("app", "acme-corp"), Selectors("app", "acme_data"), Selectors("app.acme")):
        resolution = await resolver.resolve(selectors)
        assert resolution.route == registry.routes[1]
        assert resolution.verifier.usable
    with pytest.raises(Failure) as caught:
        await resolver.resolve(Selectors("app", "globex"))
    assert caught.value.spec.name == "registry_down"


async def test_the_registry_has_the_last_word_once_it_is_back(registry: FakeRegistry, path: Path) -> None:
    await saved(registry, path)
    registry.down = True
    resolver, snapshots = keeper(registry, path)
    assert await snapshots.restore()
    registry.down = False
    registry.put(replace(registry.routes[1], state=TenantState.SUSPENDED))
    await resolver.lookups.by_name("globex")
    route = (await resolver.resolve(ACME)).route
    assert route is not None
    assert route.state is TenantState.SUSPENDED


async def test_with_the_registry_there_the_snapshot_is_not_looked_at(registry: FakeRegistry, path: Path) -> None:
    await saved(registry, path)
    resolver, snapshots = keeper(registry, path)
    assert not await snapshots.restore()
    assert resolver.status().cached["routes"] == 0


async def test_only_changes_are_written(registry: FakeRegistry, path: Path) -> None:
    resolver, snapshots = keeper(registry, path)
    assert not await snapshots.save()
    await resolver.resolve(ACME)
    assert await snapshots.save()
    await resolver.resolve(ACME)
    assert not await snapshots.save()
    resolver.apply_change(registry.put(replace(registry.routes[1], generation=2)))
    await resolver.resolve(ACME)
    assert await snapshots.save()


async def test_the_file_is_private_sealed_and_alone(registry: FakeRegistry, path: Path) -> None:
    await saved(registry, path)
    await saved(registry, path)
    mode, neighbours, content = seen(path)
    assert mode == 0o600
    assert neighbours == [path.name]
    assert b"acme" not in content
    assert b"SCRAM" not in content


async def test_a_disk_that_fails_costs_only_the_file_and_is_told_once(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    resolver, snapshots = keeper(registry, tmp_path / "missing" / "routes.snapshot")
    await resolver.resolve(ACME)
    for _ in range(3):
        assert not await snapshots.save()
    assert snapshots.failures == 3
    assert caplog.text.count("cannot be written") == 1
    (tmp_path / "missing").mkdir()
    assert await snapshots.save()
    assert caplog.text.count("is written again") == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other key", "old", "from the future", "missing"])
async def test_a_file_that_is_not_right_is_ignored_and_says_why(
    registry: FakeRegistry, path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    await saved(registry, path)
    do_damage(path, damage)
    now = {"old": NOW + 8 * 86400, "from the future": NOW - 3600}.get(damage, NOW)
    registry.down = True
    resolver, snapshots = keeper(registry, path, now=now, key=b"x" if damage == "other key" else b"k")
    assert not await snapshots.restore()
    assert resolver.status().cached["routes"] == 0
    assert "the registry cannot be reached" in caplog.text


async def test_everything_survives_the_way_to_the_disk_and_back() -> None:
    server = replace(
        SERVER,
        tls_mode=TlsMode.VERIFY_FULL,
        tls_ca="PEM",
        draining=True,
        health=ServerHealth.HEALTHY,
        max_connections=7,
        channel_binding=ChannelBinding.REQUIRE,
        auth=AuthQuery(Credentials("asker", Secret("p")), "postgres", "SELECT login($1)"),
    )
    routes = (
        make_route(
            1,
            "acme",
            server=server,
            aliases=("a", "b"),
            pool_mode=PoolMode.SESSION,
            reset=ResetPolicy.ALWAYS,
            session_state=SessionStatePolicy.ALLOW,
            limits=Limits(pool_size=3, server_lifetime=1.5),
            verifiers=VerifierSource.SERVER,
            networks=(ip_network("10.0.0.0/8"), ip_network("::1/128")),
        ),
        make_route(2, "newco", state=TenantState.PENDING, server=None, database_name=None, role=None),
        make_route(3, "trusting", role=Credentials("plain")),
    )
    logins = (
        (("app", 1), make_login(1, "app", 1, md5=(("app", Secret("md5abc")),), role=Credentials("r", Secret("p")))),
        (("support", 1), make_login(2, "support", None, methods=frozenset(AuthMethod), certificate="support")),
    )
    snapshot = Snapshot(5, NOW, b"\0secret", routes, (("acme_data", (1,)), ("two", (1, 2))), logins)
    assert decode_snapshot(await encode_snapshot(snapshot)) == snapshot


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b"\xff",
        b'{"format":99}',
        b'{"format":1,"version":1,"saved_at":1,"mock_secret":null}\n{"kind":"other"}',
        b'{"format":1,"version":1,"saved_at":1,"mock_secret":null}\n{"kind":"route","tenant_id":"1"}',
        b'{"format":1,"version":1,"saved_at":1,"mock_secret":"?"}',
    ],
)
def test_contents_that_are_not_understood_are_refused(text: bytes) -> None:
    with pytest.raises(SnapshotError):
        decode_snapshot(text)


async def test_a_servers_own_verifiers_never_reach_the_disk() -> None:
    login = make_login(1, "app", 1, source=VerifierSource.SERVER)
    with pytest.raises(ValueError, match="not kept on disk"):
        await encode_snapshot(Snapshot(5, NOW, None, (), (), ((("app", 1), login),)))


async def test_no_secret_shows_in_a_repr(registry: FakeRegistry) -> None:
    snapshot = Snapshot(1, NOW, b"mock-secret", (make_route(1, "acme"),), (), ((("app", 1), make_login(1, "app", 1)),))
    assert "mock-secret" not in repr(snapshot)
    assert "acme-password" not in repr(snapshot)
    assert "SCRAM" not in repr(snapshot)


def test_a_place_for_a_snapshot_is_tried_out_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    assert unusable(path) == ""
    path.write_bytes(b"an older one")
    assert unusable(path) == ""
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("snapshot", b"an older one")]
    assert "No such file or directory" in unusable(tmp_path / "missing" / "snapshot")
    assert "Not a directory" in unusable(path / "snapshot")
    assert "is a directory" in unusable(tmp_path)
    # Of a name that is too long, as of one behind a directory that may not be entered, even whether it is there is an
    # error.
    assert "File name too long" in unusable(tmp_path / ("a" * 300) / "snapshot")
