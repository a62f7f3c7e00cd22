"""Which tokens of the pass that is running now use which adapter. Knows no adapter's weights.

Nothing in a session's step may depend on who shares the pass. So a step of several tokens is computed on its own rows,
as its attention is (`packed.py`); and steps of one token, of which there may be many, in *tiles* that always have as
many rows: a row of a product of one shape has the same bits wherever it stands, whatever the others are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate

import torch

from .packed import Piece

__all__ = ["TILE_ROWS", "Mix", "Share", "Tile", "mix_of", "running", "running_mix"]

TILE_ROWS = 16
"""With more, a lone session would pay for them; with fewer, many sessions make many tiles."""


@dataclass(frozen=True, slots=True)
class Share:
    """The packed tokens of one session.

    Attributes:
        adapter: the key of its adapter.
        first: place of its first token among the packed ones; they follow each other row by row.
        rows, tokens: how many sequences of how many tokens they are.
        steps: `(from, to)` of each step of more than one token, among a row's tokens.
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


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Packed tokens that are steps of their own, of one adapter.

    Attributes:
        adapter: its key.
        rows: `[TILE_ROWS]`, their places among the packed ones; what is over repeats the last.
        count: how many they are.
    """

    adapter: str
    rows: torch.Tensor
    count: int


@dataclass(frozen=True, slots=True)
class Mix:
    """A pass.

    Attributes:
        shares: of the sessions with an adapter that have steps of several tokens.
        tiles: of their steps of one token.
        packed_tokens: how many there are in all, padding included.
        whole: the key of the adapter that all of the pass uses, in whatever shape; then there are no shares.
    """

    shares: tuple[Share, ...] = ()
    packed_tokens: int = 0
    tiles: tuple[Tile, ...] = ()
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
    shares: list[Share] = []
    singles: dict[str, list[int]] = {}
    first = 0
    for piece in pieces:
        rows, tokens, _ = piece.hidden.shape
        if (adapter := piece.cache.adapter) is not None:
            stops = tuple(accumulate(piece.steps))
            steps = tuple(zip((0, *stops[:-1]), stops, strict=True))
            if longer := tuple((begin, end) for begin, end in steps if end - begin > 1):
                shares.append(Share(adapter, first, rows, tokens, longer))
            single = [begin for begin, end in steps if end - begin == 1]
            singles.setdefault(adapter, []).extend(first + row * tokens + at for row in range(rows) for at in single)
        first += rows * tokens
    tiles = tuple(
        _tile(adapter, places[at : at + TILE_ROWS])
        for adapter, places in singles.items()
        for at in range(0, len(places), TILE_ROWS)
    )
    return Mix(tuple(shares), first + padding, tiles) if singles else None


def _tile(adapter: str, places: list[int]) -> Tile:
    filled = places + places[-1:] * (TILE_ROWS - len(places))
    return Tile(adapter, torch.tensor(filled), len(places))
