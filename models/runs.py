"""A linear layer in a shared pass: rows of short steps together, those of each long step as if it were alone.

So no row's bits depend on who shares the pass, and few rows cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .experts import ROWS
from .packed import Batch

__all__ = ["Few", "Many", "by_runs"]

ALIGNED_BYTES = 64
"""What an address is a multiple of where torch allocates. Its kernels' bits may depend on that."""

Few = Callable[[torch.Tensor, torch.Tensor, Sequence[tuple[int, int]]], None]
"""Computes, of rows `[rows, inputs]`, those in the given runs into `[rows, outputs]`. How many they are never changes
the bits of one."""

Many = Callable[[torch.Tensor], torch.Tensor]
"""Computes `[…, rows, outputs]` of `[…, rows, inputs]`."""


def by_runs(batch: Batch, input: torch.Tensor, outputs: int, few: Few, many: Callable[[], Many] | None) -> torch.Tensor:
    """The output `[…, outputs]` of a layer for `[…, inputs]`, while a batch is running.

    Args:
        few: computes the rows of steps of up to `SHORT_STEP` tokens.
        many: makes what computes those of a longer one, when it is wanted; None if `few` does that, too.
    """
    packed = many is not None and input.ndim == 3 and input.shape[0] == 1 and input.shape[1] == batch.tokens
    # Rows in another order than the batch's could be of any step.
    short_runs = batch.short_runs if packed else [(0, input.shape[:-1].numel())]
    long_runs = batch.long_runs if packed else ()
    through = many() if many is not None and long_runs else None
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
