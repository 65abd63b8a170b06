"""Every setting that a reload changes is in force after it, and every other one says that it is not."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
import tomlkit
from harness.certificates import Certificates, revoke
from routing.fake_registry import FakeRegistry, make_route

from proxy.auth import Attempt, build_verifier
from proxy.net.client_tls import ClientTls
from proxy.net.dialer import Opened
from proxy.net.relay_loop import RelaySelector
from proxy.observability.logs import Limiter
from proxy.pool.ledger import PoolLedger, open_entry
from proxy.reloading import Told
from proxy.server import Node
from proxy.settings import ReloadFailed, Settings, admin_token, load_settings, needs_restart
from registry.contract import Limits
from registry.keyfile import find_keys
from registry.secrets import KeyRing, generate_key

Look = Callable[["Running"], object]

VERIFIER = build_verifier("right", bytes(16)).text()
KEY, OTHER_KEY = generate_key("k1"), generate_key("k2")


class Running:
    """A node that is not listening, whose settings file can be written anew."""

    def __init__(self, directory: Path, sections: dict[str, dict[str, Any]]) -> None:
        self.file = directory / "pgtenant.toml"
        self.registry = FakeRegistry()
        self.registry.put(make_route(1, "acme"))
        self.unfit = ""
        self.write(sections)
        self.selector = RelaySelector()
        told = self.tell()
        self.node = Node(
            told,
            self.selector,
            self.registry,
            tell=self.tell,
            inspect_secrets=self.inspect,
            limiter=Limiter(told.settings.log.lines_per_second),
        )

    def write(self, sections: dict[str, dict[str, Any]]) -> None:
        self.file.write_text(tomlkit.dumps(sections))

    def tell(self) -> Told:
        settings = load_settings(self.file, {})
        keys = find_keys(settings.registry.encryption_keys_file, {})
        return Told(settings, keys or KeyRing.parse(KEY), admin_token(settings))

    async def inspect(self, keys: KeyRing) -> str:
        return "" if keys.covers(KeyRing.parse(KEY)) else "sealed with k1"

    @property
    def pool(self) -> PoolLedger:
        """The pool of a tenant without limits of its own, which the node serves since before the reload."""
        return self.node.ledger.pools[1, ""]

    @property
    def door(self) -> Any:
        return self.node.door

    @property
    def tls(self) -> ClientTls:
        tls = self.node.client_tls
        assert tls is not None
        same: bool = self.door._settings.greet.tls is tls
        assert same
        return tls

    def delay(self, failures: int) -> float:
        """How long an attempt waits after so many failures."""
        slowdown = self.door._keeper._turns._slowdown
        attempt = Attempt.of(f"t{failures}", "10.0.0.1", "app", f"app{failures}")
        for _ in range(failures):
            slowdown.failed(attempt, 0.0)
        return float(slowdown.delay(attempt, 0.0))


@asynccontextmanager
async def running(directory: Path, sections: dict[str, dict[str, Any]]) -> AsyncIterator[Running]:
    made = Running(directory, sections)
    node = made.node
    await node.resolver.lookups.refresh(1)
    node.tenancy.pool_for(made.registry.routes[1], None, 0.0)
    try:
        yield made
    finally:
        await node.resolver.close()
        node.auth_queries.close()
        node.host_names.close()
        made.selector.close()


def pools(name: str) -> Look:
    return lambda running: getattr(running.pool, name)


def tenants(name: str) -> Look:
    return lambda running: getattr(running.pool.tenant, name)


def times(name: str) -> Look:
    return lambda running: getattr(running.pool.times, name)


def dialers(name: str) -> Look:
    return lambda running: getattr(running.node.dialer._settings, name)


def doors(name: str) -> Look:
    return lambda running: getattr(running.door._settings, name)


def policies(name: str) -> Look:
    return lambda running: getattr(running.door._keeper._policy, name)


def rules(name: str) -> Look:
    return lambda running: getattr(running.node.resolver.rules, name)


def resolvers(name: str) -> Look:
    return lambda running: getattr(running.node.resolver.config, name)


def admissions(admission: str, name: str) -> Look:
    return lambda running: getattr(getattr(running.node.admissions, admission).places.limits, name)


def console_users(running: Running) -> list[str]:
    console = running.node.console
    return sorted(console._rules.users) if console is not None and running.door.console is console else []


IN_FORCE: dict[str, tuple[Any, Look, object]] = {
    "listen.backlog": (7, lambda running: running.node.listener._acceptor._backlog, 7),
    "listen.accepts_per_turn": (3, lambda running: running.node.listener._acceptor._per_turn, 3),
    "listen.max_logins": (9, admissions("logins", "places"), 9),
    "listen.max_logins_per_address": (9, admissions("logins", "per_address"), 9),
    "listen.max_queued_logins": (9, admissions("logins", "queue"), 9),
    "listen.max_tls_handshakes": (9, admissions("handshakes", "places"), 9),
    "listen.trusted_networks": (
        ["10.1.0.0/16"],
        lambda running: {
            str(*admission.trusted)
            for admission in (running.node.admissions.logins, running.node.admissions.handshakes)
        },
        {"10.1.0.0/16"},
    ),
    "listen.max_clients": (11, doors("max_clients"), 11),
    "listen.login_timeout": (12.5, doors("login_timeout"), 12.5),
    "listen.startup_max_bytes": (500, lambda running: running.door._settings.greet.startup_max_bytes, 500),
    "listen.tls_mode": ("verify-full", lambda running: running.door._keeper._tls_mode, "verify-full"),
    "listen.tls_cert": ("{first}/renewed.pem", lambda running: running.tls._config.default.cert.name, "renewed.pem"),
    "listen.tls_key": ("{first}/moved.pem", lambda running: running.tls._config.default.key.name, "moved.pem"),
    "listen.tls_certs": (
        ["{other}/cert.pem:{other}/key.pem"],
        lambda running: running.tls.host_names,
        ["localhost", "other.example"],
    ),
    "listen.tls_client_ca": ("{other}/ca.pem", lambda running: len(running.tls.context.get_ca_certs()), 1),
    "listen.tls_client_crl": (
        "{first}/crl.pem",
        lambda running: bool(running.tls.context.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN),
        True,
    ),
    "listen.tls_min_version": ("1.3", lambda running: running.tls.context.minimum_version, ssl.TLSVersion.TLSv1_3),
    "listen.proxy_protocol": ("require", lambda running: running.door._settings.proxied is not None, True),
    "listen.proxy_networks": (
        ["10.9.0.0/16"],
        lambda running: str(running.door._settings.proxied.trusted[0]),
        "10.9.0.0/16",
    ),
    "listen.allow_cleartext_password": (True, policies("allow_cleartext"), True),
    "listen.trust": (True, policies("trust"), True),
    "http.admin_token": ("another", lambda running: running.node.admin_token, "another"),
    "http.admin_token_file": ("{other}/token", lambda running: running.node.admin_token, "from a file"),
    "http.metrics_tenants": (7, lambda running: running.node.metrics.tenants.max_tenants, 7),
    "console.database": ("ops", lambda running: running.door.console.database, "ops"),
    "console.admins": ({"zoe": VERIFIER}, console_users, ["zoe"]),
    "console.stats": ({"zoe": VERIFIER}, console_users, ["ann", "zoe"]),
    "console.max_sessions": (2, lambda running: running.door.console._rules.max_sessions, 2),
    "console.idle_timeout": (9.5, lambda running: running.door.console._rules.idle_timeout, 9.5),
    "auth.verifiers": ("server", resolvers("verifiers"), "server"),
    "auth.verifier_ttl": (1.5, lambda running: running.node.server_logins._limits.ttl, 1.5),
    "auth.unknown_ttl": (2.5, lambda running: running.node.server_logins._limits.negative_ttl, 2.5),
    "auth.verifier_timeout": (3.5, lambda running: running.node.auth_queries._settings.timeout, 3.5),
    "auth.idle_timeout": (4.5, lambda running: running.node.auth_queries._settings.idle, 4.5),
    "auth.cached_verifiers": (55, lambda running: running.node.server_logins._shelf.known._limit, 55),
    "auth.cached_keys": (66, lambda running: running.node.client_keys.limit, 66),
    "auth.channel_binding": (False, policies("channel_binding"), False),
    "auth.failure_delay": (0.25, lambda running: running.delay(3), 0.25),
    "auth.failure_delay_most": (0.15, lambda running: running.delay(20), 0.15),
    "auth.failure_memory": (7.0, lambda running: running.door._keeper._turns._slowdown._forget, 7.0),
    "pool.pool_size": (5, tenants("pool_size"), 5),
    "pool.max_prepared_statements": (9, dialers("max_statements"), 9),
    "pool.min_pool_size": (2, pools("min_size"), 2),
    "pool.max_clients": (13, tenants("max_clients"), 13),
    "pool.max_waiting": (14, tenants("max_waiting"), 14),
    "pool.max_backends": (150, lambda running: running.node.ledger.max_backends, 150),
    "pool.max_connecting": (3, lambda running: running.node.ledger.max_connecting, 3),
    "pool.queue_wait_timeout": (1.5, pools("queue_wait_timeout"), 1.5),
    "pool.cross_tenant_wait": (0.7, lambda running: running.node.hub.driver.foreign_wait, 0.7),
    "pool.server_idle_timeout": (2.5, pools("idle_timeout"), 2.5),
    "pool.server_lifetime": (3.5, pools("lifetime"), 3.5),
    "pool.lifetime_jitter": (0.5, dialers("lifetime_jitter"), 0.5),
    "pool.real_pids": (True, lambda running: running.door._settings.real_pids, True),
    "pool.query_timeout": (4.5, times("query"), 4.5),
    "pool.transaction_timeout": (5.5, times("transaction"), 5.5),
    "pool.idle_transaction_timeout": (6.5, times("idle_transaction"), 6.5),
    "pool.client_idle_timeout": (7.5, times("client_idle"), 7.5),
    "pool.connect_timeout": (8.5, pools("connect_timeout"), 8.5),
    "pool.retry_first": (0.3, dialers("retry_first"), 0.3),
    "pool.retry_most": (9.5, dialers("retry_most"), 9.5),
    "pool.linger": (1.25, lambda running: running.node.settings.pool.linger, 1.25),
    "pool.cancel_wait": (2.25, dialers("cancel_wait"), 2.25),
    "pool.max_cancels": (4, dialers("max_cancels"), 4),
    "routing.order": (["user"], lambda running: [str(one) for one in running.node.resolver.rules.order], ["user"]),
    "routing.sni_patterns": (["{tenant}.x"], lambda running: len(running.node.resolver.rules.sni_patterns), 1),
    "routing.option_names": (["shop"], lambda running: list(running.node.resolver.rules.option_names), ["shop"]),
    "routing.user_separator": ("+", rules("user_separator"), "+"),
    "routing.database_patterns": (
        ["db_{tenant}"],
        lambda running: len(running.node.resolver.rules.database_patterns),
        1,
    ),
    "routing.physical_databases": (False, rules("physical_databases"), False),
    "routing.reveal_tenants": (True, resolvers("reveal_tenants"), True),
    "routing.shared_tenant": ("acme", lambda running: running.node.resolver._shared_id, 1),
    "routing.cached_routes": (77, lambda running: running.node.resolver.cache._routes._limit, 77),
    "routing.cached_logins": (88, lambda running: running.node.resolver.cache._logins.known._limit, 88),
    "routing.unknown_ttl": (1.5, lambda running: running.node.resolver.cache.limits.negative_ttl, 1.5),
    "routing.lookup_timeout": (
        3.5,
        lambda running: (running.node.resolver.lookups.timeout, running.node.secrets.timeout),
        (3.5, 3.5),
    ),
    "registry.encryption_keys_file": ("{other}/keys", lambda running: running.node.keys.first, "k2"),
    "relay.budget_ms": (2.5, lambda running: running.selector.budget, 0.0025),
    "log.format": ("json", lambda _: "JSONRenderer" in str(structlog.get_config()["processors"]), True),
    "log.level": ("error", lambda _: logging.getLogger().level, logging.ERROR),
    "log.lines_per_second": (0, lambda running: running.node.limiter.most, 0),
    "shutdown.grace": (1.5, lambda running: running.node.settings.shutdown.grace, 1.5),
}
"""Of each setting that a reload changes: another value, where it is used, and what is found there."""

NEEDED: dict[str, dict[str, Any]] = {
    "listen.proxy_protocol": {"listen": {"proxy_networks": ["10.0.0.0/8"]}},
    "listen.proxy_networks": {"listen": {"proxy_protocol": "require", "proxy_networks": ["10.0.0.0/8"]}},
    "listen.tls_client_crl": {"listen": {"tls_client_ca": "{first}/ca.pem"}},
    "listen.tls_mode": {"listen": {"tls_client_ca": "{first}/ca.pem"}},
}
"""What some settings need beside them before and after."""

FIXED: dict[str, Any] = {
    "listen.host": "127.0.0.9",
    "listen.port": 1,
    "http.enabled": False,
    "http.host": "127.0.0.9",
    "http.port": 2,
    "routing.snapshot": "{other}/snapshot",
    "registry.url": "sqlite:///elsewhere.db",
    "registry.poll_interval": 9.0,
    "node.id": 3,
}
"""Another value of each setting that needs a restart."""


def settings_by_kind() -> tuple[set[str], set[str]]:
    live, fixed = set[str](), set[str]()
    for section in Settings.model_fields:
        for name, field in type(getattr(Settings(), section)).model_fields.items():
            (fixed if needs_restart(field) else live).add(f"{section}.{name}")
    return live, fixed


def test_every_setting_is_tried_here() -> None:
    live, fixed = settings_by_kind()
    assert IN_FORCE.keys() == live, "say in IN_FORCE where a reload brings the new value, or make the setting `fixed`"
    assert FIXED.keys() == fixed


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two directories with certificates, keys and tokens."""
    first, other = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("other")
    for directory, name in ((first, "localhost"), (other, "other.example")):
        revoke(Certificates(directory, (name,)).authority, directory / "crl.pem")
    (first / "renewed.pem").write_bytes((first / "cert.pem").read_bytes())
    (first / "moved.pem").write_bytes((first / "key.pem").read_bytes())
    (other / "token").write_text("from a file\n")
    (other / "keys").write_text(f"# the new one first\n{OTHER_KEY}\n{KEY}\n")
    (other / "keys").chmod(0o600)
    return {"first": first, "other": other}


