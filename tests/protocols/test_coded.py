"""Coded tensors in messages: taken when their own header says what the message says, else refused with a reason."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.said import only_frame, whole
from swarmnode._native import codec_encode
from swarmnode.errors import ProtocolViolation
from swarmnode.protocols.frames import encode_frame
from swarmnode.protocols.messages import Output, Step, TensorHeader, encode, parse
from swarmnode.protocols.tensors import (
    CODEC_H6,
    CODEC_H8,
    CODEC_LOSSLESS,
    CODEC_RAW,
    DTYPE_NUMBERS,
    KNOWN_CODECS,
    check_body,
)

ROWS, COLS = 16, 200
VALUES = struct.pack(f"<{ROWS * COLS}f", *(1.0 + number / 7 for number in range(ROWS * COLS)))
TENSOR = TensorHeader("float32", (2, 8, COLS), CODEC_H8)


def blob(codec: int, dtype: str = "float32", rows: int = ROWS, cols: int = COLS) -> bytes:
    width = {"float32": 4}.get(dtype, 2)
    return bytes(codec_encode(codec, DTYPE_NUMBERS[dtype], rows, cols, bytes(rows * cols * width)))


@pytest.mark.parametrize("codec", [codec for codec in KNOWN_CODECS if codec != CODEC_RAW])
@pytest.mark.parametrize("kind", [Step, Output])
def test_a_coded_tensor_goes_there_and_back(codec: int, kind: type[Step | Output]) -> None:
    body = bytes(codec_encode(codec, 0, ROWS, COLS, VALUES))
    tensor = replace(TENSOR, codec=codec)
    message = Step(1, 2, 2, tensor) if kind is Step else Output(1, 2, 3, tensor)
    frame = only_frame(whole(encode(message, body)))
    assert parse(frame) == message
    assert frame.body == body


@pytest.mark.parametrize(
    ("tensor", "body", "reason"),
    [
        (TENSOR, blob(CODEC_LOSSLESS), "says something else than the message"),
        (TENSOR, blob(CODEC_H8, "bfloat16"), "says something else"),
        (TENSOR, blob(CODEC_H8, rows=ROWS - 1), "says something else"),
        (TENSOR, blob(CODEC_H8, cols=COLS - 1), "says something else"),
        (replace(TENSOR, codec=CODEC_H6), blob(CODEC_H8), "says something else"),
        (replace(TENSOR, dtype="bfloat16"), blob(CODEC_H8), "says something else"),
        (TENSOR, b"", "takes fewer than 12800 bytes and some, but the body has 0"),
        (TENSOR, bytes(12_800), "takes fewer than 12800 bytes and some, but the body has 12800"),
        (TENSOR, bytes(100), "is no coded tensor"),
        (TENSOR, blob(CODEC_H8)[:31], "is no coded tensor"),
        (TENSOR, b"SWD" + blob(CODEC_H8)[3:], "is no coded tensor"),
        (TENSOR, b"SWC\x02" + blob(CODEC_H8)[4:], "is no coded tensor"),
    ],
)
def test_what_does_not_fit_is_refused(tensor: TensorHeader, body: bytes, reason: str) -> None:
    head, view = encode_frame({"type": "step", **Step(0, 0, 0, tensor).to_map()}, body)
    with pytest.raises(ProtocolViolation, match=reason):
        parse(only_frame(head + bytes(view)))


@given(st.binary(max_size=300), st.integers(0, 40))
def test_no_bytes_do_more_than_break_the_protocol(data: bytes, start: int) -> None:
    honest = blob(CODEC_H8)
    for body in (data, honest[:start] + data, data + honest[len(data) :]):
        try:
            check_body(TENSOR, body)
        except ProtocolViolation:
            continue
        assert body[:3] == b"SWC"


def test_an_empty_tensor_is_raw() -> None:
    empty = TensorHeader("float32", (1, 0, COLS), CODEC_H8)
    with pytest.raises(ValueError, match="which it cannot have"):
        encode(Output(0, 0, 1, empty))
    with pytest.raises(ProtocolViolation, match="takes fewer than 0 bytes"):
        parse(only_frame(encode_frame({"type": "output", **Output(0, 0, 1, empty).to_map()})[0]))


def test_one_of_our_own_that_is_too_long_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="which it cannot have"):
        encode(Step(0, 0, 0, TENSOR), bytes(TENSOR.raw_bytes))
