"""Compare sessions that share passes with the same sessions alone, bit for bit, and with the stock cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from .packed import NotRagged, Piece
from .slabs import RaggedCache
from .span import Span

__all__ = ["RaggedFindings", "compare_ragged"]

STEPS = ((5, 4, 2, 1, 1, 1, 1), (1, 1, 6, 1, 1, 2, 1), (3, 1, 1, 4, 1, 1, 1))
"""Lengths of three sessions' steps, in all more than the tiny models' windows. The last session has two rows."""

ROWS = (1, 1, 2)

BACK = 3
"""By so many of their last steps the sessions go back, to take them once more with other tokens."""

STOCK_TOLERANCE = 1e-5
"""How far a lone session may be from the stock cache's, relative to the largest value: rounding, not another result."""

SEED = 21


@dataclass(frozen=True)
class RaggedFindings:
    """What sharing passes came to.

    Attributes:
        why_not: why sessions cannot share a pass, in one sentence; empty when they can.
        stock_difference: how far a session that has its passes for itself is from one with the stock cache, relative
            to the largest value.
    """

    why_not: str
    stock_difference: float = 0.0


def compare_ragged(span: Span) -> RaggedFindings:
    """Let three sessions share passes in several ways, and compare each with itself alone."""
    torch.manual_seed(SEED)
    try:
        stories = [_Story(span, steps, rows) for steps, rows in zip(STEPS, ROWS, strict=True)]
        differences = _differences(span, stories)
        rounding, stock_difference = (
            max(gaps) for gaps in zip(*(story.from_stock() for story in stories[1:]), strict=True)
        )
    except NotRagged as reason:
        return RaggedFindings(str(reason))
    except Exception as error:  # noqa: BLE001  any failure of foreign code is a finding, not a crash
        return RaggedFindings(f"A shared pass fails: {type(error).__name__}: {' '.join(str(error).split())}.")
    if not max(rounding, stock_difference) <= STOCK_TOLERANCE:
        return RaggedFindings("Sessions differ from what they are with the stock cache.", stock_difference)
    found = ", ".join(heading for heading, gap in differences.items() if gap)
    return RaggedFindings(
        f"A session's bits depend on who shares its pass: {found}." if found else "", stock_difference
    )


class _Story:
    """A session's steps, another end for them, and what comes out when it has every pass for itself."""

    def __init__(self, span: Span, steps: Sequence[int], rows: int) -> None:
        self.span = span
        self.steps = tuple(steps)
        self.starts = (0, *accumulate(steps))
        self.hidden = torch.randn(rows, sum(steps), span.hidden_size)
        self.turn = self.starts[-1 - BACK]
        self.other = torch.cat([self.hidden[:, : self.turn], torch.randn_like(self.hidden[:, self.turn :])], dim=1)
        cache = span.open_ragged_cache()
        self.alone = self._alone(cache, self.hidden, range(len(steps)))
        self.other_alone = self._alone(cache, self.other, range(len(steps) - BACK, len(steps)))

    def piece(self, cache: RaggedCache, step: int, hidden: torch.Tensor | None = None) -> Piece:
        start, stop = self.starts[step], self.starts[step + 1]
        return Piece(cache, (self.hidden if hidden is None else hidden)[:, start:stop], start)

    def from_stock(self) -> tuple[float, float]:
        """How far `alone`, and passes without padding, are from a stock cache, relative to the largest value."""
        mine, stock = self.span.open_ragged_cache(), self.span.open_cache()
        alone = unpadded = largest = 0.0
        for step, ours in enumerate(self.alone):
            piece = self.piece(mine, step)
            theirs = self.span.step(stock, piece.hidden, piece.position)
            alone = max(alone, _gap(ours, theirs))
            unpadded = max(unpadded, _gap(self.span.run([piece])[0], theirs))
            largest = max(largest, theirs.abs().max().item())
        return alone / largest, unpadded / largest

    def _alone(self, cache: RaggedCache, hidden: torch.Tensor, steps: Iterable[int]) -> list[torch.Tensor]:
        return [self.span.run([self.piece(cache, step, hidden)], deterministic=True)[0] for step in steps]


def _differences(span: Span, stories: Sequence[_Story]) -> dict[str, float]:
    steps = range(len(STEPS[0]))
    found = {"side by side": 0.0, "replayed in one pass": 0.0, "after going back": 0.0}
    caches = [span.open_ragged_cache() for _ in stories]
    for step in steps:
        turned = _turned(range(len(stories)), step)
        outs = span.run([stories[each].piece(caches[each], step) for each in turned])
        for each, out in zip(turned, outs, strict=True):
            found["side by side"] = max(found["side by side"], _gap(out, stories[each].alone[step]))
    caches = [span.open_ragged_cache() for _ in stories]
    pieces = [Piece(cache, story.hidden, 0, story.steps) for cache, story in zip(caches, stories, strict=True)]
    for story, out in zip(stories, span.run(pieces), strict=True):
        found["replayed in one pass"] = max(found["replayed in one pass"], _gap(out, torch.cat(story.alone, dim=1)))
    for number, step in enumerate(steps[-BACK:]):
        outs = span.run([story.piece(cache, step, story.other) for cache, story in zip(caches, stories, strict=True)])
        gaps = [_gap(out, story.other_alone[number]) for out, story in zip(outs, stories, strict=True)]
        found["after going back"] = max(found["after going back"], *gaps)
    return found


def _turned(places: Iterable[int], by: int) -> list[int]:
    listed = list(places)
    by %= len(listed)
    return listed[by:] + listed[:by]


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    gap = (one - other).abs().max().item()
    return math.inf if math.isnan(gap) else gap
