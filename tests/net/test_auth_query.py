"""Asking a server for verifiers: what a server may answer, and how little of it may harm."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from harness.fakeserver import FakeServer, FakeSession, Script, command_complete, data_row, error_response, ready
from harness.rawclient import frame
from harness.waiting import eventually
from structlog.testing import capture_logs

from proxy.demo.facts import ServerFacts
from proxy.net.auth_query import AskSettings, AuthQueries
from proxy.net.host_names import HostNames
from proxy.net.scram_keys import ScramKeyCache
from proxy.net.tls import ServerTlsContexts
from proxy.routing.server_logins import CannotAsk, ServerRole
from registry.contract import DEFAULT_AUTH_QUERY, Address, AuthQuery, Credentials, Secret, ServerInfo, TlsMode

VERIFIER = "SCRAM-SHA-256$1:c2FsdA==$c3RvcmVk:c2VydmVy"
DONE = command_complete("SELECT 1") + ready()
PROMPT = AskSettings(timeout=0.3, idle=0.2, retry_first=0.2, retry_most=0.2)


def answering(*answers: bytes, asked: list[list[bytes]] | None = None) -> Script:
    """A server that gives these answers in turn, the last one ever after, and keeps the questions' messages."""

    async def script(session: FakeSession) -> None:
        await session.accept()
        turn = 0
        while True:
            question = await session.read_until("SX")
            if question[-1].kind == "X":
                return
            if asked is not None:
                asked.append([message.body for message in question])
            await session.send(answers[min(turn, len(answers) - 1)])
            turn += 1

    return script


@asynccontextmanager
async def asking(
    script: Script, settings: AskSettings = PROMPT, *, query: str = DEFAULT_AUTH_QUERY
) -> AsyncIterator[tuple[AuthQueries, ServerInfo, FakeServer]]:
    queries = AuthQueries(
        settings, clock=time.monotonic, tls_contexts=ServerTlsContexts(), keys=ScramKeyCache(), names=HostNames()
    )
    async with FakeServer(script) as server:
        auth = AuthQuery(Credentials("asker"), "postgres", query)
        address = Address("127.0.0.1", server.port)
        yield queries, ServerInfo(1, "eu1", (address,), tls_mode=TlsMode.DISABLE, auth=auth), server
        queries.close()


async def test_a_role_is_asked_for_by_a_parameter_over_one_connection() -> None:
    asked: list[list[bytes]] = []
    async with asking(answering(data_row(VERIFIER, "5.5") + DONE, DONE, asked=asked)) as (queries, server, fake):
        assert await queries.ask(server, "app' or true --") == ServerRole(VERIFIER, 5.5)
        assert await queries.ask(server, "nobody") is None
        assert len(fake.sessions) == queries.connections == 1
        startup = fake.sessions[0].startup
    assert startup["search_path"] == "pg_catalog, pg_temp"
    assert (startup["user"], startup["database"], startup["client_encoding"]) == ("asker", "postgres", "UTF8")
    (parse, bind, _, _), _ = asked
    assert parse.split(b"\0")[1].decode() == DEFAULT_AUTH_QUERY
    assert b"app' or true --" in bind


async def test_the_registrys_query_is_asked_where_there_is_one() -> None:
    asked: list[list[bytes]] = []
    query = "SELECT * FROM pgtenant.login($1)"
    async with asking(answering(data_row(VERIFIER) + DONE, asked=asked), query=query) as (queries, server, _):
        assert await queries.ask(server, "app") == ServerRole(VERIFIER)
    assert asked[0][0].split(b"\0")[1].decode() == query


@pytest.mark.parametrize(
    "answer",
    [DONE, *(data_row(*row) + DONE for row in ((None,), (None, "1"), (VERIFIER, "0"), (VERIFIER, "-1")))],
    ids=["no row", "null", "null for a while", "over now", "over since"],
)
async def test_what_is_not_let_in_counts_as_absent(answer: bytes) -> None:
    async with asking(answering(answer)) as (queries, server, _):
        assert await queries.ask(server, "app") is None


