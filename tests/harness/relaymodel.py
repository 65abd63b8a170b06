"""A small model of PostgreSQL's main loop, and the relay rules between it and a client, without any socket.

The model is written from `PostgresMain()`, `CopyGetData()`, `start_xact_command()` and the documentation's "Message
Flow", and knows nothing of the proxy.  What a message is to bring about is spelled in its names: `execute("error")`
fails, `query("begin;dml")` begins a transaction and changes something.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from harness.fakeserver import command_complete, data_row, error_response, parameter_status, ready, row_description
from harness.malformed import is_refused
from harness.rawclient import cstring, frame
from proxy.session.desk import NEED_ERROR, NEED_NOTHING
from proxy.session.pins import PIN_PIPELINE
from proxy.session.relay import FOUND_NOTHING, FrontState
from proxy.session.replies import BackState

NOTICE = frame("N", b"SNOTICE\0VNOTICE\0C00000\0Mmind\0\0")
NOTIFICATION = frame("A", struct.pack("!I", 7) + b"channel\0payload\0")
IGNORED_BETWEEN = "dcfH"
ANY_TIME = "NAS"


def function_call(number: int) -> bytes:
    """A FunctionCall without arguments."""
    return frame("F", struct.pack("!IHHH", number, 0, 0, 0))


def copy_data(text: str) -> bytes:
    return frame("d", text.encode())


def copy_done() -> bytes:
    return frame("c")


def copy_fail() -> bytes:
    return frame("f", cstring("enough"))


def frames(data: bytes) -> list[tuple[str, bytes]]:
    """Cut bytes into (kind, body); the last may be incomplete."""
    found = []
    pos = 0
    while pos + 5 <= len(data):
        after = pos + 1 + struct.unpack_from("!I", data, pos + 1)[0]
        found.append((chr(data[pos]), bytes(data[pos + 5 : after])))
        pos = after
    return found


def kinds(data: bytes) -> str:
    return "".join(kind for kind, _ in frames(data))


class ModelServer:
    """One backend: bytes go into `inbox`, `step` takes one message from it, answers come out in `outbox`.

    `implicit` is a transaction that nobody has begun, `flagged` that an Execute is part of it.  From version 18 on a
    Query behind that makes a block of it (`lasting`), which a Sync with nothing between ends in word only (`hanging`).
    """

    def __init__(self, version: int = 18) -> None:
        self.version = version
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.status = "I"
        self.skipping = False
        self.copying = ""
        self.rest: list[str] = []
        self.several = False
        self.implicit = False
        self.flagged = False
        self.lasting = False
        self.hanging = False
        self.deferred = False
        self.since_sync = False
        self.dead = False

    def settled(self) -> bool:
        """Say whether this backend is between transactions and nothing that it was sent is still to be answered."""
        return (
            not self.dead
            and self.status == "I"
            and not self.skipping
            and not self.copying
            and not (self.implicit or self.lasting or self.hanging)
            and all(kind in IGNORED_BETWEEN for kind, _ in frames(bytes(self.inbox)))
            and all(kind in ANY_TIME for kind, _ in frames(bytes(self.outbox)))
        )

    def step(self) -> bool:
        """Deal with one message; False when there is no whole one."""
        if self.dead or len(self.inbox) < 5:
            return False
        after = 1 + struct.unpack_from("!I", self.inbox, 1)[0]
        if len(self.inbox) < after:
            return False
        kind, body = chr(self.inbox[0]), bytes(self.inbox[5:after])
        del self.inbox[:after]
        if self.copying:
            self._copy(kind, body)
        else:
            self._take(kind, body)
        return True

    def interrupt(self) -> None:
        """What a cancel request does while the server copies in."""
        if self.copying:
            self._fail_copy("57014")

    def take_output(self, count: int) -> bytes:
        data = bytes(self.outbox[:count])
        del self.outbox[:count]
        return data

    def _say(self, *messages: bytes) -> None:
        for message in messages:
            self.outbox += message

    def _error(self, sqlstate: str = "XX001") -> None:
        self._say(error_response(sqlstate, "as asked"))
        if self.status == "T":
            self.status = "E"
        self.implicit = self.lasting = self.hanging = False
        self.deferred = False
        self.rest = []

    def _ready(self) -> None:
        self.implicit = self.flagged = False
        self._say(ready("T" if self.lasting else self.status))

    def _start(self) -> bool:
        """Begin a command that is not of the extended protocol; False when that fails."""
        if self.hanging:
            self._error("XX000")
            return False
        self.lasting = self.lasting or (self.version >= 18 and self.status == "I" and self.implicit and self.flagged)
        return True

    def _finish(self) -> None:
        """End such a command."""
        if not self.lasting:
            self._commit()

    def _commit(self) -> bool:
        """End the implicit transaction, if that is what there is; False when that fails."""
        if self.status == "I" and self.deferred:
            self._error("23503")
            return False
        return True

    def _take(self, kind: str, body: bytes) -> None:
        if kind == "X":
            self.dead = True
            return
        if kind in "PBDEC":
            self.since_sync = True
        if kind == "S":
            self.skipping = False
        elif self.skipping:
            return
        if kind in "QFS":
            self.since_sync = False
        words = body.split(b"\0")
        if is_refused(kind, body):
            self._error("08P01")
            if kind in "QFS":
                self._ready()
            else:
                self.skipping = True
        elif kind == "S":
            self._sync()
        elif kind == "Q":
            self._query(words[0].decode())
        elif kind == "F":
            self._call(body)
        elif kind in "PBDEC":
            self.skipping = not self._extended(kind, words)

    def _sync(self) -> None:
        self.hanging = self.hanging or (self.lasting and not self.implicit)
        self.lasting = False
        if not self.hanging:
            self._commit()
        self._ready()

    def _query(self, text: str) -> None:
        if self._start():
            self.rest = text.split(";")
            self.several = len(self.rest) > 1
            self._statements()
        else:
            self._ready()

    def _call(self, body: bytes) -> None:
        if self._start():
            if body.startswith(b"\0\0\0\1") and self.status != "E":
                self._say(frame("V", struct.pack("!i", -1)))
                self._finish()
            else:
                self._error()
        self._ready()

    def _extended(self, kind: str, words: Sequence[bytes]) -> bool:
        """One message of the extended protocol; False when it failed."""
        if self.hanging and kind != "C":
            self._error("XX000")
            return False
        self.implicit = True
        if kind == "C":
            self._say(frame("3"))
            return True
        if kind == "E":
            return self._run(words[0].decode(), simple=False)
        names = [word.decode("latin-1") for word in words[:2]]
        if kind == "D":
            names = [names[0][1:]]
        if "missing" in names or "error" in names or (self.status == "E" and not {"rollback", "commit"} & set(names)):
            self._error("42601")
            return False
        if kind == "P":
            self._say(frame("1"))
        elif kind == "B":
            self._say(frame("2"))
        else:
            if words[0].startswith(b"S"):
                self._say(frame("t", b"\0\0"))
            self._say(row_description("x") if names[0] in ("select", "suspend", "") else frame("n"))
        return True

    def _statements(self) -> None:
        """Go on with the statements of a Query, up to its end or to a COPY that reads."""
        if self.rest == [""]:
            self._say(frame("I"))
            self.rest = []
        while self.rest:
            if not self._run(self.rest.pop(0), simple=True):
                break
            if self.copying:
                return
        else:
            self.lasting = self.lasting and not self.several
            self._finish()
        self._ready()

    def _run(self, word: str, *, simple: bool) -> bool:
        if word == "error" or (self.status == "E" and word not in ("commit", "rollback")):
            self._error()
            return False
        if word in ("copyin", "copyrefused"):
            self._say(frame("G", b"\0\0\0"))
            if word == "copyrefused":
                self._error("57014")
                return False
            self.copying = "simple" if simple else "extended"
            return True
        self.flagged = self.flagged or not (simple or word in ("begin", "commit", "rollback", "empty"))
        if word == "begin":
            self.status = "T"
            self.lasting = False
            self._say(command_complete("BEGIN"))
        elif word in ("commit", "rollback"):
            self.status = "I"
            self.lasting = self.flagged = self.deferred = False
            self._say(command_complete(word.upper()))
        elif word == "select":
            if simple:
                self._say(row_description("x"))
            self._say(data_row("1"), data_row("2"), command_complete("SELECT 2"))
        elif word == "suspend" and not simple:
            self._say(data_row("1"), frame("s"))
        elif word == "copyout":
            self._say(frame("H", b"\0\0\0"), frame("d", b"1\n"), frame("c"), command_complete("COPY 1"))
        elif word == "empty" and not simple:
            self._say(frame("I"))
        elif word == "setting":
            self._say(parameter_status("TimeZone", "UTC"), command_complete("DO"))
        else:
            self.deferred = self.deferred or word == "deferred"
            self._say(command_complete("INSERT 0 1"))
        return True

    def _copy(self, kind: str, body: bytes) -> None:
        if kind == "d" and body != b"bad":
            return
        if kind in "HS":
            return
        if kind == "c":
            simple = self.copying == "simple"
            self.copying = ""
            self.flagged = self.flagged or not simple
            self._say(command_complete("COPY 1"))
            if simple:
                self._statements()
        elif kind in "df":
            self._fail_copy("22P04")
        else:
            self._error("08P01")
            self._say(error_response("08P01", "synchronization was lost", severity="FATAL"))
            self.dead = True

    def _fail_copy(self, sqlstate: str) -> None:
        simple = self.copying == "simple"
        self.copying = ""
        self._error(sqlstate)
        if simple:
            self._ready()
        else:
            self.skipping = True


class RelayPair:
    """A client's and a backend's state, fed as the links feed them; the client stays linked."""

    def __init__(self, ident: int = 1, back: BackState | None = None) -> None:
        self.front = FrontState(ident)
        self.back = BackState() if back is None else back
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.swallowed = bytearray()
        self.held_from_client = b""
        self.held_from_server = b""

    def client(self, *messages: bytes) -> None:
        """Bytes come from the client."""
        self.held_from_client += b"".join(messages)
        desk = self.front.desk
        while self.front.found == FOUND_NOTHING and not self.back.halted:
            data = self.held_from_client
            count = self.front.scan(data, self.back)
            self.to_server += data[:count] if desk.pieces is None else desk.rewritten(data, count)
            self.held_from_client = data[count:]
            if desk.need == NEED_NOTHING:
                return
            if desk.need == NEED_ERROR:
                self.to_server += desk.fail(self.back, b"<changed>")
            else:
                self.to_server += desk.attend(self.back)

    def server(self, *messages: bytes) -> None:
        """Bytes come from the server."""
        data = self.held_from_server + b"".join(messages)
        pos = 0
        while pos < len(data) and not self.back.fault:
            count = self.back.scan(data, pos)
            (self.swallowed if self.back.swallowing else self.to_client).extend(data[pos : pos + count])
            self.to_client += self.front.desk.told(self.back.answer)
            self.back.answer = b""
            if count == 0:
                break
            pos += count
        self.held_from_server = data[pos:]
        self.front.heard(self.back)
        if self.back.resumes():
            self.client()

    def releasable(self) -> bool:
        """Say whether the links would give the backend back, pins for session state aside."""
        held = self.front.left or self.held_from_client or self.held_from_server
        return self.back.releasable() and not (held or self.pins() & PIN_PIPELINE)

    def pins(self) -> int:
        return self.front.pins | self.back.pins
