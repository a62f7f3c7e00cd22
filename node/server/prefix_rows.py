"""What blocks of tokens came to, kept and put into sessions that begin alike. On the torch thread; knows no schedule.

Which block is which, who meets whom and what goes first is decided in `prefix.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from swarmnode.models.span import Piece, RaggedCache, Rows
from swarmnode.node.tensors import rows_of

from .prefix import Chain, PrefixIndex, PrefixStatistics

__all__ = ["Begun", "Prefixes"]


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """What a block of tokens came to.

    Attributes:
        rows: its keys and values.
        out: its hidden states `[rows, tokens, hidden_size]` as they left the span; None where nobody wanted any.
    """

    rows: Rows
    out: torch.Tensor | None


@dataclass(slots=True, eq=False)
class Begun:
    """A piece to be run, and what of it is known.

    Attributes:
        piece: the whole of it.
        rest: what is left to compute; None when nothing is.
        first_wanted: the first of its tokens whose output anybody wants.
        links: of the whole blocks that it begins with.
        found: what the first of them came to; it is in the cache already.
    """

    piece: Piece
    rest: Piece | None
    first_wanted: int
    links: list[bytes] = field(default_factory=list)
    found: list[_Block] = field(default_factory=list)

    @property
    def known_tokens(self) -> int:
        """How many of its tokens need not be computed."""
        return sum(block.rows.tokens for block in self.found)


class Prefixes:
    """Blocks that are kept. An engine has one.

    Args:
        block_tokens: tokens of a block.
        room_bytes: how much may be kept at this moment.
    """

    def __init__(self, block_tokens: int, room_bytes: Callable[[], int]) -> None:
        self.block_tokens = block_tokens
        self._room_bytes = room_bytes
        self._index: PrefixIndex[_Block] = PrefixIndex(block_tokens)

    def statistics(self) -> PrefixStatistics:
        """From any thread."""
        return self._index.statistics()

    def fit(self) -> None:
        """Let go of what there is no room for any more. Before sessions take what they were granted."""
        self._index.limit(self._room_bytes())

    @torch.inference_mode()
    def begin(self, chain: Chain, piece: Piece, first_wanted: int) -> Begun:
        """Put what is known of a piece into its cache. The piece was checked, and is run next.

        Args:
            chain: of the session; it forgets what the piece truncates.
            first_wanted: the first token of the piece whose output is wanted.
        """
        begun = Begun(piece, piece, first_wanted)
        number = _whole_blocks(piece, self.block_tokens)
        if not chain.goes_on(piece.position) or not number:
            return begun
        blocks = torch.split(piece.hidden[:, : number * self.block_tokens], self.block_tokens, dim=1)
        begun.links = chain.next_links(rows_of(block.contiguous())[0] for block in blocks)

        def suffices(number: int, block: _Block) -> bool:
            return block.out is not None or not self._wanted(begun, number)

        begun.found = self._index.find(chain.links, begun.links, suffices)
        if begun.found:
            begun.rest = _put(begun)
        _mark(begun, self.block_tokens)
        return begun

    @torch.inference_mode()
    def end(self, chain: Chain, begun: Begun, computed: torch.Tensor | None) -> torch.Tensor:
        """Keep what was computed of a piece, as far as there is room for it.

        Args:
            computed: what came of the piece's rest, `[rows, tokens, hidden_size]`.

        Returns:
            What came of the piece's last tokens: of all that are wanted, and maybe of some before them.
        """
        if not begun.links:
            assert computed is not None
            return computed
        self.fit()
        if computed is not None:
            for number, block in enumerate(torch.split(computed, self.block_tokens, dim=1), len(begun.found)):
                if number == len(begun.links) or not self._keep(chain, begun, number, block):
                    break
        chain.add(begun.links)
        _cache(begun).mark(())
        outs = [] if computed is None else [computed]
        for number, known in reversed([*enumerate(begun.found)]):
            if known.out is None or not self._wanted(begun, number):
                break
            outs.insert(0, known.out)
        if not outs:
            return _nothing(begun)
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)

    def _keep(self, chain: Chain, begun: Begun, number: int, computed: torch.Tensor) -> bool:
        """Keep a block of a piece, if there is room for it; `computed` is what came of it."""
        cache = _cache(begun)
        start = begun.piece.position + number * self.block_tokens
        end = start + self.block_tokens
        size_bytes = cache.copy_bytes(start, end)
        if size_bytes is None:
            return False
        out = computed if self._wanted(begun, number) else None
        size_bytes += 0 if out is None else out.nbytes

        def make() -> _Block:
            return _Block(cache.copy(start, end), None if out is None else out.clone())

        before = [*chain.links, *begun.links[:number]]
        try:
            return self._index.keep(before, begun.links[number], size_bytes, make)
        except torch.OutOfMemoryError:  # the device holds more than caches; what was computed is worth more than this
            return False

    def _wanted(self, begun: Begun, number: int) -> bool:
        """Whether anybody wants to know what comes of this block of a piece."""
        return (number + 1) * self.block_tokens > begun.first_wanted


def _whole_blocks(piece: Piece, block_tokens: int) -> int:
    """With how many whole blocks a piece begins."""
    number = 0
    while number < len(piece.steps) and piece.steps[number] == block_tokens:
        number += 1
    return number


def _put(begun: Begun) -> Piece | None:
    """Have the piece's cache hold what was found; what is left of the piece then."""
    piece, cache = begun.piece, _cache(begun)
    rows, tokens, _ = piece.hidden.shape
    cache.truncate(piece.position)
    cache.rows = rows
    for block in begun.found:
        cache.put(block.rows, piece.position + tokens)
    position = cache.position
    if position == piece.position + tokens:
        return None
    hidden = piece.hidden[:, position - piece.position :]
    return replace(piece, hidden=hidden, position=position, segments=piece.steps[len(begun.found) :])


def _mark(begun: Begun, block_tokens: int) -> None:
    """Have the piece's cache copy what windows would drop of the blocks that are going to be computed."""
    first, last = len(begun.found) + 1, len(begun.links)
    ends = [begun.piece.position + number * block_tokens for number in range(first, last + 1)]
    _cache(begun).mark(ends)


def _cache(begun: Begun) -> RaggedCache:
    assert isinstance(begun.piece.cache, RaggedCache)
    return begun.piece.cache


def _nothing(begun: Begun) -> torch.Tensor:
    """What comes of a piece of which nothing is computed and nothing wanted: no tokens, where and as others come."""
    keys, _ = list(begun.found[0].rows.layers.values())[-1]
    rows, _, width = begun.piece.hidden.shape
    return keys.new_empty((rows, 0, width))
