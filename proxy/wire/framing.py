"""Message types, size limits, and a scanner that finds frames in chunks cut at any byte.

Compiled by mypyc in the package's build: plain typed Python only.  The relay has a scanner of its own, fused
with its rules; this one serves handshakes, where whole frames are wanted and small limits apply.

Source: PostgreSQL documentation, "Frontend/Backend Protocol", sections "Overview" and "Message Formats".
"""

from __future__ import annotations

from typing import Final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.wire.errors import ImpossibleLength

# Frontend message types.  Literal integers, because mypyc folds those into the code that uses them.
F_BIND: Final = 0x42  # B
F_CLOSE: Final = 0x43  # C
F_DESCRIBE: Final = 0x44  # D
F_EXECUTE: Final = 0x45  # E
F_FUNCTION: Final = 0x46  # F
F_FLUSH: Final = 0x48  # H
F_PARSE: Final = 0x50  # P
F_QUERY: Final = 0x51  # Q
F_SYNC: Final = 0x53  # S
F_TERMINATE: Final = 0x58  # X
F_COPY_DONE: Final = 0x63  # c
F_COPY_DATA: Final = 0x64  # d
F_COPY_FAIL: Final = 0x66  # f
F_PASSWORD: Final = 0x70  # p: PasswordMessage, SASLInitialResponse, SASLResponse, GSSResponse

# Backend message types.
B_PARSE_COMPLETE: Final = 0x31  # 1
B_BIND_COMPLETE: Final = 0x32  # 2
B_CLOSE_COMPLETE: Final = 0x33  # 3
B_NOTIFICATION: Final = 0x41  # A
B_COMMAND_COMPLETE: Final = 0x43  # C
B_DATA_ROW: Final = 0x44  # D
B_ERROR: Final = 0x45  # E
B_COPY_IN: Final = 0x47  # G
B_COPY_OUT: Final = 0x48  # H
B_EMPTY_QUERY: Final = 0x49  # I
B_BACKEND_KEY_DATA: Final = 0x4B  # K
B_NOTICE: Final = 0x4E  # N
B_AUTHENTICATION: Final = 0x52  # R
B_PARAMETER_STATUS: Final = 0x53  # S
B_ROW_DESCRIPTION: Final = 0x54  # T
B_FUNCTION_RESULT: Final = 0x56  # V
B_COPY_BOTH: Final = 0x57  # W
B_READY: Final = 0x5A  # Z
B_COPY_DONE: Final = 0x63  # c
B_COPY_DATA: Final = 0x64  # d
B_NO_DATA: Final = 0x6E  # n
B_PORTAL_SUSPENDED: Final = 0x73  # s
B_PARAMETER_DESCRIPTION: Final = 0x74  # t
B_NEGOTIATE_VERSION: Final = 0x76  # v

# Transaction status bytes of ReadyForQuery.
STATUS_IDLE: Final = 0x49  # I
STATUS_TRANSACTION: Final = 0x54  # T
STATUS_FAILED: Final = 0x45  # E

# Sizes in bytes.  A frame is one type byte, then a length that counts itself and the body.
HEADER_SIZE: Final = 5
LENGTH_SIZE: Final = 4

# Fewest and most body bytes.  The first four are PostgreSQL's own: a request code, MAX_STARTUP_PACKET_LENGTH,
# PG_MAX_AUTH_TOKEN_LENGTH and PG_MAX_SASL_MESSAGE_LENGTH; the last is the most that the length field can say.
MIN_STARTUP_BODY: Final = 4
MAX_STARTUP_BODY: Final = 10_000
MAX_PASSWORD_BODY: Final = 65_535
MAX_SASL_BODY: Final = 1_024
MAX_BODY: Final = 0x7FFFFFFF - 4


def frame_size(data: bytes, pos: i64) -> i64:
    """The length field of the frame whose type byte is at `pos`, signed: the frame's size without that byte."""
    return i64(read_i32_be(data, pos + 1))


def find_zero(data: bytes, start: i64, end: i64) -> i64:
    """Return where the first byte of zero in `data[start:end]` is, -1 if there is none; for names, which are short.

    `bytes.find` costs as much as hundreds of bytes do here, because Python has to be given both bounds as objects.
    """
    while start < end:
        if data[start] == 0:
            return start
        start += 1
    return -1