def filled(value: Any, files: dict[str, Path]) -> Any:
    """The value with the names of the directories put in."""
    if isinstance(value, dict):
        return {name: filled(one, files) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, files) for one in value]
    if not isinstance(value, str):
        return value
    return value.replace("{first}", str(files["first"])).replace("{other}", str(files["other"]))


def base(name: str, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The settings file before the reload."""
    sections: dict[str, dict[str, Any]] = {
        "listen": {},
        "console": {"admins": {"ann": VERIFIER}},
        "log": {"format": "console", "level": "info"},
    }
    if name.startswith("listen.tls"):
        sections["listen"] = {"tls_mode": "allow", "tls_cert": "{first}/cert.pem", "tls_key": "{first}/key.pem"}
    for section, values in NEEDED.get(name, {}).items():
        sections.setdefault(section, {}).update(values)
    return dict(filled(sections, files))


def with_setting(sections: dict[str, dict[str, Any]], name: str, value: Any) -> dict[str, dict[str, Any]]:
    section, _, key = name.partition(".")
    return {**sections, section: {**sections.get(section, {}), key: value}}


@pytest.mark.parametrize("name", IN_FORCE)
async def test_a_reload_puts_a_setting_in_force(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    value, look, expected = IN_FORCE[name]
    before = base(name, files)
    async with running(tmp_path, before) as world:
        assert (await world.node.reload()).changed == (), "nothing is written anew yet"
        if name not in NEEDED:
            assert not name.startswith("pool.") or look(world) != expected
        world.write(with_setting(before, name, filled(value, files)))
        done = await world.node.reload()
        assert (done.changed, done.needs_restart) == ((name,), ())
        assert look(world) == expected


@pytest.mark.parametrize("name", FIXED)
async def test_a_setting_that_needs_a_restart_keeps_its_value_and_is_named(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    before = base(name, files)
    async with running(tmp_path, before) as world:
        old = world.node.settings
        world.write(with_setting(before, name, filled(FIXED[name], files)))
        done = await world.node.reload()
        assert (done.changed, done.needs_restart) == ((), (name,))
        assert world.node.settings == old
        assert (await world.node.reload()).needs_restart == (name,), "it is told each time"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"pool": {"pool_size": "many"}}, "pool.pool_size"),
        ({"pool": {"pol_size": 3}}, "there is no setting pool.pol_size"),
        ({"listen": {"tls_mode": "require", "tls_cert": "/nowhere", "tls_key": "/nowhere"}}, "/nowhere cannot be read"),
        ({"routing": {"sni_patterns": ["no-place"]}}, "routing: "),
        ({"console": {"admins": {"ann": "no-verifier"}}}, "console.admins.ann"),
        ({"http": {"admin_token_file": "/nowhere"}}, "http.admin_token_file /nowhere cannot be read"),
        ({"registry": {"encryption_keys_file": "/nowhere"}}, "registry.encryption_keys_file /nowhere cannot be read"),
        ({"registry": {"encryption_keys_file": "{other}/cert.pem"}}, "may be read or changed by others"),
        ({"registry": {"encryption_keys_file": "{other}/only-new"}}, "sealed with k1"),
    ],
)
async def test_a_reload_of_what_cannot_be_used_changes_nothing_and_says_why(
    sections: dict[str, dict[str, Any]], said: str, files: dict[str, Path], tmp_path: Path
) -> None:
    only_new = files["other"] / "only-new"
    only_new.write_text(OTHER_KEY)
    only_new.chmod(0o600)
    before = base("", files)
    async with running(tmp_path, before) as world:
        old = world.node.settings
        world.write({"shutdown": {"grace": 9.0}, **filled(sections, files)})
        with pytest.raises(ReloadFailed, match=said) as failed:
            await world.node.reload()
        assert failed.value.is_mistake
        assert failed.value.hint
        assert "no-verifier" not in str(failed.value)
        assert world.node.settings == old
        assert (world.node.keys.first, console_users(world)) == ("k1", ["ann"])


async def test_a_registry_that_is_away_lets_a_reload_change_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    before = base("", files)
    async with running(tmp_path, before) as world:
        world.registry.down = True
        world.write(with_setting(before, "pool.pool_size", 5))
        with pytest.raises(ReloadFailed) as failed:
            await world.node.reload()
        assert not failed.value.is_mistake
        assert world.pool.tenant.pool_size == 20
        world.registry.down = False
        assert (await world.node.reload()).changed == ("pool.pool_size",)


async def test_a_token_and_keys_that_are_written_anew_into_their_files_are_changes_too(
    files: dict[str, Path], tmp_path: Path
) -> None:
    token, keys = tmp_path / "token", tmp_path / "keys"
    token.write_text("one")
    keys.write_text(KEY)
    keys.chmod(0o600)
    sections = {"http": {"admin_token_file": str(token)}, "registry": {"encryption_keys_file": str(keys)}}
    async with running(tmp_path, sections) as world:
        token.write_text("two")
        keys.write_text(f"{OTHER_KEY},{KEY}")
        done = await world.node.reload()
        assert done.changed == ("http.admin_token_file", "registry.encryption_keys_file")
        assert (world.node.admin_token, world.node.keys.first) == ("two", "k2")
        assert world.registry.asked["id"] == 2, "what could not be opened before is asked for again"


async def test_backends_that_are_open_live_as_long_as_new_ones(files: dict[str, Path], tmp_path: Path) -> None:
    before = base("", files)
    async with running(tmp_path, before) as world:
        node, now = world.node, world.selector.now
        young, old = (open_entry(node.ledger, world.pool, ident, now - ident) for ident in (1, 1_000))
        for entry in (young, old):
            node.dialer._where[entry] = cast("Opened", None)
        world.write(with_setting(before, "pool.server_lifetime", 10.0))
        await node.reload()
        assert now + 8.0 <= young.expires_at <= now + 9.0, "ten seconds from its opening, less the jitter"
        assert now <= old.expires_at <= now + 1.0, "at once, but not all at the same moment"
        world.write(with_setting(before, "pool.server_lifetime", 0.0))
        await node.reload()
        assert (young.expires_at, old.expires_at) == (0.0, 0.0)


async def test_a_client_that_shares_statements_finds_room_for_one_when_sharing_ends(
    files: dict[str, Path], tmp_path: Path
) -> None:
    before = base("", files)
    async with running(tmp_path, before) as world:
        world.write(with_setting(before, "pool.max_prepared_statements", 0))
        await world.node.reload()
        assert not world.door._settings.shares_statements
        assert world.node.dialer._settings.max_statements == 1


async def test_limits_of_their_own_are_kept_by_tenants_when_the_defaults_change(
    files: dict[str, Path], tmp_path: Path
) -> None:
    before = base("", files)
    async with running(tmp_path, before) as world:
        world.registry.put(make_route(1, "acme", limits=Limits(pool_size=3)))
        world.write(with_setting(before, "pool.pool_size", 5))
        await world.node.reload()
        assert world.pool.tenant.pool_size == 3
