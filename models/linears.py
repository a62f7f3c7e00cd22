"""Linear layers in a shared pass: rows of short steps through our kernel, rows of long ones as if alone in torch's.

So no row's bits depend on who shares the pass, and few rows cost little more than one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.functional import linear

from .experts import ROWS
from .kernels import Linear, have_kernels
from .packed import Batch, running_batch

__all__ = ["LOW_RANK", "PackedLinear", "take_linears"]

LOW_RANK = frozenset(("lora_A", "lora_B"))
"""Where PEFT keeps the matrices of adapters. They are given one step at a time as it is."""

ALIGNED_BYTES = 64
"""What an address is a multiple of where torch allocates. Its kernels' bits may depend on that."""


class PackedLinear(nn.Linear):
    """A stock linear layer that, while a batch is running, computes each row as if it were alone."""

    _kernel: Linear | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        batch = running_batch()
        weight, bias = self.weight, self.bias
        if batch is None or input.dtype != weight.dtype or not self._has_kernel(weight, bias):
            return linear(input, weight, bias)
        packed = input.ndim == 3 and input.shape[0] == 1 and input.shape[1] == batch.tokens
        # Rows in another order than the batch's could be of any step.
        short = batch.short_runs if packed else [(0, input.shape[:-1].numel())]
        if not short:
            return linear(input, weight, bias)
        assert self._kernel is not None
        out = input.new_empty(*input.shape[:-1], weight.shape[0])
        if packed:
            self._kernel.apply(input, out, short)
        else:
            self._kernel.apply(input.reshape(-1, input.shape[-1]), out.view(-1, out.shape[-1]), short)
        if packed and batch.long_runs:
            self._long_runs(batch, input[0], out[0])
        return out

    def _has_kernel(self, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Whether the kernel takes such weights; then it knows where they are now."""
        kernel = self._kernel
        if kernel is None or not kernel.is_of(weight, bias):
            self._kernel = Linear(weight, bias) if have_kernels(weight) else None
        return self._kernel is not None

    def _long_runs(self, batch: Batch, rows: torch.Tensor, out: torch.Tensor) -> None:
        for start, stop in batch.long_runs:
            run = rows[start : stop + (start - stop) % ROWS]
            if run.data_ptr() % ALIGNED_BYTES:
                run = run.clone()
            out[start:stop] = linear(run, self.weight, self.bias)[: stop - start]


def take_linears(blocks: Iterable[nn.Module]) -> None:
    """Make the blocks' linear layers, where they are stock ones and the kernel takes their weights, packed ones."""
    for block in blocks:
        for path, module in block.named_modules():
            if type(module) is nn.Linear and LOW_RANK.isdisjoint(path.split(".")) and have_kernels(module.weight):
                module.__class__ = PackedLinear
