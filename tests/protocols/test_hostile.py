"""Bytes made to hurt: whatever comes in, out comes a message or one `ProtocolViolation`, never anything else.

Random bytes stop at the first check, so most examples here are true frames and records with something wrong inside.
"""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.said import (
    anything,
    body_for,
    directory_messages,
    messages,
    server_key,
    server_record,
    signed,
    signed_server,
    whole,
)
from swarmnode._native import frame_checksum
from swarmnode.errors import ProtocolViolation
from swarmnode.protocols import directory, limits
from swarmnode.protocols import messages as session
from swarmnode.protocols.directory import DirectoryMessage
from swarmnode.protocols.frames import FrameReader
from swarmnode.protocols.keys import model_key
from swarmnode.protocols.messages import Message
from swarmnode.protocols.records import SIGNED_DOMAIN, open_record
from swarmnode.protocols.refusals import error_from
from swarmnode.protocols.store import RecordStore
from swarmnode.protocols.wire import unpack_map

MAX_REASON_CHARS = 200


def hostile(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def heard(data: bytes) -> list[Message | DirectoryMessage]:
    """Everything both protocols can make of a stream that brings these bytes, checked as far as it goes."""
    said: list[Message | DirectoryMessage] = []
    for parse in (session.parse, directory.parse):
        reader = FrameReader(1 << 20)
        reader.feed(data)
        try:
            while (frame := reader.next_frame()) is not None:
                said.append(parse(frame))
        except ProtocolViolation as violation:
            check_reason(violation)
    for message in said:
        if isinstance(message, session.Refused | session.Break):
            assert str(error_from(message.code, message.message, message.hint)).isprintable()
    return said


def check_reason(violation: ProtocolViolation) -> None:
    """One sentence, fit to be shown and to be sent back."""
    assert violation.message.isprintable()
    assert violation.message.endswith(".")
    assert len(violation.message) <= MAX_REASON_CHARS


def framed(header: bytes, body: bytes = b"") -> bytes:
    """A frame with a true prefix around any header bytes."""
    padding = bytes(-(16 + len(header)) % 64) if body else b""
    prefix = b"SWN\x01" + len(header).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    checksum = frame_checksum(prefix, header, padding, body)
    return prefix + checksum.to_bytes(4, "little") + header + padding + body


def packed(value: object) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with some overwritten, cut out, doubled or put in."""
    damage = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(damage) - 1)))
        match draw(st.sampled_from(["set", "flip", "cut", "insert", "double"])):
            case "set" if damage:
                damage[at] = draw(st.sampled_from([0x00, 0x7F, 0x80, 0xC0, 0xC1, 0xC6, 0xDB, 0xDD, 0xDF, 0xFF]))
            case "flip" if damage:
                damage[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del damage[at : at + draw(st.integers(1, 9))]
            case "insert":
                damage[at:at] = draw(st.binary(min_size=1, max_size=9))
            case _:
                damage[at:at] = damage[at : at + 16]
    return bytes(damage)


@st.composite
def altered(draw: st.DrawFn, value: object, depth: int = 0) -> object:
    """A map or list with one thing in it replaced by anything, left out or added, at any depth."""
    inside = isinstance(value, dict | list) and len(value) > 0 and (depth == 0 or draw(st.booleans()))
    if not inside:
        return draw(anything)
    if isinstance(value, dict):
        name = draw(st.sampled_from(sorted(value)))
        match draw(st.sampled_from(["alter", "alter", "alter", "drop", "add"])):
            case "alter":
                return {**value, name: draw(altered(value[name], depth + 1))}
            case "drop":
                return {key: item for key, item in value.items() if key != name}
            case _:
                return {**value, draw(st.text(max_size=5)): draw(anything)}
    assert isinstance(value, list)
    at = draw(st.integers(0, len(value) - 1))
    return [*value[:at], draw(altered(value[at], depth + 1)), *value[at + 1 :]]


valid: st.SearchStrategy[tuple[bytes, bytes]] = st.one_of(
    messages.map(lambda message: (session.encode(message, body_for(message))[0], body_for(message))),
    directory_messages.map(lambda message: (directory.encode(message)[0], bytes(directory.encode(message)[1]))),
)


def header_of(head: bytes) -> bytes:
    return head[16 : 16 + int.from_bytes(head[4:8], "little")]


@hostile(2_000)
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    heard(data)


@hostile(2_000)
@given(st.data(), valid, valid)
def test_damaged_streams(data: st.DataObject, first: tuple[bytes, bytes], second: tuple[bytes, bytes]) -> None:
    heard(data.draw(damaged(whole([*first, *second]))))


@hostile(1_500)
@given(st.binary(max_size=100), st.binary(max_size=50))
def test_true_frames_around_random_headers(header: bytes, body: bytes) -> None:
    heard(framed(header, body))


@hostile(2_500)
@given(st.data(), valid)
def test_true_frames_around_damaged_headers(data: st.DataObject, parts: tuple[bytes, bytes]) -> None:
    head, body = parts
    heard(framed(data.draw(damaged(header_of(head))), body))


@pytest.mark.slow
@hostile(3_000)
@given(st.data(), valid, st.booleans())
def test_true_frames_around_altered_values(data: st.DataObject, parts: tuple[bytes, bytes], same_body: bool) -> None:
    head, body = parts
    header = data.draw(altered(unpack_map(header_of(head), "header")))
    heard(framed(packed(header), body if same_body else data.draw(st.binary(max_size=64))))


PAYLOAD = unpack_map(signed(server_record(1))[limits.SIGNATURE_BYTES :], "record")


def resigned(payload: bytes) -> bytes:
    return server_key(1).sign(SIGNED_DOMAIN + payload).signature + payload


def opened(data: bytes) -> None:
    try:
        record = open_record(data)
    except ProtocolViolation as violation:
        check_reason(violation)
    else:
        assert record.public_name.isprintable()
        assert 0 <= record.start < record.end <= record.num_blocks <= limits.MAX_BLOCKS


@hostile(1_000)
@given(st.data())
def test_damaged_records(data: st.DataObject) -> None:
    opened(data.draw(st.binary(max_size=200) | damaged(signed_server(1))))


@hostile(1_000)
@given(st.data())
def test_truly_signed_records_of_altered_values(data: st.DataObject) -> None:
    record = resigned(packed(data.draw(altered(PAYLOAD))))
    opened(record)
    verdict = RecordStore().offer(model_key(server_record(1).model.name), record, 0, now=0)
    assert verdict.stored == (verdict.reason == "")


BOMBS: dict[str, Callable[[], bytes]] = {
    "nested lists": lambda: b"\x81\xa1a" + b"\x91" * 16_000,
    "nested maps": lambda: b"\x81\xa1a" * 5_000,
    "wide lists in lists": lambda: b"\x81\xa1a" + b"\xdc\x04\x00" * 5_000,
    "list of four billion": lambda: b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "map of four billion": lambda: b"\xdf\xff\xff\xff\xff",
    "text of four gigabytes": lambda: b"\x81\xa1a\xdb\xff\xff\xff\xff" + b"x" * 100,
    "many empty lists": lambda: packed({"type": "ping", "nonce": 1, "x": [[[]] * 1_000] * 7}),
    "a list of maps": lambda: packed({"type": "announced", "verdicts": [{str(i): [] for i in range(60)}] * 32}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    heard(framed(BOMBS[name]()[: limits.MAX_HEADER_BYTES]))
    opened(resigned(BOMBS[name]()[: limits.MAX_RECORD_BYTES - 64]))
