"""A linear layer in a shared pass: rows of short steps together, those of each long step as if it were alone.

So no row's bits depend on who shares the pass, and few rows cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear, pad

from .experts import ROWS
from .kernels import torch_is_quick
from .packed import SHORT_STEP, Batch

__all__ = ["Few", "Many", "by_runs", "few_tokens", "widened"]

ALIGNED_BYTES = 64
"""What an address is a multiple of where torch allocates. Its kernels' bits may depend on that."""

WIDENED_BEYOND = 128
"""Tokens of the longest step whose rows go through the kernel for few where torch is not quick: widening the weights
takes its time. A multiple of `ROWS`, so that it is the same step when it is filled up."""

WIDENED_BYTES = 16 << 20
"""Of weights are widened at once."""

Few = Callable[[torch.Tensor, torch.Tensor, Sequence[tuple[int, int]]], None]
"""Computes, of rows `[rows, inputs]`, those in the given runs into `[rows, outputs]`. How many they are never changes
the bits of one."""

Many = Callable[[torch.Tensor], torch.Tensor]
"""Computes `[…, rows, outputs]` of `[…, rows, inputs]`."""


def few_tokens(dtype: torch.dtype) -> int:
    """Tokens of the longest step whose rows go through a kernel for few, in layers of this type."""
    return SHORT_STEP if torch_is_quick(dtype) else WIDENED_BEYOND


def widened(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `linear`, but multiplied in float32: for half-width types with which torch is not quick.

    A row's bits do not depend on how many rows `[…, rows, inputs]` there are.
    """
    count = rows.shape[-2]
    wide = pad(rows.float(), (0, 0, 0, -count % ROWS))
    out = rows.new_empty(*rows.shape[:-1], weight.shape[0])
    step = max(1, WIDENED_BYTES // (4 * weight.shape[1]))
    for first in range(0, weight.shape[0], step):
        piece = slice(first, first + step)
        made = linear(wide, weight[piece].float(), None if bias is None else bias[piece].float())
        out[..., piece] = made[..., :count, :]
    return out


def by_runs(batch: Batch, input: torch.Tensor, outputs: int, few: Few, many: Callable[[], Many]) -> torch.Tensor:
    """The output `[…, outputs]` of a layer for `[…, inputs]`, while a batch is running.

    Args:
        few: computes the rows of steps of up to `few_tokens`.
        many: makes what computes those of a longer one, when it is wanted.
    """
    # Rows in another order than the batch's could be of any step.
    short_runs: Sequence[tuple[int, int]] = [(0, input.shape[:-1].numel())]
    long_runs: Sequence[tuple[int, int]] = ()
    if input.ndim == 3 and input.shape[0] == 1 and input.shape[1] == batch.tokens:
        short_runs, long_runs = batch.runs(few_tokens(input.dtype))
    through = many() if long_runs else None
    if through is not None and not short_runs:
        return through(input)
    out = input.new_empty(*input.shape[:-1], outputs)
    few(input.reshape(-1, input.shape[-1]), out.view(-1, outputs), short_runs)
    for start, stop in long_runs:
        assert through is not None
        run = input[0, start : stop + (start - stop) % ROWS]
        if run.data_ptr() % ALIGNED_BYTES:
            run = run.clone()
        out[0, start:stop] = through(run)[: stop - start]
    return out