class FrameScanner:
    """Finds frames in a stream of chunks without copying a byte of any body.

    Call `push` with a chunk, then `step` until it returns False; only then push the next chunk.  After a `step`
    that returned True, `kind` is the frame's type byte (0 for untyped startup packets), `length` the size of its
    body, `start` and `end` the offsets into the pushed chunk of the piece of the body that it holds, and
    `remaining` the bytes of the body still to come.  A frame's first piece (`first`) is reported as soon as its
    header is complete, be it empty or not; its last piece has `remaining` 0.

    `least` and `limit` are the fewest and the most bytes that a body may have.  They are held against a header as soon
    as the header is complete, before anything is allocated for the body; `limit` may be changed between frames.
    """

    def __init__(self, limit: int, typed: bool = True, least: int = 0) -> None:
        self.limit = limit
        self.least = least
        self.kind = 0
        self.length = 0
        self.start = 0
        self.end = 0
        self.remaining = 0
        self.first = False
        self._typed = typed
        self._header_size = HEADER_SIZE if typed else LENGTH_SIZE
        self._head = b""
        self._chunk = b""
        self._pos = 0

    def push(self, chunk: bytes) -> None:
        """Take the next chunk of the stream.

        Raises ValueError when the chunk before it has not been stepped through: its rest would be lost.
        """
        if self._pos < len(self._chunk):
            raise ValueError("the chunk before has not been scanned to its end")
        self._chunk = chunk
        self._pos = 0

    def step(self) -> bool:
        """Move to the next piece; False when the chunk is used up.

        Raises ImpossibleLength when a header's length is below 4, or its body below `least` or above `limit`; the
        stream has no further meaning then.
        """
        if self.remaining:
            self.first = False
        elif not self._next_header():
            return False
        available = len(self._chunk) - self._pos
        if available == 0 and not self.first:
            return False
        taken = min(available, self.remaining)
        self.start = self._pos
        self.end = self._pos + taken
        self._pos = self.end
        self.remaining -= taken
        return True

    def wanted(self) -> int:
        """The bytes still missing to complete the current header or body: what an exact read may ask for.

        Only meaningful after `step` has returned False or a frame's last piece.
        """
        if self.remaining:
            return self.remaining
        return self._header_size - len(self._head)

    def rest(self) -> bytes:
        """Give up the bytes that were pushed and lie beyond the last reported piece; the scanner is empty then."""
        rest = self._head + self._chunk[self._pos :]
        self._head = b""
        self._chunk = b""
        self._pos = 0
        return rest

    def _next_header(self) -> bool:
        missing = self._header_size - len(self._head)
        stop = self._pos + missing
        head = self._head + self._chunk[self._pos : stop]
        if len(head) < self._header_size:
            self._head = head
            self._pos = len(self._chunk)
            return False
        self._head = b""
        self._pos = stop
        size = int.from_bytes(head[-LENGTH_SIZE:], "big")
        if size < LENGTH_SIZE:
            raise ImpossibleLength(f"message length {size} is smaller than the length field itself", size)
        if size - LENGTH_SIZE < self.least:
            raise ImpossibleLength(f"message length {size} is below {self.least + LENGTH_SIZE} bytes", size)
        if size - LENGTH_SIZE > self.limit:
            raise ImpossibleLength(f"message length {size} exceeds the limit of {self.limit + LENGTH_SIZE} bytes", size)
        self.kind = head[0] if self._typed else 0
        self.length = size - LENGTH_SIZE
        self.remaining = self.length
        self.first = True
        return True


class FrameReader:
    """Puts whole frames together, for handshakes: push chunks, take frames, and hand on what is left over.

    Holds at most one body (`limit` bytes) and the chunk pushed last.  With `typed` False it reads startup
    packets, whose frames have no type byte.
    """

    def __init__(self, limit: int, typed: bool = True, least: int = 0) -> None:
        self._scanner = FrameScanner(limit, typed, least)
        self._typed = typed
        self._body = bytearray()
        self._chunk = b""
        self._open = False

    def set_limit(self, limit: int) -> None:
        """Change the most bytes that a body may have, from the next frame on."""
        self._scanner.limit = limit

    def push(self, chunk: bytes) -> None:
        """Take the next chunk; call `next_frame` until it returns None before pushing another."""
        self._scanner.push(chunk)
        self._chunk = chunk

    def next_frame(self) -> tuple[int, bytes] | None:
        """Take the next whole frame as (type byte, body), or None when more bytes are needed.

        Raises ImpossibleLength for a length that cannot be or exceeds the limits.
        """
        scanner = self._scanner
        while scanner.step():
            self._open = True
            piece = self._chunk[scanner.start : scanner.end]
            if scanner.remaining:
                self._body += piece
                continue
            self._open = False
            if not self._body:
                return scanner.kind, piece
            body = bytes(self._body + piece)
            self._body = bytearray()
            return scanner.kind, body
        return None

    def wanted(self) -> int:
        """The bytes that complete the current header or body: read no more than this to over-read nothing.

        Only meaningful after `next_frame`.
        """
        return self._scanner.wanted()

    def rest(self) -> bytes:
        """Give up every byte that was pushed and not returned in a frame; the reader is done with then."""
        rest = self._scanner.rest()
        if not self._open:
            return rest
        header = (self._scanner.length + LENGTH_SIZE).to_bytes(LENGTH_SIZE, "big")
        if self._typed:
            header = bytes((self._scanner.kind,)) + header
        return header + bytes(self._body) + rest
