"""Frames survive any cutting of the stream, and nothing else passes."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.said import whole
from swarmnode._native import frame_checksum
from swarmnode.errors import ProtocolViolation
from swarmnode.protocols import limits
from swarmnode.protocols.frames import FRAME_VERSION, Frame, FrameReader, encode_frame

BODY = bytes(range(256)) * 3


def frame_bytes(header: dict[str, object], body: bytes = b"") -> bytes:
    return whole(encode_frame(header, body))


def repaired(data: bytearray) -> bytes:
    """The same bytes with the checksum they should have."""
    data[12:16] = frame_checksum(data[:12], data[16:]).to_bytes(4, "little")
    return bytes(data)


def read_all(data: bytes, max_body_bytes: int = limits.MAX_BODY_BYTES) -> list[Frame]:
    reader = FrameReader(max_body_bytes)
    reader.feed(data)
    return list(iter(reader.next_frame, None))


def test_the_body_starts_aligned_and_is_not_copied() -> None:
    body = bytearray(BODY)
    for length in range(80):
        head, view = encode_frame({"x": "y" * length}, body)
        assert len(head) % limits.BODY_ALIGNMENT_BYTES == 0
        assert view.obj is body


def test_a_frame_without_body_is_not_padded() -> None:
    assert len(frame_bytes({"type": "close"})) == 16 + len(b"\x81\xa4type\xa5close")


@given(
    st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=200)), max_size=5),
    st.lists(st.integers(1, 300)),
)
def test_frames_come_out_however_the_stream_is_cut(said: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame_bytes({"number": number}, body) for number, body in said)
    reader = FrameReader()
    frames = []
    while data:
        size = cuts.pop() if cuts else len(data)
        reader.feed(bytearray(data[:size]))
        data = data[size:]
        frames += list(iter(reader.next_frame, None))
    assert [(frame.header["number"], bytes(frame.body)) for frame in frames] == said
    assert not reader.in_frame


def test_a_fed_buffer_may_be_used_again() -> None:
    reader = FrameReader()
    buffer = bytearray(frame_bytes({"a": 1}, BODY))
    reader.feed(buffer)
    buffer[:] = bytes(len(buffer))
    frame = reader.next_frame()
    assert frame is not None
    assert frame.body == BODY


def test_an_early_end_can_be_told_from_a_clean_one() -> None:
    reader = FrameReader()
    assert not reader.in_frame
    reader.feed(frame_bytes({"a": 1})[:3])
    assert reader.next_frame() is None
    assert reader.in_frame


def test_many_small_frames_in_one_feed() -> None:
    one = frame_bytes({"type": "close"})
    assert len(read_all(one * 20_000)) == 20_000


def test_a_large_body_in_small_pieces() -> None:
    body = BODY * 5_461  # 4 MiB
    data = frame_bytes({"a": 1}, body)
    reader = FrameReader()
    for start in range(0, len(data), 1_000):
        assert reader.next_frame() is None
        reader.feed(data[start : start + 1_000])
    frame = reader.next_frame()
    assert frame is not None
    assert frame.body == body


def test_a_claimed_length_reserves_nothing() -> None:
    data = frame_bytes({"a": 1}, bytes(limits.MAX_BODY_BYTES))[:1_000]
    tracemalloc.start()
    try:
        readers = [FrameReader() for _ in range(20)]
        for reader in readers:
            reader.feed(data)
            assert reader.next_frame() is None
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def changed(offset: int, new: bytes, header: dict[str, object] | None = None, body: bytes = BODY) -> bytes:
    """A frame with some bytes overwritten and the checksum made right again."""
    data = bytearray(frame_bytes(header or {"a": 1}, body))
    data[offset : offset + len(new)] = new
    return repaired(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a swarmnode frame"),
        (changed(3, b"\x02"), f"speaks frame version 2, we speak version {FRAME_VERSION}"),
        (changed(4, bytes(4)), "header of 0 bytes"),
        (changed(4, b"\x01\x40\x00\x00"), "header of 16385 bytes; it may have 1 to 16384"),
        (changed(4, b"\xff\xff\xff\xff"), "header of 4294967295 bytes"),
        (changed(8, b"\x01\x00\x00\x04"), "body of 67108865 bytes; at most 67108864"),
        (changed(8, b"\xff\xff\xff\xff"), "body of 4294967295 bytes"),
        (frame_bytes({"a": 1}, BODY)[:-1] + b"\x00", "checksum"),
        (changed(16, b"\x92"), "not a map"),
        (changed(16, b"\xc1"), "not msgpack"),
        (changed(25, b"\x01"), "padding is not zero"),
    ],
)
def test_garbage_is_refused_and_the_reader_stays_broken(data: bytes, reason: str) -> None:
    reader = FrameReader()
    reader.feed(data)
    for _ in range(2):
        with pytest.raises(ProtocolViolation, match=reason):
            reader.next_frame()
        reader.feed(frame_bytes({"a": 1}))
    assert not reader.in_frame


def test_the_prefix_is_under_the_checksum() -> None:
    data = bytearray(frame_bytes({"a": 1}, BODY))
    data[8:12] = (len(BODY) - 64).to_bytes(4, "little")
    with pytest.raises(ProtocolViolation, match="checksum"):
        read_all(bytes(data))


def test_a_reader_takes_no_body_above_its_own_bound() -> None:
    assert len(read_all(frame_bytes({"a": 1}, bytes(100)), max_body_bytes=100)) == 1
    with pytest.raises(ProtocolViolation, match="body of 101 bytes; at most 100"):
        read_all(frame_bytes({"a": 1}, bytes(101)), max_body_bytes=100)


@given(st.integers(0), st.integers(1, 255))
def test_one_changed_byte_is_noticed(place: int, change: int) -> None:
    data = bytearray(frame_bytes({"type": "ping", "nonce": 7}, bytes(10)))
    data[place % len(data)] ^= change
    reader = FrameReader()
    reader.feed(data)
    with suppress(ProtocolViolation):
        assert reader.next_frame() is None  # it claims to be longer


def test_a_frame_over_the_limits_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="over the limits"):
        encode_frame({"a": "x" * limits.MAX_HEADER_BYTES})
    with pytest.raises(ValueError, match="over the limits"):
        encode_frame({"a": 1}, bytes(limits.MAX_BODY_BYTES + 1))
