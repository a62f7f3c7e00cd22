"""Who goes when a key is full: nobody whom the others under the key cannot spare. Pure arithmetic on spans.

A key has places for a bounded number of records. Those who are there stay there for as long as they refresh, with one
exception: a newcomer that covers blocks few others cover takes the place of a record all of whose blocks many others
cover. So hundreds of servers of the first blocks never hide the only server of the last ones, and a flood of records
for one span crowds out only itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Covering", "spared"]

_MARGIN = 2
"""How much better covered the loser must be; at 1 two records could take each other's place for ever."""


@dataclass(frozen=True, slots=True)
class Covering:
    """What a record claims to cover: blocks `start:end` of weights, named by a digest and their number of blocks."""

    weights: tuple[bytes, int]
    start: int
    end: int


def spared(present: Sequence[Covering], newcomer: Covering) -> int | None:
    """The index in `present` (in order of arrival) of the record to give way, or None when the newcomer has to.

    A record is as thinly covered as the block of its span that the fewest records hold, the newcomer counted. The best
    covered one goes, the latest to come among equals, if it is so much better covered than the newcomer that at least
    two records still hold each of its blocks afterwards.
    """
    coverage = _coverage([*present, newcomer])
    thinnest = [min(coverage[record.weights][record.start : record.end]) for record in present]
    if not thinnest:
        return None
    best = max(range(len(present)), key=lambda index: (thinnest[index], index))
    wanted = min(coverage[newcomer.weights][newcomer.start : newcomer.end])
    return best if thinnest[best] >= wanted + _MARGIN else None


def _coverage(records: Sequence[Covering]) -> dict[tuple[bytes, int], list[int]]:
    """For each weights, how many records hold each block."""
    coverage: dict[tuple[bytes, int], list[int]] = {}
    for record in records:
        counts = coverage.setdefault(record.weights, [0] * record.weights[1])
        counts[record.start : record.end] = [count + 1 for count in counts[record.start : record.end]]
    return coverage
