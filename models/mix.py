"""Which tokens of the pass that is running now use which adapter. Knows no adapter's weights.

As with attention (`packed.py`), each step of a session is computed on its own rows, so that nothing in it depends on
who shares the pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate

import torch

from .packed import Piece

__all__ = ["Mix", "Share", "mix_of", "running", "running_mix"]


@dataclass(frozen=True, slots=True)
class Share:
    """The packed tokens of one session.

    Attributes:
        adapter: the key of its adapter.
        first: place of its first token among the packed ones; they follow each other row by row.
        rows, tokens: how many sequences of how many tokens they are.
        steps: `(from, to)` of each step, among a row's tokens.
    """

    adapter: str
    first: int
    rows: int
    tokens: int
    steps: tuple[tuple[int, int], ...]

    def split(self, packed: torch.Tensor) -> Iterator[torch.Tensor]:
        """The part of each step, `[rows, tokens of the step, width]`, of `[packed tokens, width]`: views."""
        own = packed.narrow(0, self.first, self.rows * self.tokens).view(self.rows, self.tokens, -1)
        for begin, end in self.steps:
            yield own[:, begin:end]


@dataclass(frozen=True, slots=True)
class Mix:
    """A pass.

    Attributes:
        shares: of the sessions with an adapter.
        packed_tokens: how many there are in all, padding included.
        whole: the key of the adapter that all of the pass uses, in whatever shape; then there are no shares.
    """

    shares: tuple[Share, ...] = ()
    packed_tokens: int = 0
    whole: str | None = None


_RUNNING: ContextVar[Mix | None] = ContextVar("the mix of adapters that stock modules are running now", default=None)


def running_mix() -> Mix | None:
    """What is running; None when nobody uses an adapter."""
    return _RUNNING.get()


@contextmanager
def running(mix: Mix | None) -> Iterator[None]:
    """While this lasts, adapted layers compute by this mix."""
    token = _RUNNING.set(mix)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def mix_of(pieces: Sequence[Piece], padding: int) -> Mix | None:
    """The mix of a packed pass, None when no piece's session has an adapter."""
    shares = []
    first = 0
    for piece in pieces:
        rows, tokens, _ = piece.hidden.shape
        if piece.cache.adapter is not None:
            stops = tuple(accumulate(piece.steps))
            steps = tuple(zip((0, *stops[:-1]), stops, strict=True))
            shares.append(Share(piece.cache.adapter, first, rows, tokens, steps))
        first += rows * tokens
    return Mix(tuple(shares), first + padding) if shares else None
