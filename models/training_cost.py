"""What a pass through blocks and back takes of memory, found by a few small ones through the very modules at hand.

Whatever these are, quantised or not. Knows no budget.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, cast

import torch
from torch import nn

from .cut import Layout
from .footprint import block_kind
from .peak import Ledger
from .training import Training, finish

__all__ = ["TrainingCost", "cost_of"]

TRIED_TOKENS: Final = (64, 128, 256, 512)
"""Lengths of a row. Shorter ones count as the first: recurrences work on chunks of so many tokens anyway."""

LINEAR: Final = 1.02
"""What takes less than twice this for twice the tokens grows as their number, and as its square else."""

KERNEL_FACTOR: Final = 1.25
KERNEL_BYTES: Final = 32 << 20
"""What kernels take beyond the tensors that are seen; as `node.capacity` has it for steps."""

WIDEST_ELEMENT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Inside:
    """The inside of a block on the way there and back.

    Attributes:
        tried: bytes of one row of each of `TRIED_TOKENS`.
    """

    tried: tuple[int, ...]

    def bytes(self, rows: int, tokens: int) -> float:
        """Of some rows: no more than of each by itself, nor than of one row with all their tokens."""
        return min(rows * self.row_bytes(tokens), self.row_bytes(rows * tokens))

    def row_bytes(self, tokens: int) -> float:
        """Of one row: on the chord between what was tried, as it grows ever faster; beyond, at worst."""
        longest, last = TRIED_TOKENS[-1], self.tried[-1]
        if tokens > longest:
            linear = last / self.tried[-2] < LINEAR * longest / TRIED_TOKENS[-2]
            return last * (tokens / longest) ** (1 if linear else 2)
        for (low, less), (high, more) in pairwise(zip(TRIED_TOKENS, self.tried, strict=True)):
            if tokens <= high:
                return less + (more - less) * max(0, tokens - low) / (high - low)
        return last


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Bytes that a group of rows takes.

    Attributes:
        state: of one token's hidden state between blocks.
        wide_state: of the same in float32, as prompts' gradients are kept.
        insides: of each kind of block.
    """

    state: int
    wide_state: int
    insides: tuple[Inside, ...]

    def group_bytes(self, blocks: int, rows: int, tokens: int) -> int:
        """The most that a group takes beyond its own bodies: what entered each block, and the inside of one."""
        inside = max(inside.bytes(rows, tokens) for inside in self.insides)
        entering = (blocks + 2) * rows * tokens * self.state
        return math.ceil(KERNEL_FACTOR * inside) + entering + KERNEL_BYTES

    def prompts_bytes(self, blocks: int, tokens: int) -> int:
        """Prompts of a pass, and the sum of their gradients."""
        return 3 * blocks * tokens * self.wide_state


def cost_of(training: Training) -> Generator[None, None, TrainingCost]:
    """Run noise through one block of each kind and back, pausing between one length and the next."""
    span = training.span
    layout: Layout = span.model.swarmnode_layout
    blocks = cast(nn.ModuleList, span.model.get_submodule(layout.blocks))
    kinds: dict[Hashable, Inside] = {}
    for index in range(span.start, span.end):
        kind = block_kind(span.model, index, blocks[index])
        if kind not in kinds:
            alone = training.part(index, index + 1)
            tried = []
            for tokens in TRIED_TOKENS:
                tried.append(_peak_bytes(alone, tokens))
                yield
            kinds[kind] = Inside(tuple(tried))
    width = span.hidden_size
    return TrainingCost(width * span.dtype.itemsize, width * WIDEST_ELEMENT_BYTES, tuple(kinds.values()))


def _peak_bytes(alone: Training, tokens: int) -> int:
    span = alone.span
    noise = torch.ones(1, tokens, span.hidden_size, dtype=span.dtype, device=span.device)
    with Ledger(numbers=True) as ledger:
        peak: int = ledger.peak_bytes(lambda: finish(alone.backward(noise, noise, None)))
    return peak
