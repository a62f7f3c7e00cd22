"""Which servers a session goes through: pure planning over server records. Knows no network, no clock, no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise

from swarmnode.errors import BlocksMissing
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.records import ServerRecord
from swarmnode.protocols.tensors import CODEC_RAW

from .defaults import HOP_NANOSECONDS, RELAY_NANOSECONDS, UNKNOWN_BLOCK_NANOSECONDS

__all__ = ["Coverage", "Hop", "Route", "coverage", "describe_blocks", "missing_blocks", "plan_route"]

FASTEST_BLOCK_NANOSECONDS = 20_000
"""No block is believed to be quicker, whatever its server says of itself."""

SLOWEST_BLOCK_NANOSECONDS = 60_000_000_000


@dataclass(frozen=True, slots=True)
class Hop:
    """Blocks `start:end` on one server, which computes in `dtype` and reads `codecs`."""

    peer: str
    addrs: tuple[str, ...]
    start: int
    end: int
    dtype: str
    codecs: tuple[int, ...] = (CODEC_RAW,)


@dataclass(frozen=True, slots=True)
class Route:
    """Hops that together cover all blocks of a model, in order, each once; and the adapter that all of them use."""

    hops: tuple[Hop, ...]
    adapter: AdapterId | None = None

    @property
    def num_blocks(self) -> int:
        return self.hops[-1].end

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(hop.peer for hop in self.hops)


@dataclass(frozen=True, slots=True)
class Coverage:
    """A run of blocks that the same servers hold; `peers` is empty where nobody does."""

    start: int
    end: int
    peers: tuple[str, ...]


# Unwilling hops, nanoseconds, hops; compared in this order. Whole numbers, so that equal ways cost the same to the bit.
Cost = tuple[int, int, int]


def plan_route(
    records: Iterable[ServerRecord],
    num_blocks: int,
    *,
    exclude: Collection[str] = (),
    tokens: int = 0,
    adapter: AdapterId | None = None,
) -> Route:
    """The quickest chain over blocks `0:num_blocks`.

    A hop may use a part of what its server holds. A server that is not online, or has no cache left for `tokens`, is
    taken only where no other holds the blocks. The same records give the same route whatever their order.

    Args:
        records: of one and the same model.
        exclude: peers not to use.
        tokens: how many the session will hold.
        adapter: only servers that have it are used, whatever they call it.

    Raises:
        BlocksMissing: naming every run of blocks that no record holds.
    """
    usable = sorted(
        (
            record
            for record in records
            if _fits(record, num_blocks) and record.peer not in exclude and _has(record, adapter)
        ),
        key=lambda record: (record.peer, record.start, record.end, -record.sequence),
    )
    if missing := missing_blocks(usable, num_blocks):
        raise BlocksMissing(
            f"{describe_blocks(missing).capitalize()} of {num_blocks} have no live server"
            f"{f' with adapter {adapter}' if adapter else ''}.",
            hint="Wait for a server to come, or give these blocks yourself with `swarmnode serve --blocks "
            f"{missing[0][0]}:{missing[0][1]}{f' --adapter {adapter.name}=FOLDER' if adapter else ''}`.",
            span=missing[0],
        )
    # The cheapest way to each boundary, and the hop it ends with. Going on with a server costs its next block, changing
    # to another a hop as well, so one sweep over the blocks finds the cheapest chain of all.
    reached: list[Cost] = [(0, 0, 0)]
    arrived: list[tuple[ServerRecord, int]] = []
    running: dict[int, tuple[Cost, int]] = {}
    for block in range(num_blocks):
        cheapest: tuple[Cost, ServerRecord, int] | None = None
        for index, record in enumerate(usable):
            if not record.start <= block < record.end:
                continue
            changed = _plus(reached[block], _entry(record, tokens))
            going_on = running.get(index)
            cost, start = going_on if going_on is not None and going_on[0] <= changed else (changed, block)
            cost = _plus(cost, (0, _block_nanoseconds(record), 0))
            running[index] = (cost, start)
            if cheapest is None or cost < cheapest[0]:
                cheapest = (cost, record, start)
        assert cheapest is not None, "a block without a server is refused above"
        reached.append(cheapest[0])
        arrived.append(cheapest[1:])
    return Route(tuple(_walk_back(arrived)), adapter)


def coverage(records: Iterable[ServerRecord], num_blocks: int) -> tuple[Coverage, ...]:
    """Who holds what, as runs of blocks with the same servers, from block 0 to the last."""
    fitting = [record for record in records if _fits(record, num_blocks)]
    edges = sorted({0, num_blocks, *(record.start for record in fitting), *(record.end for record in fitting)})
    return tuple(
        Coverage(start, end, tuple(sorted({each.peer for each in fitting if each.start <= start and end <= each.end})))
        for start, end in pairwise(edges)
    )


def missing_blocks(records: Iterable[ServerRecord], num_blocks: int) -> tuple[tuple[int, int], ...]:
    """The runs `(start, end)` of blocks that no record holds."""
    runs: list[tuple[int, int]] = []
    for part in coverage(records, num_blocks):
        if part.peers:
            continue
        if runs and runs[-1][1] == part.start:
            runs[-1] = (runs[-1][0], part.end)
        else:
            runs.append((part.start, part.end))
    return tuple(runs)


def describe_blocks(runs: Iterable[tuple[int, int]]) -> str:
    """`blocks 0:5 and 10:20`, for people."""
    parts = [f"{start}:{end}" for start, end in runs]
    return "blocks " + (parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}")


def _fits(record: ServerRecord, num_blocks: int) -> bool:
    return record.num_blocks == num_blocks and 0 <= record.start < record.end <= num_blocks


def _has(record: ServerRecord, adapter: AdapterId | None) -> bool:
    return adapter is None or any(own.digest == adapter.digest for own in record.adapters)


def _entry(record: ServerRecord, tokens: int) -> Cost:
    """What it costs to change to this server."""
    willing = record.state == "online" and record.cache_tokens_left >= tokens
    crossing = HOP_NANOSECONDS + (RELAY_NANOSECONDS if record.relayed else 0)
    return (0 if willing else 1, crossing, 1)


def _block_nanoseconds(record: ServerRecord) -> int:
    """What one token takes in one block of this server, by its own measurement of its whole span."""
    rate = record.decode_tokens_per_second
    if not 0.0 < rate < float("inf"):
        return UNKNOWN_BLOCK_NANOSECONDS
    measured = 1e9 / (rate * (record.end - record.start))
    return int(min(max(measured, FASTEST_BLOCK_NANOSECONDS), SLOWEST_BLOCK_NANOSECONDS))


def _plus(one: Cost, other: Cost) -> Cost:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def _walk_back(arrived: list[tuple[ServerRecord, int]]) -> list[Hop]:
    hops: list[Hop] = []
    end = len(arrived)
    while end > 0:
        record, start = arrived[end - 1]
        hops.append(Hop(record.peer, tuple(record.addrs), start, end, record.dtype, record.codecs))
        end = start
    return hops[::-1]
