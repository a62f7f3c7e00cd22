"""Hidden states to bytes and back: bit for bit in the exact codecs, closely in the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from swarmnode.errors import ProtocolViolation
from swarmnode.node.tensors import dtype_from_name, dtype_name, rows_of, tensor_from_bytes, tensor_to_bytes
from swarmnode.protocols.tensors import (
    CODEC_E4M3,
    CODEC_E5M2,
    CODEC_H4,
    CODEC_H6,
    CODEC_H8,
    CODEC_LOSSLESS,
    CODEC_RAW,
    DTYPE_BYTES,
    KNOWN_CODECS,
    TensorHeader,
)


def told(sent: tuple[TensorHeader, Buffer]) -> tuple[TensorHeader, bytes]:
    header, data = sent
    return header, bytes(data)


# Of the norm of normally distributed values.
MOST_LOSS = {CODEC_H8: 0.01, CODEC_H6: 0.03, CODEC_E4M3: 0.04, CODEC_E5M2: 0.07, CODEC_H4: 0.1}


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_come_back_as_they_were(dtype: str) -> None:
    tensor = torch.randn(2, 5, 8).to(dtype_from_name(dtype))
    header, data = tensor_to_bytes(tensor, dtype)
    assert header == TensorHeader(dtype, (2, 5, 8))
    assert memoryview(data).nbytes == header.raw_bytes
    assert torch.equal(tensor_from_bytes(header, bytearray(data)), tensor)
    assert dtype_name(tensor.dtype) == dtype


def test_a_slice_and_nothing_at_all() -> None:
    tensor = torch.randn(1, 5, 8)
    header, data = tensor_to_bytes(tensor[:, 3:], "float32")
    assert torch.equal(tensor_from_bytes(header, bytearray(data)), tensor[:, 3:])
    for codec in KNOWN_CODECS:
        header, data = tensor_to_bytes(tensor[:, 5:], "float32", codec)
        assert (header, memoryview(data).nbytes) == (TensorHeader("float32", (1, 0, 8)), 0)
        assert tensor_from_bytes(header, data).shape == (1, 0, 8)


def test_bytes_outlive_the_tensor() -> None:
    header, data = tensor_to_bytes(torch.full((1, 1000, 64), 3.0), "bfloat16")
    torch.zeros(1, 1000, 64)
    assert torch.equal(tensor_from_bytes(header, bytearray(data)), torch.full((1, 1000, 64), 3.0, dtype=torch.bfloat16))


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(DTYPE_BYTES)),
    st.sampled_from(KNOWN_CODECS),
    st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 200)),
    st.integers(0, 2**32),
)
def test_every_codec_of_every_shape(dtype: str, codec: int, shape: tuple[int, int, int], seed: int) -> None:
    tensor = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype_from_name(dtype))
    header, data = tensor_to_bytes(tensor, dtype, codec)
    assert header.has_length(memoryview(data).nbytes)
    assert header.codec in (codec, CODEC_RAW, CODEC_H8 if codec in (CODEC_H6, CODEC_H4) else codec)
    back = tensor_from_bytes(header, data)
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
    if header.codec in (CODEC_RAW, CODEC_LOSSLESS):
        assert torch.equal(back, tensor)


@pytest.mark.parametrize("codec", MOST_LOSS)
def test_what_is_lost_is_little(codec: int) -> None:
    tensor = torch.randn(1, 16, 576, generator=torch.Generator().manual_seed(5))
    tensor[..., 17] *= 300  # a channel such as models have
    header, data = tensor_to_bytes(tensor, "float32", codec)
    assert header.codec == codec
    back = tensor_from_bytes(header, data)
    ordinary = torch.arange(576) != 17
    assert (back - tensor)[..., 17].abs().max() < 0.05 * tensor[..., 17].abs().max()
    loss = (back - tensor)[..., ordinary].norm() / tensor.norm()
    assert 0 < loss < MOST_LOSS[codec]


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "the last tokens of one row": lambda whole: whole[:1, -4:],
    "the last token of every row": lambda whole: whole[:, -1:],
    "every other token": lambda whole: whole[:1, ::2],
    "some columns": lambda whole: whole[..., 50:178],
    "the same token again and again": lambda whole: whole[:1, :1].expand(1, 5, -1),
}


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("codec", KNOWN_CODECS)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_coded_in_place_as_what_it_shows(view: str, codec: int, dtype: str) -> None:
    seen = VIEWS[view](torch.randn(3, 10, 256, generator=torch.Generator().manual_seed(2)).to(dtype_from_name(dtype)))
    header, data = tensor_to_bytes(seen, dtype, codec)
    assert (header, bytes(data)) == told(tensor_to_bytes(seen.contiguous(), dtype, codec))
    memory, _ = rows_of(seen)
    assert np.frombuffer(memory, np.uint8).ctypes.data == seen.data_ptr()


def test_a_view_whose_tokens_are_not_at_one_distance_is_copied() -> None:
    whole = torch.randn(3, 10, 256, generator=torch.Generator().manual_seed(2))
    for seen in (whole[:, -4:], whole.transpose(1, 2)):
        plain = told(tensor_to_bytes(seen.contiguous(), "float32", CODEC_H8))
        assert told(tensor_to_bytes(seen, "float32", CODEC_H8)) == plain


@pytest.mark.parametrize("codec", KNOWN_CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_goes_raw(codec: int, bad: float) -> None:
    tensor = torch.ones(1, 4, 128)
    tensor[0, 2, 100] = bad
    header, data = tensor_to_bytes(tensor, "float32", codec)
    assert header.codec == CODEC_RAW
    assert torch.equal(tensor_from_bytes(header, data).nan_to_num(7), tensor.nan_to_num(7))


def test_what_would_grow_goes_raw() -> None:
    header, data = tensor_to_bytes(torch.randn(1, 1, 8), "bfloat16", CODEC_H8)
    assert header.codec == CODEC_RAW
    assert memoryview(data).nbytes == 16


@pytest.mark.parametrize("codec", [codec for codec in KNOWN_CODECS if codec != CODEC_RAW])
def test_a_broken_body_is_the_senders_fault(codec: int) -> None:
    header, data = tensor_to_bytes(torch.randn(1, 4, 256), "float32", codec)
    assert header.codec == codec
    bent = bytearray(data)
    bent[-1] ^= 1
    with pytest.raises(ProtocolViolation, match=r"cannot be decoded: .*checksum"):
        tensor_from_bytes(header, bent)
    with pytest.raises(ProtocolViolation, match="cannot be decoded"):
        tensor_from_bytes(header, memoryview(data)[:-1])
    with pytest.raises(ProtocolViolation, match="cannot be decoded"):
        tensor_from_bytes(TensorHeader("float32", (1, 4, 255), codec), data)
