"""Which blocks a server should hold: the window that helps the swarm's worst-covered blocks most. Pure arithmetic.

A block's *coverage* is the sum of the rates of the servers that hold it: no session can get through the swarm faster
than through its worst-covered block. Windows are compared by the whole swarm's coverage after the choice, sorted from
the worst block on, and the higher in that order wins. So gaps are closed first, then the thinnest block gains.

Rates are whole numbers, so that sums do not depend on their order and every peer decides alike.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from swarmnode.protocols.records import ServerRecord

from .defaults import UNKNOWN_BLOCK_NANOSECONDS

__all__ = [
    "LOOK_SECONDS",
    "Coverage",
    "Options",
    "Patience",
    "Share",
    "Window",
    "choose_window",
    "coverage_of",
    "move_delay_seconds",
    "rank",
    "settle",
    "shares_of",
    "should_move",
    "typical_rate",
    "uncovered",
    "worth",
]

PROMPT_TOKENS: Final = 2
"""So many tokens of a prompt are taken to come with each token of an answer: what a rate is worth depends on both."""

PER_SECOND: Final = 1000
"""Rates are counted in thousandths of a token per second."""

MOST_WORTH: Final = 50_000 * PER_SECOND
"""No server is believed to be quicker, whatever it says of itself: it would outweigh all others."""

MOVE_GAIN: Final = 1.25
"""A running server leaves its blocks for others only if the worst coverage rises by this factor: a move is a load."""

LOOK_SECONDS: Final = 30.0
"""How often a running server looks whether it should move."""

PATIENCE_SECONDS: Final = 60.0
"""Before it moves, what is wrong must have lasted so long: a server that restarts is back by then."""

SPREAD_SECONDS: Final = 120.0
"""And up to so long more, different for each peer and try, so that one moves before the others look again."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one server holds: blocks `start:end`, in all of which together it makes `rate` (see `worth`)."""

    peer: str
    start: int
    end: int
    rate: int


Window = tuple[int, int]
Coverage = list[int]


def worth(decode_tokens_per_second: float, prefill_tokens_per_second: float) -> int:
    """What a server adds to its blocks: thousandths of answer tokens per second, prompts included; 0 when unknown."""
    rates = (decode_tokens_per_second, prefill_tokens_per_second)
    if not all(0.0 < rate < float("inf") for rate in rates):
        return 0
    seconds = 1 / decode_tokens_per_second + PROMPT_TOKENS / prefill_tokens_per_second
    return max(1, int(min(PER_SECOND / seconds, MOST_WORTH)))


