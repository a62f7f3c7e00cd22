"""h8 by torch operations, as a CUDA device makes it, has the very bytes of the Rust. Here on the CPU's tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmnode._native import codec_encode
from swarmnode.node.codec.on_device import h8_on_device
from swarmnode.protocols.tensors import CODEC_H8, DTYPE_NUMBERS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def native(values: torch.Tensor) -> bytes:
    number = DTYPE_NUMBERS[str(values.dtype).removeprefix("torch.")]
    memory = values.contiguous().reshape(-1).view(torch.uint8).numpy().data
    rows, cols = values.shape
    return bytes(codec_encode(CODEC_H8, number, rows, cols, memory))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 5), st.integers(1, 300), st.integers(-40, 4), st.integers(0, 2**32))
def test_the_same_bytes(dtype: torch.dtype, rows: int, cols: int, exponent: int, seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, cols, generator=dice) * 10.0**exponent
    values[0, torch.randint(cols, (1,), generator=dice)] *= 1000
    values = values.to(dtype).nan_to_num(posinf=0, neginf=0)
    assert bytes(h8_on_device(values) or b"") == native(values)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=4 * 70, max_size=4 * 70))
def test_any_bits_at_all(data: bytes) -> None:
    values = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(1, 70)
    ours, theirs = h8_on_device(values), native(values)
    assert theirs[4] == (CODEC_H8 if ours is not None else 0)
    assert ours is None or bytes(ours) == theirs


def test_a_slice_that_is_not_contiguous() -> None:
    values = torch.randn(6, 200)[::2, 10:150]
    assert bytes(h8_on_device(values) or b"") == native(values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_not_finite_or_too_large_goes_raw(bad: float) -> None:
    values = torch.zeros(2, 130)
    values[1, 64:] = bad
    assert h8_on_device(values) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bytes_on_a_cuda_device(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for cols in (1, 63, 64, 576, 4096, 5000):
        values = (torch.randn(33, cols) * torch.logspace(-6, 3, cols)).to(dtype)
        assert bytes(h8_on_device(values.cuda()) or b"") == native(values)
