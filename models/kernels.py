"""Our own kernels on torch's tensors: attention of single queries, linear layers of few rows. Knows no session.

A row's bits do not depend on how many rows there are nor on how many threads take part (`native/kernels`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # torch names it in its manual only

from swarmnode import _native
from swarmnode._native import Room

__all__ = ["Linear", "Room", "attend", "have_kernels", "room_of", "torch_is_quick"]

_AVAILABLE = _native.kernels_available()

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def have_kernels(*tensors: torch.Tensor) -> bool:
    """Whether the kernels take such tensors: all of one dtype, on this CPU."""
    dtype = tensors[0].dtype
    return _AVAILABLE and dtype in _DTYPES and all(each.dtype == dtype and each.is_cpu for each in tensors)


@functools.cache
def torch_is_quick(dtype: torch.dtype) -> bool:
    """Whether torch has a kernel for many rows of this type on this CPU.

    It has none for half-width types on most CPUs that people have at home, those without AVX-512: there it takes four
    times as long as ours.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    asked = torch.ops.mkldnn
    return bool(asked._is_mkldnn_bf16_supported() if dtype is torch.bfloat16 else asked._is_mkldnn_fp16_supported())


def room_of(keys: torch.Tensor, values: torch.Tensor) -> Room:
    """A session's slabs of one block as the kernels know them, `[rows, heads, room, width]` each."""
    return Room(to_dlpack(keys), to_dlpack(values))


def attend(
    states: Sequence[torch.Tensor],
    out: torch.Tensor,
    rooms: Sequence[Room],
    places: Sequence[tuple[int, int, int]],
    *,
    scale: float | None,
    threads: int,
) -> None:
    """As `_native.attend`, of queries, keys and values; without a scale that of scaled dot products."""
    scale = 1 / math.sqrt(states[0].shape[3]) if scale is None else scale
    queries, keys, values = map(_capsule, states)
    _native.attend(queries, keys, values, to_dlpack(out), rooms, places, scale, threads)


class Linear:
    """A linear layer's weights, where they are now, as the kernel takes them.

    Args:
        weights: `[outputs, inputs]`.
        bias: `[outputs]`.
    """

    __slots__ = ("_addresses", "_kernel")

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._addresses = _addresses(weights, bias)
        self._kernel = _native.Linear(_capsule(weights), None if bias is None else _capsule(bias))

    def is_of(self, weights: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Whether these are the same, at the same place."""
        return self._addresses == _addresses(weights, bias)

    def apply(self, rows: torch.Tensor, out: torch.Tensor, runs: Sequence[tuple[int, int]]) -> None:
        """Write the results of those of `rows`, `[…, rows, inputs]`, in `runs` into `out`, `[…, rows, outputs]`."""
        self._kernel.apply(_capsule(rows), to_dlpack(out), runs, torch.get_num_threads())


def _addresses(weights: torch.Tensor, bias: torch.Tensor | None) -> tuple[int, int]:
    return weights.data_ptr(), 0 if bias is None else bias.data_ptr()


def _capsule(tensor: torch.Tensor) -> object:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return to_dlpack(tensor.detach() if tensor.requires_grad else tensor)
