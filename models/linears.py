"""Stock linear layers that compute few rows through our kernel: of blocks in a shared pass, and of a model's output."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.functional import linear

from .kernels import Linear, have_kernels, torch_is_quick
from .packed import SHORT_STEP, running_batch
from .runs import Many, by_runs, widened

__all__ = ["LOW_RANK", "OutputLinear", "PackedLinear", "take_linears", "take_output"]

LOW_RANK = frozenset(("lora_A", "lora_B"))
"""Where PEFT keeps the matrices of adapters. They are given one step at a time as it is."""


class _KernelLinear(nn.Linear):
    """A stock linear layer that knows its weights as the kernel takes them."""

    _kernel: Linear | None = None

    def _kernel_for(self, rows: torch.Tensor) -> Linear | None:
        """The kernel on the weights where they are now; None where it does not take them, or not such rows."""
        weight, bias = self.weight, self.bias
        if rows.dtype != weight.dtype:
            return None
        if self._kernel is None or not self._kernel.is_of(weight, bias):
            self._kernel = Linear(weight, bias) if have_kernels(weight) else None
        return self._kernel


class PackedLinear(_KernelLinear):
    """One that, while a batch is running, computes each row as if it were alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        batch = running_batch()
        kernel = None if batch is None else self._kernel_for(input)
        if batch is None or kernel is None:
            return self._by_torch(input)
        return by_runs(batch, input, self.weight.shape[0], kernel.apply, self._many)

    def _many(self) -> Many:
        return self._by_torch if torch_is_quick(self.weight.dtype) else self._widened

    def _widened(self, input: torch.Tensor) -> torch.Tensor:
        return widened(input, self.weight, self.bias)

    def _by_torch(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


class OutputLinear(_KernelLinear):
    """One at the end of a model, where no batch runs: few rows, as at every decode step, take the kernel."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.shape[:-1].numel()
        few = rows <= SHORT_STEP or not torch_is_quick(input.dtype)
        kernel = self._kernel_for(input) if rows and few and not torch.is_grad_enabled() else None
        if kernel is None:
            return linear(input, self.weight, self.bias)
        out = input.new_empty(*input.shape[:-1], self.weight.shape[0])
        kernel.apply(input.reshape(rows, -1), out.view(rows, -1), [(0, rows)])
        return out


def take_linears(blocks: Iterable[nn.Module]) -> None:
    """Make the blocks' linear layers, where they are stock ones and the kernel takes their weights, packed ones."""
    for block in blocks:
        for path, module in block.named_modules():
            if type(module) is nn.Linear and LOW_RANK.isdisjoint(path.split(".")) and have_kernels(module.weight):
                module.__class__ = PackedLinear


def take_output(module: nn.Module | None) -> None:
    """Make a model's output embeddings, if they are a stock linear layer that the kernel takes, an `OutputLinear`."""
    if type(module) is nn.Linear and have_kernels(module.weight):
        module.__class__ = OutputLinear