@pytest.mark.parametrize(
    "answer",
    [
        data_row(VERIFIER) + data_row(VERIFIER) + DONE,
        data_row() + DONE,
        data_row(VERIFIER, "1", "more") + DONE,
        data_row(VERIFIER, "soon") + DONE,
        data_row("ÿ") + DONE,
        error_response("42501", "permission denied for table pg_authid") + ready(),
        frame("E", b"SERROR\0Mgo\naway\0\0") + ready(),
        frame("D", b"\0\7") + DONE,
        frame("D", b"\0\1" + b"\x7f\xff\xff\xff" + b"x" * 100),
        b"D\x7f\xff\xff\xff",
        frame("1") * 200,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_any_other_answer_lets_nobody_in_and_the_next_question_is_asked(answer: bytes) -> None:
    good = data_row(VERIFIER) + DONE
    turns = iter([answer])

    async def script(session: FakeSession) -> None:
        await answering(next(turns, good), good)(session)

    async with asking(script) as (queries, server, _):
        with pytest.raises(CannotAsk) as caught:
            await queries.ask(server, "app")
        assert "\n" not in str(caught.value)
        assert await queries.ask(server, "app") == ServerRole(VERIFIER)


async def test_a_name_that_the_database_cannot_spell_counts_as_absent(pg18: ServerFacts) -> None:
    database = f"latin_{uuid.uuid4().hex[:8]}"
    pg18.psql(f"create database {database} encoding 'LATIN1' locale 'C' template template0")
    try:
        async with asking(answering(DONE)) as (queries, _, _):
            password = Secret(pg18.password)
            auth = AuthQuery(Credentials(pg18.superuser, password), database, DEFAULT_AUTH_QUERY)
            place = Address(pg18.host, pg18.port)
            server = ServerInfo(2, "eu2", (place,), tls_mode=TlsMode.DISABLE, auth=auth)
            with capture_logs() as events:
                assert await queries.ask(server, "東京") is None
                assert await queries.ask(server, "nobody") is None
            assert events == [], "strangers could fill the log"
            assert queries.connections == 1
    finally:
        pg18.psql(f"drop database {database} with (force)")


async def test_a_server_that_keeps_silent_holds_up_nobody_for_long() -> None:
    async def script(session: FakeSession) -> None:
        await session.accept()
        await session.read_until("X")

    async with asking(script) as (queries, server, fake):
        began = time.monotonic()
        outcomes = await asyncio.gather(*(queries.ask(server, "app") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(outcome, CannotAsk) for outcome in outcomes)
        assert time.monotonic() - began < PROMPT.timeout * 3
        assert len(fake.sessions) <= 2
        assert queries.connections == 0


async def test_a_server_that_refuses_the_connection_is_left_alone_for_a_while() -> None:
    async def script(session: FakeSession) -> None:
        await session.read_startup()
        await session.send(error_response("53300", "sorry, too many clients already", severity="FATAL"))

    async with asking(script) as (queries, server, fake):
        for _ in range(5):
            with pytest.raises(CannotAsk, match="too many clients"):
                await queries.ask(server, "app")
        assert len(fake.sessions) == 1
        fake.script = answering(data_row(VERIFIER) + DONE)
        await asyncio.sleep(PROMPT.retry_first)
        assert await queries.ask(server, "app") == ServerRole(VERIFIER)


async def test_a_connection_that_was_ended_meanwhile_is_replaced_at_once() -> None:
    good = answering(data_row(VERIFIER) + DONE)

    async def once(session: FakeSession) -> None:
        await session.accept()
        await session.read_until("S")
        await session.send(data_row(VERIFIER) + DONE + error_response("57P01", "bye", severity="FATAL"))

    async with asking(once) as (queries, server, fake):
        assert await queries.ask(server, "app") == ServerRole(VERIFIER)
        fake.script = good
        assert await queries.ask(server, "app") == ServerRole(VERIFIER)
        assert len(fake.sessions) == 2


async def test_the_connection_is_closed_when_nobody_has_asked_for_a_while() -> None:
    async with asking(answering(data_row(VERIFIER) + DONE)) as (queries, server, fake):
        await queries.ask(server, "app")
        await eventually(lambda: queries.connections == 0, what="the connection closed")
        assert await queries.ask(server, "app") == ServerRole(VERIFIER)
        assert len(fake.sessions) == 2


async def test_another_role_or_place_is_another_connection() -> None:
    async with asking(answering(data_row(VERIFIER) + DONE)) as (queries, server, fake):
        await queries.ask(server, "app")
        await queries.ask(replace(server, auth=AuthQuery(Credentials("other"), "postgres")), "app")
        assert [session.startup["user"] for session in fake.sessions] == ["asker", "other"]
        assert queries.connections == 1
