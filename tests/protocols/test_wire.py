"""Values from peers are typed, bounded and finite, or refused."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.errors import ProtocolViolation
from swarmnode.protocols import limits
from swarmnode.protocols.wire import Fields, clean_text, pack, unpack_map


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x81", "not msgpack"),
        (b"\x80\x80", "not msgpack"),
        (b"\x93\x01\x02\x03", "a list, not a map"),
        (b"\x01", "an integer, not a map"),
        (b"\x82\xa1a\x01\xa1a\x02", "the same key twice"),
        (b"\x81\xa1a\xc7\x00\x05", "extension type"),
        (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "type that is not allowed"),  # a timestamp
        (b"\x81\xa1a\xa2\xff\xfe", "not msgpack"),  # text that is not UTF-8
        (b"\x81\x01\x02", "not msgpack"),
        (b"\x81\xa1a\x81\xc4\x01b\x01", "key that is not text"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "not msgpack"),  # four billion items
        (b"\x81\xa1a\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "not msgpack"),
        (b"\x81\xa1a" + b"\x91" * 100_000, "not msgpack"),
        (msgpack.packb({"a": nested(limits.MAX_DEPTH)}), "nested deeper"),
        (msgpack.packb({"a": 2**63}), "more than 63 bits"),
        (msgpack.packb({"a": float("nan")}), "not finite"),
        (msgpack.packb({"a": [float("-inf")]}), "not finite"),
        (msgpack.packb({str(i): i for i in range(limits.MAX_MAP_ENTRIES + 1)}), "not msgpack within the limits"),
        (msgpack.packb({"a": [0] * (limits.MAX_ARRAY_ITEMS + 1)}), "not msgpack within the limits"),
    ],
)
def test_what_is_not_allowed_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        unpack_map(data, "frame header")


def test_what_is_just_allowed_is_taken() -> None:
    values: dict[str, object] = {str(i): i for i in range(limits.MAX_MAP_ENTRIES - 3)}
    values |= {"deep": nested(limits.MAX_DEPTH - 1), "low": -(2**63), "long": [0] * limits.MAX_ARRAY_ITEMS}
    assert unpack_map(pack(values), "map") == values


@given(st.dictionaries(st.text(max_size=10), st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(), max_size=20))
def test_round_trip(values: dict[str, object]) -> None:
    assert unpack_map(pack(values), "map") == values


FIELDS = Fields(
    "thing",
    {
        "int": 5,
        "true": True,
        "float": 0.5,
        "text": "word",
        "padded": " word",
        "ansi": "a\x1b[31mb",
        "bytes": b"1234",
        "nil": None,
        "list": [1, 2],
        "map": {"a": 1},
        "texts": ["a", ""],
        "loose": ["a", "b "],
    },
)


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda: FIELDS.integer("gone", 9), "thing: gone is missing"),
        (lambda: FIELDS.integer("nil", 9), "nil must be an integer, not nil"),
        (lambda: FIELDS.integer("true", 9), "true must be an integer, not a boolean"),
        (lambda: FIELDS.integer("float", 9), "float must be an integer, not a number"),
        (lambda: FIELDS.integer("int", 4), "int must be between 0 and 4"),
        (lambda: FIELDS.integer("int", 9, least=6), "int must be between 6 and 9"),
        (lambda: FIELDS.number("true", 9), "must be a number"),
        (lambda: FIELDS.number("int", 4.5), "between 0 and 4.5"),
        (lambda: FIELDS.text("bytes", 9), "must be text, not bytes"),
        (lambda: FIELDS.text("text", 3), "at most 3 characters, not 4"),
        (lambda: FIELDS.text("ansi", 20), "not printable"),
        (lambda: FIELDS.text("padded", 20), "not printable"),
        (lambda: FIELDS.text("text", 9, least_chars=5), "must not be empty"),
        (lambda: FIELDS.prose("text", 3), "at most 3 characters"),
        (lambda: FIELDS.prose("int", 3), "must be text"),
        (lambda: FIELDS.binary("text", 4), "must be bytes, not text"),
        (lambda: FIELDS.binary("bytes", 5), "must have 5 bytes, not 4"),
        (lambda: FIELDS.flag("int"), "must be a boolean"),
        (lambda: FIELDS.map("list"), "must be a map, not a list"),
        (lambda: FIELDS.map("map").integer("b", 1), "thing.map: b is missing"),
        (lambda: FIELDS.items("map", 9), "must be a list, not a map"),
        (lambda: FIELDS.items("list", 1), "at most 1 items, not 2"),
        (lambda: FIELDS.integers("list", 2, 1), "integers between 0 and 1"),
        (lambda: FIELDS.integers("texts", 2, 1), "integers between 0 and 1"),
        (lambda: FIELDS.texts("texts", 2, 5), "printable text of up to 5"),
        (lambda: FIELDS.texts("list", 2, 5), "printable text"),
        (lambda: FIELDS.texts("loose", 2, 5), "printable text"),
        (lambda: FIELDS.maps("list", 2), "must hold maps"),
    ],
)
def test_a_wrong_field_is_named(read: object, reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        read()  # type: ignore[operator]


def test_an_optional_field_is_missing_or_nil() -> None:
    assert FIELDS.has("int")
    assert not FIELDS.has("nil")
    assert not FIELDS.has("gone")
    assert FIELDS.prose("gone", 9) == ""


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain", "plain"),
        ("two\nlines\tand\r\nmore ", "two lines and more"),
        ("\x1b[2J\x1b]0;title\x07red", "[2J ]0;title red"),
        ("\u202eright to left\u2066", "right to left"),
        ("zero\u200bwidth\ufeff", "zero width"),
        ("naïve 日本 🙂", "naïve 日本 🙂"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("x" * 30, "x" * 19 + "…"),
        ("", ""),
    ],
)
def test_text_for_people_is_cleaned(text: str, clean: str) -> None:
    assert clean_text(text, 20) == clean


@given(st.text(), st.integers(1, 40))
def test_clean_text_is_one_printable_line_and_stays_as_it_is(text: str, most: int) -> None:
    clean = clean_text(text, most)
    assert len(clean) <= most
    assert clean.isprintable()
    assert clean_text(clean, most) == clean
