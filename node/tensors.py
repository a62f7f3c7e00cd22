"""Hidden states between torch and the bytes of a message. Runs on the torch thread; knows no session."""

from __future__ import annotations

from typing import Final

import torch
from typing_extensions import Buffer

from swarmnode._native import codec_decode_into, codec_encode
from swarmnode.errors import ProtocolViolation
from swarmnode.protocols.tensors import (
    CODEC_E4M3,
    CODEC_E5M2,
    CODEC_H8,
    CODEC_RAW,
    DTYPE_BYTES,
    DTYPE_NUMBERS,
    TensorHeader,
)

from .codec.on_device import h8_on_device

__all__ = ["dtype_from_name", "dtype_name", "rows_of", "tensor_from_bytes", "tensor_to_bytes"]

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

BLOB_CODEC_BYTE: Final = 4
"""Where a blob says which codec it is in."""

FP8_GROUP: Final = 64
"""Values to a scale. One scale a row takes 0.05 bytes a value less and does twice the damage."""


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` and so on; raises `KeyError` for a dtype that hidden states never have."""
    return _NAMES[dtype]


def dtype_from_name(name: str) -> torch.dtype:
    """The other way round; raises `KeyError`."""
    return _DTYPES[name]


def tensor_to_bytes(tensor: torch.Tensor, dtype: str, codec: int = CODEC_RAW) -> tuple[TensorHeader, Buffer]:
    """A hidden state `[rows, tokens, hidden_size]` as `dtype`, in a codec, raw where that is shorter.

    The header says which codec it became. Raw bytes keep the tensor alive and are not copied.
    """
    rows, tokens, hidden_size = tensor.shape
    header = TensorHeader(dtype, (rows, tokens, hidden_size))
    plain = tensor.detach().to(dtype=_DTYPES[dtype])
    blob = _blob(plain, header, codec) if codec != CODEC_RAW and header.values else None
    if blob is None or len(blob) >= header.raw_bytes or blob[BLOB_CODEC_BYTE] == CODEC_RAW:
        return header, _bytes_of(plain)
    return TensorHeader(dtype, header.shape, blob[BLOB_CODEC_BYTE]), blob


def tensor_from_bytes(header: TensorHeader, body: Buffer) -> torch.Tensor:
    """The hidden state in a message's body; a raw one shares the body's memory.

    Raises:
        ProtocolViolation: the body of a coded one is broken.
    """
    dtype = _DTYPES[header.dtype]
    if not header.values:
        return torch.empty(header.shape, dtype=dtype)
    if header.codec == CODEC_RAW:
        return torch.frombuffer(body, dtype=dtype).reshape(header.shape)
    tensor = torch.empty(header.shape, dtype=dtype)
    rows, tokens, hidden_size = header.shape
    number = DTYPE_NUMBERS[header.dtype]
    try:
        codec_decode_into(body, _bytes_of(tensor), number, rows * tokens, hidden_size)
    except ValueError as error:
        raise ProtocolViolation(f"A tensor cannot be decoded: {error}.") from None
    return tensor


def rows_of(tensor: torch.Tensor) -> tuple[memoryview, int]:
    """The bytes from a hidden state's first element to its last, and how many of them one token is behind the other.

    Not copied when it is on the host and its tokens, whole and at one distance, are rows of something larger: what is
    kept of each row, the columns of one tensor among several. The state has elements.
    """
    plain = tensor.cpu()
    rows, tokens, hidden_size = plain.shape
    between_rows, between_tokens, between_values = plain.stride()
    if tokens == 1:
        between_tokens = between_rows
    if between_values != 1 or (rows > 1 and between_rows != tokens * between_tokens):
        plain, between_tokens = plain.contiguous(), hidden_size
    reach = (rows * tokens - 1) * between_tokens + hidden_size
    memory = plain.as_strided((reach,), (1,)).view(torch.uint8).numpy().data
    return memory, between_tokens * plain.itemsize


def _blob(tensor: torch.Tensor, header: TensorHeader, codec: int) -> bytearray | None:
    """The coded tensor; None when it should go raw."""
    rows, tokens, hidden_size = header.shape
    if codec == CODEC_H8 and tensor.is_cuda:
        return h8_on_device(tensor.reshape(rows * tokens, hidden_size))
    group = FP8_GROUP if codec in (CODEC_E4M3, CODEC_E5M2) else 0
    memory, row_stride_bytes = rows_of(tensor)
    return codec_encode(codec, DTYPE_NUMBERS[header.dtype], rows * tokens, hidden_size, memory, row_stride_bytes, group)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements as they lie in memory, on the host and one after the other."""
    plain = tensor.cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")
