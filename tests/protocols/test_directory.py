"""Announcing, finding and confirming, in frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.said import directory_messages, only_frame, signed_server, whole
from swarmnode.errors import ProtocolViolation
from swarmnode.protocols import limits
from swarmnode.protocols.directory import (
    Announced,
    DirectoryMessage,
    Find,
    Found,
    Info,
    Verdict,
    encode,
    parse,
)
from swarmnode.protocols.frames import encode_frame

KEY = bytes(range(32))


@given(directory_messages)
def test_round_trip(message: DirectoryMessage) -> None:
    assert parse(only_frame(whole(encode(message)))) == message


@given(st.floats(0, limits.MAX_LIFETIME_SECONDS))
def test_handing_on_never_makes_a_record_younger(age: float) -> None:
    heard = parse(only_frame(whole(encode(Found(((b"record", age),))))))
    assert isinstance(heard, Found)
    assert age <= heard.records[0][1] <= age + 0.002


def test_the_longest_answers_fit_a_frame() -> None:
    longest = bytes(limits.MAX_RECORD_BYTES)
    found = Found(((longest, 59.999),) * limits.MAX_RECORDS_PER_MESSAGE, True)
    head, body = encode(found)
    assert len(head) < 2_048
    assert body.nbytes <= limits.MAX_DIRECTORY_BODY_BYTES
    verdict = Verdict(False, "𝄞" * 500, limits.MAX_SEQUENCE, True)
    announced = parse(only_frame(whole(encode(Announced((verdict,) * limits.MAX_ANNOUNCED_RECORDS)))))
    assert isinstance(announced, Announced)
    assert len(announced.verdicts[-1].reason) == limits.MAX_VERDICT_CHARS


def said(body: bytes = b"", /, **header: object) -> DirectoryMessage:
    return parse(only_frame(whole(encode_frame(header, body))))


def test_unknown_fields_are_ignored() -> None:
    assert said(type="find", key=KEY, since=[1, {"a": None}]) == Find(KEY)
    verdict = {"stored": True, "reason": "", "crowded": False, "newest_sequence": None, "until": 7}
    assert said(type="announced", verdicts=[verdict]) == Announced((Verdict(True),))


@pytest.mark.parametrize(
    ("header", "body", "reason"),
    [
        ({"type": "step"}, b"", '"step" is not a message of the directory'),
        ({"type": []}, b"", "type must be text, not a list"),
        ({}, b"", "type is missing"),
        ({"type": "find", "key": bytes(31)}, b"", "key must have 32 bytes"),
        ({"type": "find", "key": KEY}, b"x", "find: it has a body of 1 bytes"),
        ({"type": "get_info"}, b"x", "get_info: it has a body"),
        ({"type": "announced", "verdicts": []}, b"x", "announced: it has a body"),
        ({"type": "announced", "verdicts": [1]}, b"", "verdicts must hold maps"),
        ({"type": "announced", "verdicts": [{}] * 33}, b"", "at most 32 items"),
        ({"type": "announced", "verdicts": [{"stored": 1}]}, b"", "stored must be a boolean"),
        ({"type": "announce", "key": KEY, "ages_ms": [0] * 33, "lengths": [0] * 33}, b"", "at most 32 items"),
        ({"type": "announce", "key": KEY, "ages_ms": [0], "lengths": []}, b"", "1 ages for 0 records"),
        ({"type": "announce", "key": KEY, "ages_ms": [0], "lengths": [2]}, b"x", "take 2 bytes, but the body has 1"),
        ({"type": "announce", "key": KEY, "ages_ms": [60_001], "lengths": [1]}, b"x", "between 0 and 60000"),
        ({"type": "announce", "key": KEY, "ages_ms": [-1], "lengths": [1]}, b"x", "between 0 and 60000"),
        ({"type": "announce", "key": KEY, "ages_ms": [0], "lengths": [4097]}, bytes(4097), "between 0 and 4096"),
        ({"type": "announce", "key": KEY, "ages_ms": [0, 0], "lengths": [-1, 2]}, b"x", "between 0 and 4096"),
        ({"type": "found", "ages_ms": [0] * 129, "lengths": [0] * 129}, b"", "at most 128 items"),
        ({"type": "found", "ages_ms": [], "lengths": []}, b"", "crowded is missing"),
        ({"type": "info"}, bytes(4097), "at most 4096 bytes, not 4097"),
    ],
)
def test_what_breaks_a_rule_is_refused(header: dict[str, object], body: bytes, reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        said(body, **header)


def test_a_record_travels_unchanged() -> None:
    data = signed_server(3)
    assert said(data, type="info") == Info(data)
