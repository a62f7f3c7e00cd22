"""Which blocks of tokens a server need not compute again, because a session began alike. Pure: no torch, no clock.

A *block* is a run of `PREFIX_BLOCK_TOKENS` tokens that begins at a multiple of as many and that attention saw at once,
as one segment (`cut`). What comes of it follows from the hidden states of all blocks up to it and from nothing else. So
its name, a *link*, is a digest of the link before and of the block's hidden states, byte for byte: under one link there
is one result. A session's links are its `Chain`; it ends where the session holds something else than whole blocks.

The chain begins with what else decides: the blocks of the model, the dtype, the adapter. Then comes whose session it
is, so that no peer meets what another left: that a step came back sooner would tell it what the other wrote. Only
blocks that their sessions call public come before that, and meet.

What is kept under the links lives in whatever memory sessions leave free, and the block that was used longest ago goes
first. Using a block uses those before it, too, a moment later: so no block goes before those that need it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Generic, TypeVar

from typing_extensions import Buffer

from swarmnode.node.defaults import MAX_PREFIX_BLOCKS

__all__ = ["LEAST_BLOCK_TOKENS", "Chain", "PrefixIndex", "PrefixStatistics", "cut"]

LEAST_BLOCK_TOKENS: Final = 32
"""Below it more time goes into keeping blocks than into computing them."""

Kept = TypeVar("Kept")


def cut(position: int, segments: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """The attention segments of tokens from `position` on, cut so that blocks are segments of their own.

    A segment that begins where a block may is cut into blocks and a rest; others stay whole. By place and length alone,
    as whoever computes the same again has to come to the same segments.

    Args:
        segments: tokens of each segment as its sender or the schedule cut it.
    """
    pieces: list[int] = []
    for tokens in segments:
        whole = tokens // block_tokens if position % block_tokens == 0 else 0
        pieces += [block_tokens] * whole
        if rest := tokens - whole * block_tokens:
            pieces.append(rest)
        position += tokens
    return tuple(pieces)


class Chain:
    """The links of the blocks that a session holds from its beginning on.

    Args:
        about: all that decides, beside hidden states, what becomes of them.
        peer: whose session it is.
        public_tokens: how many of its first tokens are no secret; blocks that lie wholly in them.
    """

    def __init__(self, about: Iterable[object], peer: str, public_tokens: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.links: list[bytes] = []
        self._root = sha256(repr(tuple(about)).encode()).digest()
        self._peer = peer.encode()
        self._public_blocks = public_tokens // block_tokens

    def goes_on(self, position: int) -> bool:
        """Forget the blocks from `position` on; whether a block that begins there is the chain's next."""
        del self.links[position // self.block_tokens :]
        return position == len(self.links) * self.block_tokens

    def next_links(self, blocks: Iterable[Buffer]) -> list[bytes]:
        """The links of the next blocks, by their hidden states. They are `add`ed once they are held."""
        links: list[bytes] = []
        before = self.links[-1] if self.links else self._root
        for number, hidden in enumerate(blocks, len(self.links)):
            if number == self._public_blocks:
                before = sha256(before + self._peer).digest()
            digest = sha256(before)
            digest.update(hidden)
            before = digest.digest()
            links.append(before)
        return links

    def add(self, links: Iterable[bytes]) -> None:
        """The session holds these blocks, too."""
        self.links += links


@dataclass(frozen=True, slots=True)
class PrefixStatistics:
    """What is kept, and what it has been good for.

    Attributes:
        blocks, held_bytes: kept now.
        hits, misses: blocks that were found, and that had to be computed.
        saved_tokens: that were found.
    """

    blocks: int = 0
    held_bytes: int = 0
    hits: int = 0
    misses: int = 0
    saved_tokens: int = 0


class PrefixIndex(Generic[Kept]):
    """What is kept of blocks, by their links. Belongs to one thread; its numbers may be read from any.

    Args:
        block_tokens: tokens of a block.
        max_blocks: most that are kept.
    """

    def __init__(self, block_tokens: int, *, max_blocks: int = MAX_PREFIX_BLOCKS) -> None:
        self.block_tokens = block_tokens
        self._max_blocks = max_blocks
        self._kept: OrderedDict[bytes, tuple[Kept, int]] = OrderedDict()  # the next to go first
        self._room_bytes = self._held_bytes = 0
        self._hits = self._misses = 0

    def statistics(self) -> PrefixStatistics:
        return PrefixStatistics(
            len(self._kept), self._held_bytes, self._hits, self._misses, self._hits * self.block_tokens
        )

    def limit(self, room_bytes: int) -> None:
        """Keep no more than fits into so many bytes from now on."""
        self._room_bytes = room_bytes
        while self._held_bytes > room_bytes:
            self._drop_oldest()

    def find(self, before: Sequence[bytes], links: Sequence[bytes], fits: Callable[[int, Kept], bool]) -> list[Kept]:
        """What is kept of the first of these blocks, up to one that is not, or that does not fit.

        Args:
            before: links of the blocks that come before them.
            fits: asked whether what is kept of the block with this number among `links` is enough.
        """
        found: list[Kept] = []
        for number, link in enumerate(links):
            kept = self._kept.get(link)
            if kept is None or not fits(number, kept[0]):
                break
            found.append(kept[0])
        self._hits += len(found)
        self._misses += len(links) - len(found)
        self._use([*before, *links[: len(found)]])
        return found

    def keep(self, before: Sequence[bytes], link: bytes, size_bytes: int, make: Callable[[], Kept]) -> bool:
        """Keep what `make` makes of a block, instead of what was kept of it, if all blocks `before` it are kept.

        Room is made by letting go of others, but not of those before it; without room nothing is made.
        """
        if before and before[-1] not in self._kept:
            return False
        used = {*before, link}
        known = link in self._kept
        more_bytes = size_bytes - (self._kept[link][1] if known else 0)
        self._use([*before, link])
        while self._held_bytes + more_bytes > self._room_bytes or len(self._kept) + (not known) > self._max_blocks:
            if next(iter(self._kept), link) in used:
                return False
            self._drop_oldest()
        self._kept[link] = (make(), size_bytes)
        self._held_bytes += more_bytes
        self._use(before)
        return True

    def _use(self, chain: Sequence[bytes]) -> None:
        for link in reversed(chain):
            if link in self._kept:
                self._kept.move_to_end(link)

    def _drop_oldest(self) -> None:
        _, (_, size_bytes) = self._kept.popitem(last=False)
        self._held_bytes -= size_bytes
