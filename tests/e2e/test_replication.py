"""Replication connections: who may have one, what it may do, and that nothing of it is left."""

from __future__ import annotations

import secrets
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.certificates import Certificates
from harness.databases import Database
from harness.process import run
from harness.proxy import GRACE, ProxyProcess
from harness.rawclient import Disconnected, Message, RawClient, ServerSaid, frame, query
from harness.registries import RegistryUnderTest, TenantUnderTest
from harness.waiting import wait_until
from harness.world import World

from proxy.demo.embedded import EmbeddedServer
from proxy.demo.facts import ServerFacts, clean_environment
from proxy.session.replication import LOOK
from registry.contract import Limits, ReplicationAccess, Secret, TlsMode
from registry.domain.models import LoginChange

PROXY = {"pool": {"pool_size": 3, "queue_wait_timeout": 5.0}}
SEED = "create table events (id int primary key, note text)"
FORBIDDEN = [
    "BASE_BACKUP",
    "  base_backup (LABEL 'x', CHECKPOINT 'fast')",
    "START_REPLICATION 0/0",
    "START_REPLICATION PHYSICAL 0/0 TIMELINE 1",
    "START_REPLICATION SLOT logical PHYSICAL 0/0",
    'START_REPLICATION SLOT "a LOGICAL " PHYSICAL 0/0',
    "CREATE_REPLICATION_SLOT logical PHYSICAL",
    "CREATE_REPLICATION_SLOT p TEMPORARY PHYSICAL RESERVE_WAL",
    "TIMELINE_HISTORY 1",
    " " * 5000 + "BASE_BACKUP",
    " " * (LOOK - 4) + "BASE_BACKUP",
]


@pytest.fixture(scope="module", autouse=True)
def publisher() -> Iterator[ServerFacts]:
    """A PostgreSQL 18 that decodes its WAL; it outlives the world, which has databases there."""
    with EmbeddedServer(18, durable=False, settings={"wal_level": "logical"}) as server:
        yield server.facts


@pytest.fixture
def acme(world: World, publisher: ServerFacts) -> TenantUnderTest:
    return replicating(world, publisher)


@pytest.fixture(scope="module")
def staff(world: World) -> tuple[str, str]:
    """A login for all tenants that may replicate servers: its name and password."""
    password = secrets.token_urlsafe(12)
    change = LoginChange(password=Secret(password), replication=ReplicationAccess.SERVER)
    world.registry.do(lambda service: service.add_login("staff", None, change))
    return "staff", password


def replicating(
    world: World, server: ServerFacts, access: ReplicationAccess = ReplicationAccess.DATABASE, **limits: Any
) -> TenantUnderTest:
    """A tenant whose role may replicate, as far as the server is asked, and whose login may, as far as the proxy is."""
    tenant = world.tenant(server, seed=SEED, limits=Limits(**limits))
    tenant.database.psql(f"alter role {tenant.database.role} replication")
    change = LoginChange(replication=access)
    world.registry.do(lambda service: service.set_login(tenant.user, tenant.slug, change))
    return tenant


def connect(world: World, tenant: TenantUnderTest, mode: str = "database", **parameters: Any) -> RawClient:
    client = world.proxy.connect()
    try:
        client.login(tenant.user, tenant.password, tenant.slug, replication=mode, **parameters)
    except BaseException:
        client.close()
        raise
    return client


