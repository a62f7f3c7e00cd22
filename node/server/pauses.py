"""When a pass that carries prefill stops between blocks for others that wait, and what it carries. Pure: no clock."""

from __future__ import annotations

import math
from typing import Final, TypeVar

from .rates import Pace
from .schedule import Chunk

__all__ = ["Pauses", "parted"]

PREFILL_TIMES: Final = 2.0
"""Prefill runs for so many times as long as its last pause took before it stops again: while both go on, decode has a
third of the time. docs/DECISIONS.md has what 1 and 4 would do."""

Work = TypeVar("Work")


class Pauses:
    """The pauses so far, by a clock that the caller reads."""

    def __init__(self) -> None:
        self._ended = -math.inf
        self._took = 0.0

    def due(self, now: float) -> bool:
        """Whether prefill has run long enough since it stopped last."""
        return now - self._ended >= PREFILL_TIMES * self._took

    def took(self, began: float, ended: float) -> None:
        """It stopped for others that did run."""
        self._ended, self._took = ended, ended - began


def parted(batch: list[Chunk[Work]], pace: Pace) -> tuple[list[Chunk[Work]], list[Chunk[Work]]]:
    """What of a batch runs first, and what runs behind it in a pass of its own, because decode would wait long for it.

    A short prefill shares the pass of decode, whose price is mostly the weights that both go through.
    """
    decode = [chunk for chunk in batch if not chunk.step.is_prefill]
    prefill = [chunk for chunk in batch if chunk.step.is_prefill]
    tokens_of = [sum(chunk.tokens for chunk in chunks) for chunks in (decode, prefill)]
    decode_seconds, prefill_seconds = (pace.seconds(tokens, 1) for tokens in tokens_of)
    if decode and prefill_seconds <= PREFILL_TIMES * decode_seconds:
        return batch, []
    return decode, prefill
