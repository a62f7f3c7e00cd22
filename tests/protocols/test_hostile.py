"""Bytes made to hurt: whatever comes in, out comes a message or one `ProtocolViolation`, never anything else.

Random bytes stop at the first check, so most examples here are true frames and records with something wrong inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import golden
from support.golden import DIRECTORY_EXAMPLES, SESSION_EXAMPLES
from support.said import server_key, server_record, signed, signed_server
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


def damaged(random: Random, data: bytes) -> bytes:
    """The bytes with some overwritten, cut out, doubled or put in."""
    damage = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(damage) + 1)
        match random.choice(["set", "flip", "cut", "insert", "double"]):
            case "set":
                damage[at : at + 1] = random.choice(
                    [b"\x00", b"\x7f", b"\x80", b"\xc0", b"\xc1", b"\xc6", b"\xdd", b"\xff"]
                )
            case "flip" if at < len(damage):
                damage[at] ^= 1 << random.randrange(8)
            case "cut":
                del damage[at : at + random.randint(1, 9)]
            case "insert":
                damage[at:at] = random.randbytes(random.randint(1, 9))
            case _:
                damage[at:at] = damage[at : at + 16]
    return bytes(damage)


LEAVES: list[object] = [None, True, False, -1, 0, 1, 2**31, 2**53, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
LEAVES += [
    0.0,
    -0.5,
    60.5,
    1e300,
    math.nan,
    math.inf,
    "",
    " ",
    "float32",
    "open",
    "\x1b[2J",
    "\u202eevil",
    "a\nb",
    "\x00",
]
LEAVES += [
    "a" * 200,
    "a" * 3_000,
    "日" * 512,
    golden.PEER,
    "/ip4/1.2.3.4",
    b"",
    bytes(16),
    bytes(32),
    bytes(3_000),
    [],
    {},
]


def anything(random: Random, depth: int = 0) -> object:
    """Any value that msgpack can carry, the nasty ones often."""
    match random.randrange(6 if depth < 4 else 4):
        case 0:
            return random.randint(-(2 ** random.randrange(64)), 2 ** random.randrange(64))
        case 1 | 2 | 3:
            return random.choice(LEAVES)
        case 4:
            return [anything(random, depth + 1) for _ in range(random.choice([1, 2, 3, 4, 70]) if depth == 0 else 2)]
        case _:
            return {random.choice(["peer", "start", "x", ""]): anything(random, depth + 1) for _ in range(3)}


def altered(random: Random, value: object) -> object:
    """A map or list with one thing in it, at any depth, replaced by anything, left out or added."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        name = random.choice(
            [name for name in sorted(value) if name != "type" or random.random() < 0.1] or sorted(value)
        )
        match random.randrange(6):
            case 0:
                return {key: item for key, item in value.items() if key != name}
            case 1:
                return {**value, random.choice(["new", "", "session"]): anything(random)}
            case _:
                return {**value, name: altered(random, value[name])}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        return [*value[:at], altered(random, value[at]), *value[at + random.randrange(2) :]]
    return anything(random)


def parts(data: bytes) -> tuple[bytes, bytes]:
    """A frame's header and body."""
    header_end = 16 + int.from_bytes(data[4:8], "little")
    return data[16:header_end], data[len(data) - int.from_bytes(data[8:12], "little") :]


VALID = [example.data for example in (*SESSION_EXAMPLES, *DIRECTORY_EXAMPLES)]
# Chance by seed: a hundred quick examples are worth more here than ten that can be shrunk.
chance = st.integers(0, 2**64).map(Random)


@hostile(3_000)
@given(chance)
def test_random_bytes(random: Random) -> None:
    heard(random.randbytes(random.randrange(300)))


@hostile(3_000)
@given(chance)
def test_damaged_streams(random: Random) -> None:
    heard(damaged(random, random.choice(VALID) + random.choice(VALID)))


@hostile(2_000)
@given(chance)
def test_true_frames_around_random_headers(random: Random) -> None:
    heard(framed(random.randbytes(random.randint(1, 100)), random.randbytes(random.choice([0, 0, 50]))))


@hostile(4_000)
@given(chance)
def test_true_frames_around_damaged_headers(random: Random) -> None:
    header, body = parts(random.choice(VALID))
    heard(framed(damaged(random, header), body))


@hostile(6_000)
@given(chance)
def test_true_frames_around_altered_values(random: Random) -> None:
    header, body = parts(random.choice(VALID))
    values = altered(random, unpack_map(header, "header"))
    if not isinstance(values, dict) and random.random() < 0.9:
        values = unpack_map(header, "header") | {random.choice(["step", "key", "session"]): values}
    heard(framed(packed(values), random.choice([body, body, body[:-1], b""])))


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


@hostile(1_500)
@given(chance)
def test_damaged_records(random: Random) -> None:
    opened(damaged(random, signed_server(1)) if random.random() < 0.8 else random.randbytes(200))


@hostile(2_000)
@given(chance)
def test_truly_signed_records_of_altered_values(random: Random) -> None:
    record = resigned(packed(altered(random, PAYLOAD)))
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
