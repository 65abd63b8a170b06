"""The console's side of the protocol, simple and extended: messages in, messages and work out.

Source: PostgreSQL documentation, "Protocol Flow", sections "Simple Query" and "Extended Query".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy.admin.commands import Accepted, Command, Move, Nothing, parse
from proxy.admin.tables import Row, describe, formats_for
from proxy.errors import (
    CONSOLE_NO_PORTAL,
    CONSOLE_NO_STATEMENT,
    CONSOLE_TOO_MANY_NAMES,
    CONSOLE_UNSUPPORTED,
    Failure,
    Severity,
)
from proxy.wire import ProtocolError
from proxy.wire.backend import (
    BindComplete,
    CloseComplete,
    EmptyQueryResponse,
    NoData,
    ParameterDescription,
    ParseComplete,
    ReadyForQuery,
    TransactionStatus,
)
from proxy.wire.frontend import (
    Bind,
    Close,
    CopyData,
    CopyDone,
    CopyFail,
    Describe,
    Execute,
    Flush,
    FunctionCall,
    Parse,
    Query,
    Sync,
    Target,
    Terminate,
    decode_frontend,
)
from proxy.wire.reports import ErrorResponse

MAX_NAMES: Final = 64
"""Prepared statements, and portals, that a session may have."""
MAX_NAME: Final = 256
"""Longest of their names, in characters."""


class Portal:
    """A command that is ready to run, or in the midst of it.

    `rows` belongs to whoever runs it: None before, and what is left after a row limit.  `count` is how many have been
    sent, and `finished` that there are no more.
    """

    def __init__(self, command: Command, formats: tuple[int, ...]) -> None:
        self.command = command
        self.formats = formats
        self.rows: Iterator[Row | None] | None = None
        self.count = 0
        self.finished = False


@dataclass(frozen=True, slots=True)
class Run:
    """Work to do: run a portal for at most `limit` rows, 0 for all of them, and send those and how it ended."""

    portal: Portal
    limit: int = 0


Step: TypeAlias = bytes | Run


class Conversation:
    """One session, after its login.

    `take` each message and carry out its steps one after the other: send bytes, do a `Run`.  Where one raises Failure,
    forget the rest of them, and send what `failed` gives.  `over` says that the client has said goodbye.
    """

    def __init__(self) -> None:
        self.over = False
        self._in_transaction = False
        self._skips_to_sync = False
        self._simple = False
        self._statements: dict[str, Command] = {}
        self._portals: dict[str, Portal] = {}

    def take(self, kind: int, body: bytes) -> Iterator[Step]:
        """The steps that a message asks for.  Raises ProtocolError for what is none, Failure for what cannot be."""
        message = decode_frontend(kind, body)
        self._simple = isinstance(message, Query | FunctionCall)
        if isinstance(message, Terminate):
            self.over = True
        elif isinstance(message, Sync):
            self._skips_to_sync = False
            if not self._in_transaction:
                self._portals.clear()
            yield self.ready()
        elif self._skips_to_sync or isinstance(message, Flush | CopyData | CopyDone | CopyFail):
            # A COPY's messages are ignored outside of one, as PostgreSQL does.
            return
        elif isinstance(message, Query):
            yield from self._query(message)
        elif isinstance(message, Parse):
            yield self._parse(message)
        elif isinstance(message, Bind):
            yield self._bind(message)
        elif isinstance(message, Describe):
            yield self._describe(message)
        elif isinstance(message, Execute):
            yield from self._execute(message)
        elif isinstance(message, Close):
            names = self._statements if message.target is Target.STATEMENT else self._portals
            names.pop(message.name, None)
            yield CloseComplete().encode()
        elif isinstance(message, FunctionCall):
            raise Failure(CONSOLE_UNSUPPORTED, feature="function calls")
        else:
            raise ProtocolError("a password after the login")

    def failed(self, failure: Failure) -> bytes:
        """What to send when a step of the message taken last has failed."""
        error = ErrorResponse.build(failure.severity.value, failure.sqlstate, failure.message, hint=failure.hint)
        if failure.severity is Severity.FATAL:
            self.over = True
            return error.encode()
        if self._simple:
            return error.encode() + self.ready()
        self._skips_to_sync = True
        return error.encode()

    def ready(self) -> bytes:
        """The ReadyForQuery of now."""
        status = TransactionStatus.IN_TRANSACTION if self._in_transaction else TransactionStatus.IDLE
        return ReadyForQuery(status).encode()

    def _query(self, message: Query) -> Iterator[Step]:
        self._statements.pop("", None)
        self._portals.pop("", None)
        for command in parse(message.sql):
            portal = Portal(command, formats_for(command.columns, ()))
            if command.columns:
                yield describe(command.columns, portal.formats)
            yield from self._run(portal, 0)
        if not self._in_transaction:
            self._portals.clear()
        yield self.ready()

    def _parse(self, message: Parse) -> bytes:
        if message.parameter_types:
            raise Failure(CONSOLE_UNSUPPORTED, feature="parameters")
        commands = parse(message.sql)
        if len(commands) > 1:
            raise Failure(CONSOLE_UNSUPPORTED, feature="several commands in a prepared statement")
        self._check_name(message.name, self._statements)
        self._statements[message.name] = commands[0]
        return ParseComplete().encode()

    def _bind(self, message: Bind) -> bytes:
        command = self._statement(message.statement)
        if message.parameters:
            raise Failure(CONSOLE_UNSUPPORTED, feature="parameters")
        self._check_name(message.portal, self._portals)
        self._portals[message.portal] = Portal(command, formats_for(command.columns, message.result_formats))
        return BindComplete().encode()

    def _describe(self, message: Describe) -> bytes:
        if message.target is Target.STATEMENT:
            columns = self._statement(message.name).columns
            head, formats = ParameterDescription(()).encode(), formats_for(columns, ())
        else:
            portal = self._portal(message.name)
            columns, head, formats = portal.command.columns, b"", portal.formats
        return head + (describe(columns, formats) if columns else NoData().encode())

    def _execute(self, message: Execute) -> Iterator[Step]:
        yield from self._run(self._portal(message.portal), max(0, message.max_rows))

    def _run(self, portal: Portal, limit: int) -> Iterator[Step]:
        command = portal.command
        if isinstance(command, Nothing):
            yield EmptyQueryResponse().encode()
            return
        yield Run(portal, limit)
        if isinstance(command, Accepted) and command.move is not Move.NONE:
            self._in_transaction = command.move is Move.BEGIN

    def _statement(self, name: str) -> Command:
        command = self._statements.get(name)
        if command is None:
            raise Failure(CONSOLE_NO_STATEMENT, name=name)
        return command

    def _portal(self, name: str) -> Portal:
        portal = self._portals.get(name)
        if portal is None:
            raise Failure(CONSOLE_NO_PORTAL, name=name)
        return portal

    @staticmethod
    def _check_name(name: str, names: dict[str, Command] | dict[str, Portal]) -> None:
        if len(name) > MAX_NAME or (name not in names and len(names) >= MAX_NAMES):
            raise Failure(CONSOLE_TOO_MANY_NAMES, limit=MAX_NAMES)
