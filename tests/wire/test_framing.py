"""The frame scanner: any split gives the same frames, lengths are checked before anything is kept."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import ProtocolError
from proxy.wire.framing import MAX_BODY, FrameReader, FrameScanner, find_zero

Frame = tuple[int, bytes]

frames_strategy = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=8)
cuts_strategy = st.lists(st.integers(1, 12), min_size=1, max_size=60)


def encode(frames: list[Frame], typed: bool = True) -> bytes:
    return b"".join(
        (bytes((kind,)) if typed else b"") + struct.pack("!I", len(body) + 4) + body for kind, body in frames
    )


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    chunks: list[bytes] = []
    turn = 0
    while stream:
        size = sizes[turn % len(sizes)]
        chunks.append(stream[:size])
        stream = stream[size:]
        turn += 1
    return chunks


def read_all(reader: FrameReader, chunks: list[bytes]) -> list[Frame]:
    frames: list[Frame] = []
    for chunk in chunks:
        reader.push(chunk)
        while (frame := reader.next_frame()) is not None:
            frames.append(frame)
    return frames


@given(frames_strategy, cuts_strategy, st.booleans())
def test_reader_gives_the_same_frames_for_any_split(frames: list[Frame], sizes: list[int], typed: bool) -> None:
    stream = encode(frames, typed)
    expected = frames if typed else [(0, body) for _, body in frames]
    assert read_all(FrameReader(100, typed), cut(stream, sizes)) == expected


@given(frames_strategy, cuts_strategy)
def test_scanner_pieces_add_up_to_the_bodies(frames: list[Frame], sizes: list[int]) -> None:
    scanner = FrameScanner(100)
    seen: list[tuple[int, bytearray]] = []
    for chunk in cut(encode(frames), sizes):
        scanner.push(chunk)
        while scanner.step():
            if scanner.first:
                seen.append((scanner.kind, bytearray()))
            seen[-1][1].extend(chunk[scanner.start : scanner.end])
            assert scanner.remaining == scanner.length - len(seen[-1][1])
    assert [(kind, bytes(body)) for kind, body in seen] == frames


@given(frames_strategy, st.integers(0, 400), cuts_strategy, st.integers(0, 8))
def test_rest_gives_back_every_byte_not_returned(
    frames: list[Frame], length: int, sizes: list[int], takes: int
) -> None:
    stream = encode(frames)[:length]
    reader = FrameReader(100)
    taken: list[Frame] = []
    sent = 0
    for chunk in cut(stream, sizes):
        reader.push(chunk)
        sent += len(chunk)
        while len(taken) < takes and (frame := reader.next_frame()) is not None:
            taken.append(frame)
        if len(taken) == takes:
            break
    assert encode(taken) + reader.rest() == stream[:sent]


@given(frames_strategy)
def test_reading_what_is_wanted_never_reads_past_a_frame(frames: list[Frame]) -> None:
    stream = encode(frames)
    reader = FrameReader(100)
    position = 0
    for expected in frames:
        frame = None
        while frame is None:
            size = reader.wanted()
            assert size > 0
            reader.push(stream[position : position + size])
            position += size
            frame = reader.next_frame()
        assert frame == expected
        assert reader.rest() == b""


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_length_below_its_own_size_is_refused(length: int) -> None:
    reader = FrameReader(100)
    reader.push(b"Q" + struct.pack("!I", length) + b"abc")
    with pytest.raises(ProtocolError, match="smaller"):
        reader.next_frame()


@pytest.mark.parametrize("length", [105, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_above_the_limit_is_refused_at_its_header(length: int) -> None:
    reader = FrameReader(100)
    reader.push(b"Q" + struct.pack("!I", length))
    with pytest.raises(ProtocolError, match="exceeds"):
        reader.next_frame()


def test_a_body_of_exactly_the_limit_passes() -> None:
    reader = FrameReader(100)
    reader.push(b"d" + struct.pack("!I", 104) + bytes(100))
    assert reader.next_frame() == (ord("d"), bytes(100))


def test_the_limit_can_grow_between_frames() -> None:
    reader = FrameReader(4)
    reader.push(encode([(1, b"four"), (2, b"longer")]))
    assert reader.next_frame() == (1, b"four")
    reader.set_limit(100)
    assert reader.next_frame() == (2, b"longer")


def test_the_greatest_length_is_scanned_without_its_body() -> None:
    scanner = FrameScanner(MAX_BODY)
    chunk = b"d" + struct.pack("!I", 0x7FFFFFFF) + b"x"
    scanner.push(chunk)
    assert scanner.step()
    assert (scanner.length, scanner.remaining, scanner.end) == (MAX_BODY, MAX_BODY - 1, len(chunk))


def test_pushing_over_an_unscanned_chunk_is_refused() -> None:
    scanner = FrameScanner(100)
    scanner.push(b"Q")
    with pytest.raises(ValueError, match="not been scanned"):
        scanner.push(b"x")


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=10))
def test_random_bytes_raise_nothing_but_protocol_errors(chunks: list[bytes]) -> None:
    reader = FrameReader(1000)
    try:
        read_all(reader, chunks)
    except ProtocolError:
        pass


@given(st.binary(max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_the_first_zero_is_found_within_its_bounds(data: bytes, start: int, end: int) -> None:
    end = min(end, len(data))
    assert find_zero(data, start, end) == data.find(b"\0", start, end)
