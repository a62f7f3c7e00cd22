"""h8 made where the tensor is, so that a quarter of its bytes cross to the host: torch operations, the codec's bytes.

What a device must not do here: flush subnormals, fuse a product with a sum, or multiply where a division is written.
torch's kernels do none of it, but for dividing by a plain number on CUDA, which becomes a product with its inverse; so
all divisors are tensors.
"""

from __future__ import annotations

import struct
from typing import Final

import torch

from swarmnode._native import frame_checksum
from swarmnode.protocols.tensors import CODEC_H8, DTYPE_NUMBERS

__all__ = ["h8_on_device"]

GROUP: Final = 64
ALIGNMENT: Final = 64
MOST: Final = 127.0
SMALLEST_NORMAL: Final = 2.0**-126

_HEADER: Final = struct.Struct("<3sBBBBBIIIIII")
_CHECKED_BYTES: Final = _HEADER.size - 4


def h8_on_device(values: torch.Tensor) -> bytearray | None:
    """The h8 blob of a matrix `[rows, cols]`, neither empty; None when a number is not finite or too large for it."""
    rows, cols = values.shape
    whole, tail = divmod(cols, GROUP)
    wide = values.to(torch.float32)
    made = [_quantised(wide[:, : whole * GROUP].reshape(rows, whole, GROUP))] if whole else []
    if tail:
        points = 1 << (tail - 1).bit_length()
        padded = wide.new_zeros(rows, 1, points)
        padded[:, 0, :tail] = wide[:, whole * GROUP :]
        made.append(_quantised(padded))
    scales = torch.cat([scale for scale, _ in made], dim=1)
    codes = torch.cat([code.reshape(rows, -1) for _, code in made], dim=1)
    # One run of bytes, so that one copy brings all of it to the host.
    scale_bytes = scales.reshape(-1).view(torch.uint8)
    gap = scale_bytes.new_zeros(-scale_bytes.numel() % ALIGNMENT)
    body = torch.cat([scale_bytes, gap, codes.reshape(-1).view(torch.uint8)]).cpu()
    on_host = body[: scale_bytes.numel()].view(torch.bfloat16)
    if not torch.isfinite(on_host).all():
        return None
    blob = bytearray(ALIGNMENT + body.numel())
    memoryview(blob)[ALIGNMENT:] = body.numpy().data
    number = DTYPE_NUMBERS[str(values.dtype).removeprefix("torch.")]
    _HEADER.pack_into(blob, 0, b"SWC", 1, CODEC_H8, number, 0, 0, rows, cols, 0, 0, 0, 0)
    view = memoryview(blob)
    blob[_CHECKED_BYTES : _HEADER.size] = frame_checksum(view[:_CHECKED_BYTES], view[_HEADER.size :]).to_bytes(
        4, "little"
    )
    return blob


def _quantised(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales `[rows, groups]` in bfloat16 and codes `[rows, groups, points]` in int8."""
    turned = _rotated(groups)
    amax = turned.abs().amax(dim=-1)  # a NaN stays one
    scale = (amax / torch.full_like(amax, MOST)).to(torch.bfloat16)
    wide = scale.to(torch.float32)
    scale = torch.where(wide < SMALLEST_NORMAL, torch.zeros_like(scale), scale)
    inverse = torch.where(wide < SMALLEST_NORMAL, torch.zeros_like(wide), torch.ones_like(wide) / wide)
    codes = (turned * inverse.unsqueeze(-1)).round().clamp(-MOST, MOST)
    return scale, codes.to(torch.int8)


def _rotated(groups: torch.Tensor) -> torch.Tensor:
    """Walsh-Hadamard of the last dimension, a power of two: natural order, stage by stage, not normalised."""
    points = groups.shape[-1]
    half = 1
    while half < points:
        pairs = groups.reshape(*groups.shape[:-1], points // (2 * half), 2, half)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        groups = torch.stack((low + high, low - high), dim=-2).reshape(groups.shape)
        half *= 2
    return groups
