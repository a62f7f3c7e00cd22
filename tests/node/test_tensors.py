"""Hidden states to bytes and back, bit for bit."""

from __future__ import annotations

import pytest
import torch

from swarmnode.node.tensors import dtype_from_name, dtype_name, tensor_from_bytes, tensor_to_bytes
from swarmnode.protocols.tensors import DTYPE_BYTES


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_come_back_as_they_were(dtype: str) -> None:
    tensor = torch.randn(2, 5, 8).to(dtype_from_name(dtype))
    header, data = tensor_to_bytes(tensor, dtype)
    assert header.shape == (2, 5, 8)
    assert data.nbytes == header.raw_bytes
    assert torch.equal(tensor_from_bytes(header, bytearray(data)), tensor)
    assert dtype_name(tensor.dtype) == dtype


def test_a_slice_and_nothing_at_all() -> None:
    tensor = torch.randn(1, 5, 8)
    header, data = tensor_to_bytes(tensor[:, 3:], "float32")
    assert torch.equal(tensor_from_bytes(header, bytearray(data)), tensor[:, 3:])
    header, data = tensor_to_bytes(tensor[:, 5:], "float32")
    assert (header.shape, data.nbytes) == ((1, 0, 8), 0)
    assert tensor_from_bytes(header, data).shape == (1, 0, 8)


def test_bytes_outlive_the_tensor() -> None:
    header, data = tensor_to_bytes(torch.full((1, 1000, 64), 3.0), "bfloat16")
    torch.zeros(1, 1000, 64)
    assert torch.equal(tensor_from_bytes(header, bytearray(data)), torch.full((1, 1000, 64), 3.0, dtype=torch.bfloat16))
