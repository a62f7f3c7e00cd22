"""Hidden states between torch and the bytes of a message. Runs on the torch thread; knows no session."""

from __future__ import annotations

import torch
from typing_extensions import Buffer

from swarmnode.protocols.tensors import DTYPE_BYTES, TensorHeader

__all__ = ["dtype_from_name", "dtype_name", "tensor_from_bytes", "tensor_to_bytes"]

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` and so on; raises `KeyError` for a dtype that hidden states never have."""
    return _NAMES[dtype]


def dtype_from_name(name: str) -> torch.dtype:
    """The other way round; raises `KeyError`."""
    return _DTYPES[name]


def tensor_to_bytes(tensor: torch.Tensor, dtype: str) -> tuple[TensorHeader, memoryview]:
    """A hidden state `[rows, tokens, hidden_size]` as `dtype`, in the raw codec. The bytes keep the tensor alive."""
    rows, tokens, hidden_size = tensor.shape
    plain = tensor.detach().to(device="cpu", dtype=_DTYPES[dtype]).contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")
    return TensorHeader(dtype, (rows, tokens, hidden_size)), data


def tensor_from_bytes(header: TensorHeader, body: Buffer) -> torch.Tensor:
    """The hidden state in a message's body. It shares the body's memory."""
    if 0 in header.shape:
        return torch.empty(header.shape, dtype=_DTYPES[header.dtype])
    return torch.frombuffer(body, dtype=_DTYPES[header.dtype]).reshape(header.shape)
