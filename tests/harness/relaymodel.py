"""A small model of PostgreSQL's main loop, and the relay rules between it and a client, without any socket.

The model is written from `PostgresMain()`, `CopyGetData()` and the documentation's "Message Flow", and knows nothing
of the proxy.  What a message is to bring about is spelled in its names: `execute("error")` fails, `query("begin;dml")`
begins a transaction and changes something.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from harness.fakeserver import command_complete, data_row, error_response, parameter_status, ready, row_description
from harness.malformed import is_refused
from harness.rawclient import cstring, frame
from proxy.session.desk import NEED_ERROR, NEED_NOTHING
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
    """One backend: bytes go into `inbox`, `step` takes one message from it, answers come out in `outbox`."""

    def __init__(self) -> None:
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.status = "I"
        self.skipping = False
        self.copying = ""
        self.rest: list[str] = []
        self.implicit = False
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
            and not self.implicit
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
        self.implicit = False
        self.deferred = False
        self.rest = []

    def _ready(self) -> None:
        self.implicit = False
        self._say(ready(self.status))

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
            self.skipping = self.since_sync = False
        elif self.skipping:
            return
        words = body.split(b"\0")
        if is_refused(kind, body):
            self._error("08P01")
            if kind in "QFS":
                self._ready()
            else:
                self.skipping = True
        elif kind == "S":
            self._commit()
            self._ready()
        elif kind == "Q":
            self.rest = words[0].decode().split(";")
            self._statements()
        elif kind == "F":
            if body.startswith(b"\0\0\0\1") and self.status != "E":
                self._say(frame("V", struct.pack("!i", -1)))
                self._commit()
            else:
                self._error()
            self._ready()
        elif kind in "PBDEC":
            self.implicit = True
            if not self._extended(kind, words):
                self.skipping = True

    def _extended(self, kind: str, words: Sequence[bytes]) -> bool:
        """One message of the extended protocol; False when it failed."""
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
            self._commit()
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
        if word == "begin":
            self.status = "T"
            self._say(command_complete("BEGIN"))
        elif word in ("commit", "rollback"):
            self.status = "I"
            self.deferred = False
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
        """Say whether the links would give the backend back, pins aside."""
        return self.back.releasable() and not (self.front.left or self.held_from_client or self.held_from_server)

    def pins(self) -> int:
        return self.front.pins | self.back.pins