def shares_of(records: Iterable[ServerRecord], num_blocks: int, *, without: Collection[str] = ()) -> list[Share]:
    """What the servers of one model hold or are about to hold, by peer.

    Who drains is leaving and does not count. Who loads counts in full: it will be there. Where a server does not know
    its rate, its blocks are taken to be as quick as those of the median server that does.
    """
    live = [
        record
        for record in records
        if record.state != "draining" and record.num_blocks == num_blocks and record.peer not in without
    ]
    typical = typical_rate(live)
    shares = [
        Share(each.peer, each.start, each.end, _rate(each) or max(1, typical // (each.end - each.start)))
        for each in live
    ]
    return sorted(shares, key=lambda share: share.peer)


def typical_rate(records: Iterable[ServerRecord]) -> int:
    """The rate of the median server's single block; a guess where none knows its rate."""
    known = sorted(_rate(each) * (each.end - each.start) for each in records if _rate(each))
    return known[len(known) // 2] if known else PER_SECOND * 1_000_000_000 // UNKNOWN_BLOCK_NANOSECONDS


def coverage_of(shares: Iterable[Share], num_blocks: int) -> Coverage:
    """The coverage of each block."""
    coverage = [0] * num_blocks
    for share in shares:
        for block in range(share.start, share.end):
            coverage[block] += share.rate
    return coverage


def uncovered(coverage: Coverage) -> int:
    """How many blocks nobody holds."""
    return coverage.count(0)


@dataclass(frozen=True, slots=True)
class Options:
    """What a server can choose among.

    Attributes:
        windows: those that fit, from block 0 on; at least one.
        rate_of: its rate (see `worth`) when it holds so many blocks.
    """

    peer: str
    windows: Sequence[Window]
    rate_of: Callable[[int], int]


def choose_window(coverage: Coverage, options: Options) -> Window:
    """The window that a server should take, by the coverage of all other servers.

    Among equals it is one that leaves the fewest steps in the coverage, so that gaps stay whole and hops few; in an
    empty swarm then the first one, else one that depends on the peer, so that not all newcomers take the same.
    """
    after = {window: _with(coverage, window, options.rate_of) for window in options.windows}
    outlooks = {window: sorted(then) for window, then in after.items()}
    best = max(outlooks.values())
    equals = [window for window, outlook in outlooks.items() if outlook == best]
    fewest = min(_steps(after[window]) for window in equals)
    equals = [window for window in equals if _steps(after[window]) == fewest]
    if not any(coverage):
        return equals[0]
    return min(equals, key=lambda window: _hash(options.peer, window))


def settle(own: Share, options: Options, newcomers: Iterable[Share], others: Iterable[Share], total: int) -> Window:
    """What to load after all, when others have chosen at the same moment and none saw the other's choice.

    Newcomers give way by their `rank`: each takes the choices of those before it as made, and leaves its own only for a
    better one. All reckon alike, so they agree without another word.

    Args:
        own: what we have announced.
        newcomers: what those have announced who were not there when we chose.
        others: all other servers.
        total: how many blocks the model has.
    """
    coverage = coverage_of(others, total)
    for share in sorted((own, *newcomers), key=lambda each: rank(each.peer)):
        if share.peer == own.peer:
            return _better(coverage, share, options)
        length = share.end - share.start
        slides = [(start, start + length) for start in range(total - length + 1)]
        window = _better(coverage, share, Options(share.peer, slides, _constant(share.rate)))
        coverage = _with(coverage, window, _constant(share.rate))
    raise AssertionError("our own share is among them")


def should_move(own: Share, options: Options, others: Sequence[Share], total: int) -> Window | None:
    """The window that a running server should load instead of its own; None to stay.

    Where all blocks are held, it moves if the worst coverage rises by `MOVE_GAIN`. Where some are not, if fewer will
    be; or if as many will be, but nearer to blocks that several hold: so a gap travels, server by server, to where
    there is one too many. Each move lowers what the next is measured by, so moves come to an end.
    """
    coverage = coverage_of(others, total)
    now = _with(coverage, (own.start, own.end), _constant(own.rate))
    if not uncovered(now):
        window = choose_window(coverage, options)
        gained = min(_with(coverage, window, options.rate_of))
        return window if gained >= MOVE_GAIN * min(now) else None
    held = coverage_of((replace(each, rate=1) for each in others), total)
    wants = {window: _want(held, window) for window in options.windows}
    best = min(wants.values())
    if best >= _want(held, (own.start, own.end)):
        return None
    return choose_window(coverage, replace(options, windows=[each for each, want in wants.items() if want == best]))


class Patience:
    """When a running server moves at last: what calls for it must have lasted."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._attempt = 0
        self._since: float | None = None

    def is_over(self, wants_to_move: bool, now: float) -> bool:
        """Whether to move now. Ask at every look at the swarm; after a yes patience begins anew."""
        if not wants_to_move:
            self._since = None
            return False
        if self._since is None:
            self._since = now
            self._attempt += 1
        if now - self._since < move_delay_seconds(self._peer, self._attempt):
            return False
        self._since = None
        return True


def move_delay_seconds(peer: str, attempt: int) -> float:
    """How long what calls for a move must last before this peer moves, the `attempt`-th time that it wants to."""
    share = int.from_bytes(_hash(peer, (attempt, 0))[:8], "big") / 2**64
    return PATIENCE_SECONDS + SPREAD_SECONDS * share


def rank(peer: str) -> bytes:
    """Who gives way: of two newcomers the one with the higher rank."""
    return hashlib.sha256(peer.encode()).digest()


def _rate(record: ServerRecord) -> int:
    return worth(record.decode_tokens_per_second, record.prefill_tokens_per_second)


def _better(coverage: Coverage, share: Share, options: Options) -> Window:
    """The window to choose, or the share's own where that is as good."""
    window, own = choose_window(coverage, options), (share.start, share.end)
    gained = sorted(_with(coverage, window, options.rate_of))
    return window if gained > sorted(_with(coverage, own, _constant(share.rate))) else own


def _want(held: Coverage, window: Window) -> tuple[int, int]:
    """How many blocks nobody holds when a server takes `window`, and how far these are from blocks of several."""
    then = _with(held, window, _constant(1))
    empty = [block for block, count in enumerate(then) if count == 0]
    several = [block for block, count in enumerate(then) if count > 1]
    if not several:
        return len(empty), 0
    return len(empty), sum(_distance(block, several) for block in empty)


def _distance(block: int, places: Sequence[int]) -> int:
    """From a block to the nearest of some sorted places."""
    at = bisect_left(places, block)
    return min(abs(block - place) for place in places[max(0, at - 1) : at + 1])


def _with(coverage: Coverage, window: Window, rate_of: Callable[[int], int]) -> Coverage:
    start, end = window
    rate = rate_of(end - start)
    return [*coverage[:start], *(each + rate for each in coverage[start:end]), *coverage[end:]]


def _steps(coverage: Coverage) -> int:
    return sum(one != other for one, other in pairwise(coverage))


def _constant(rate: int) -> Callable[[int], int]:
    return lambda _: rate


def _hash(peer: str, numbers: tuple[int, int]) -> bytes:
    return hashlib.sha256(f"{peer} {numbers[0]} {numbers[1]}".encode()).digest()