def stream(client: RawClient, slot: str = "s") -> None:
    """Begin to stream what is decoded, as text."""
    client.rows(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL test_decoding")
    client.send(query(f"START_REPLICATION SLOT {slot} LOGICAL 0/0"))
    assert client.read().kind == "W"


def changes(client: RawClient, until: str) -> list[str]:
    """What is streamed, up to a change with this text; the server's requests for an answer are answered."""
    seen = []
    while True:
        message = client.read()
        assert message.kind == "d", message.fields if message.kind == "E" else message
        if message.body[:1] == b"k":
            (position,) = struct.unpack_from("!Q", message.body, 1)
            client.send(status(position))
        else:
            seen.append(message.body[25:].decode())
            if until in seen[-1]:
                return seen


def status(position: int) -> bytes:
    """A standby status update."""
    return frame("d", b"r" + struct.pack("!QQQQB", position, position, position, 0, 0))


def walsenders(database: Database) -> int:
    """How many sessions replicate with the tenant's role."""
    counted = f"select count(*) from pg_stat_activity where usename = '{database.role}' and backend_type = 'walsender'"
    return int(database.psql(counted))


def refusal(messages: list[Message]) -> str:
    return "".join(message.fields["C"] for message in messages if message.kind == "E")


@pytest.mark.parametrize(
    ("access", "mode", "sqlstate"),
    [
        (ReplicationAccess.NONE, "database", "42501"),
        (ReplicationAccess.NONE, "true", "42501"),
        (ReplicationAccess.DATABASE, "true", "42501"),
        (ReplicationAccess.DATABASE, "nonsense", "22023"),
    ],
)
def test_a_login_that_may_not_replicate_is_refused(
    access: ReplicationAccess, mode: str, sqlstate: str, world: World, publisher: ServerFacts
) -> None:
    tenant = replicating(world, publisher, access)
    with pytest.raises(ServerSaid) as said:
        connect(world, tenant, mode)
    assert said.value.sqlstate == sqlstate
    assert said.value.fields["H"]


def test_a_role_that_may_not_replicate_is_refused_by_its_server_and_nobody_else_suffers(
    world: World, acme: TenantUnderTest
) -> None:
    acme.database.psql(f"alter role {acme.database.role} noreplication")
    for _ in range(3):
        with pytest.raises(ServerSaid, match="REPLICATION") as said:
            connect(world, acme)
        assert said.value.sqlstate == "57P03"
        with world.proxy.connect() as other:
            other.login(acme.user, acme.password, acme.slug)
            assert other.rows("select 1") == [("1",)]


def test_changes_are_streamed_and_the_session_goes_on_after_them(world: World, acme: TenantUnderTest) -> None:
    with connect(world, acme, application_name="streamer") as client:
        assert client.parameters["application_name"] == "streamer"
        assert client.rows("IDENTIFY_SYSTEM")[0][3] == acme.database.name
        assert client.rows("select current_user, count(*) from events group by 1") == []
        stream(client)
        acme.database.psql("insert into events select g, 'first' from generate_series(1, 500) g")
        assert len([one for one in changes(client, "id[integer]:500") if "INSERT" in one]) == 500
        client.send(status(1), frame("c"))
        kinds = "".join(message.kind for message in client.read_until("Z"))
        assert kinds.lstrip("d").startswith("c")
        assert client.rows("select count(*) from events") == [("500",)]
        assert world.backends(acme, state="active") == walsenders(acme.database) == 1
    world.wait_for_rest(acme)
    assert walsenders(acme.database) == world.backends(acme) == 0, "it is closed, and not pooled"


@pytest.mark.parametrize("command", FORBIDDEN)
def test_who_may_replicate_a_database_cannot_read_the_server(command: str, world: World, acme: TenantUnderTest) -> None:
    with connect(world, acme) as client:
        messages = client.query(command)
        assert refusal(messages) == "42501"
        assert [message.kind for message in messages] == ["E", "Z"]
        client.send_bytewise(query(command.strip()), 7)
        assert refusal(client.read_until("Z")) == "42501"
        assert client.rows("select 1") == [("1",)]


def test_a_replication_backend_counts_under_the_tenants_cap(world: World, publisher: ServerFacts) -> None:
    tenant = replicating(world, publisher, pool_size=1, queue_wait_timeout=0.5)
    with world.proxy.connect() as pooled:
        pooled.login(tenant.user, tenant.password, tenant.slug)
        pooled.rows("begin")
        with pytest.raises(ServerSaid) as said:
            connect(world, tenant)
        assert said.value.sqlstate == "53300"
        pooled.rows("commit")
        with connect(world, tenant) as client:
            assert client.rows("select 1") == [("1",)], "an idle backend of the tenant makes room"
            assert world.backends(tenant) == 1
            assert refusal(pooled.query("select 1")) == "53300"
        wait_until(lambda: not refusal(pooled.query("select 1")), what="the slot free again")
    world.wait_for_rest(tenant)


def test_a_cancel_request_reaches_a_replication_connection(world: World, acme: TenantUnderTest) -> None:
    with connect(world, acme) as client:
        client.send(query("select pg_sleep(30)"))
        wait_until(lambda: acme.database.backends("state = 'active' and query like '%sleep%'"), what="a query")
        client.cancel()
        assert refusal(client.read_until("Z")) == "57014"
        assert client.rows("select 1") == [("1",)]


def test_time_limits_do_not_end_a_stream(world: World, publisher: ServerFacts) -> None:
    short: dict[str, Any] = dict.fromkeys(
        ("query_timeout", "transaction_timeout", "idle_transaction_timeout", "client_idle_timeout"), 0.2
    )
    tenant = replicating(world, publisher, **short)
    with connect(world, tenant) as client:
        stream(client)
        time.sleep(1.0)
        tenant.database.psql("insert into events values (1, 'late')")
        assert changes(client, "late")


def test_a_client_that_vanishes_costs_its_backend(world: World, acme: TenantUnderTest) -> None:
    client = connect(world, acme)
    stream(client)
    client.reset()
    wait_until(lambda: walsenders(acme.database) == 0, what="the end of the stream")
    client = connect(world, acme)
    client.send(query("select pg_sleep(30)"))
    wait_until(lambda: acme.database.backends("state = 'active' and query like '%sleep%'"), what="a query")
    client.reset()
    wait_until(lambda: walsenders(acme.database) == 0, what="the end of the query")
    world.wait_for_rest(acme)


def test_a_stream_ends_with_its_server_or_its_tenants_service(world: World, acme: TenantUnderTest) -> None:
    with connect(world, acme) as client:
        stream(client)
        acme.database.terminate_backends("backend_type = 'walsender'")
        messages = client.read_to_end()
        assert [message.fields["C"] for message in messages if message.kind == "E"] == ["57P01"], "the server's words"
    with connect(world, acme) as client:
        stream(client)
        world.registry.do(lambda service: service.suspend_tenant(acme.slug))
        client.read_to_end()
        world.registry.do(lambda service: service.resume_tenant(acme.slug))
    world.wait_for_rest(acme)


def test_a_stream_ends_when_its_tenant_moves(world: World, publisher: ServerFacts, acme: TenantUnderTest) -> None:
    with connect(world, acme) as client:
        stream(client)
        world.registry.repoint(acme.slug, world.database(publisher))
        client.read_to_end()
        wait_until(lambda: walsenders(acme.database) == 0, what="the end of the stream")


def test_a_client_that_leaves_during_the_login_leaves_nothing(world: World, publisher: ServerFacts) -> None:
    tenant = replicating(world, publisher, pool_size=1)
    with connect(world, tenant):
        waiting = world.proxy.connect()
        waiting.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            waiting.login(tenant.user, tenant.password, tenant.slug, replication="database")
        waiting.reset()
    with connect(world, tenant) as client:
        assert client.rows("select 1") == [("1",)]
    world.wait_for_rest(tenant)


def test_a_slow_reader_of_a_whole_server_costs_little_memory(
    world: World, publisher: ServerFacts, staff: tuple[str, str]
) -> None:
    user, password = staff
    tenant = replicating(world, publisher, ReplicationAccess.NONE)
    with world.proxy.connect() as client:
        client.login(f"{user}.{tenant.slug}", password, "replication", replication="true")
        before = world.proxy.metric("process_resident_memory_bytes")
        client.send(query("BASE_BACKUP (CHECKPOINT 'fast', WAIT false)"))
        time.sleep(1.0)
        assert world.proxy.metric("process_resident_memory_bytes") < before + 8e6
        total = 0
        while (message := client.read()).kind != "Z":
            assert message.kind != "E", message.fields
            total += len(message.body)
        assert total > 10_000_000
        client.send(query("BASE_BACKUP (CHECKPOINT 'fast', WAIT false)"))
        wait_until(lambda: walsenders(tenant.database) == 1, what="a backup")
        client.reset()
    wait_until(lambda: walsenders(tenant.database) == 0, seconds=5, what="the end of the backup")
    world.wait_for_rest(tenant)


def test_half_a_message_and_impossible_ones_end_the_session(world: World, acme: TenantUnderTest) -> None:
    with connect(world, acme) as client:
        client.send(b"Q\0\0")
        client.reset()
    with connect(world, acme) as client:
        client.send(b"Q\xff\xff\xff\xff")
        with pytest.raises(Disconnected):
            client.read()
    world.wait_for_rest(acme)


def program(server: ServerFacts, name: str, *arguments: str, **environment: str) -> str:
    """Run one of PostgreSQL's programs and return what it has said."""
    ran = run([server.bin_dir / name, *arguments], env={**clean_environment(), **environment})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def test_pg_basebackup_copies_a_server_that_can_be_verified(
    world: World, publisher: ServerFacts, staff: tuple[str, str], tmp_path: Path
) -> None:
    tenant = replicating(world, publisher, ReplicationAccess.NONE)
    user, password = staff
    where = ["-h", world.proxy.host, "-p", str(world.proxy.port), "-U", f"{user}.{tenant.slug}"]
    program(
        publisher, "pg_basebackup", *where, "-w", "-c", "fast", "-N", "-D", str(tmp_path / "copy"), PGPASSWORD=password
    )
    assert "successfully verified" in program(publisher, "pg_verifybackup", str(tmp_path / "copy"))
    world.wait_for_rest(tenant)


def test_pg_recvlogical_streams_changes_into_a_file(
    world: World, publisher: ServerFacts, acme: TenantUnderTest, tmp_path: Path
) -> None:
    url, output = world.url(acme), tmp_path / "changes"
    slot = f"s_{acme.database.name}"
    program(publisher, "pg_recvlogical", "-d", url, "-S", slot, "-P", "test_decoding", "--create-slot")
    acme.database.psql("insert into events select g, 'streamed' from generate_series(1, 1000) g")
    end = acme.database.psql("select pg_current_wal_lsn()")
    program(publisher, "pg_recvlogical", "-d", url, "-S", slot, "--start", "-E", end, "-n", "-f", str(output))
    assert output.read_text().count("streamed") == 1000
    program(publisher, "pg_recvlogical", "-d", url, "-S", slot, "--drop-slot")
    world.wait_for_rest(acme)


def test_a_subscription_follows_a_publication_through_the_proxy(
    world: World, acme: TenantUnderTest, pg17: ServerFacts
) -> None:
    subscriber = world.database(pg17, seed="")
    subscriber.psql(SEED)
    acme.database.psql("insert into events values (1, 'there before')")
    acme.database.psql(f"grant select on events to {acme.database.role}; create publication p for table events")
    where = f"host={world.proxy.host} port={world.proxy.port} user={acme.user} password={acme.password}"
    name = f"sub_{acme.database.name}"
    subscriber.psql(f"create subscription {name} connection '{where} dbname={acme.slug}' publication p")
    try:
        wait_until(lambda: subscriber.psql("select note from events") == "there before", what="the first copy")
        acme.database.psql("insert into events values (2, 'new'); update events set note = 'changed' where id = 1")
        wait_until(
            lambda: subscriber.psql("select note from events order by id").split() == ["changed", "new"],
            what="the changes",
        )
    finally:
        subscriber.psql(f"drop subscription {name}")
    world.wait_for_rest(acme)


def test_streams_go_through_tls_on_both_sides_and_end_with_the_node(
    registry: RegistryUnderTest,
    start_proxy: Callable[..., ProxyProcess],
    make_database: Callable[..., Database],
    pg17: ServerFacts,
    tmp_path: Path,
) -> None:
    certificates = Certificates(tmp_path)
    registry.add_server(pg17, tls_mode=TlsMode.REQUIRE)
    database = make_database(pg17)
    tenant = registry.add_tenant("acme", database)
    database.psql(f"alter role {database.role} replication")
    password = secrets.token_urlsafe(12)
    change = LoginChange(password=Secret(password), replication=ReplicationAccess.SERVER)
    registry.do(lambda service: service.add_login("staff", None, change))
    proxy = start_proxy(listen=certificates.listen("require"))
    with proxy.connect() as client:
        client.start_tls(certificates.context(), server_hostname="localhost")
        client.login(f"staff.{tenant.slug}", password, replication="true")
        client.send(query("BASE_BACKUP (CHECKPOINT 'fast', WAIT false)"))
        total = sum(len(message.body) for message in client.read_until("Z"))
        assert total > 10_000_000
        (position,) = (row[2] for row in client.rows("IDENTIFY_SYSTEM"))
        client.send(query(f"START_REPLICATION PHYSICAL {position}"))
        assert client.read().kind == "W"
        database.psql("create table written (a int)")
        assert client.read().kind == "d"
        started = time.monotonic()
        proxy.send_signal(signal.SIGTERM)
        client.read_to_end()
        assert time.monotonic() - started < GRACE, "a stream has no end to wait for"
    wait_until(lambda: walsenders(database) == 0, what="the end of the stream")
