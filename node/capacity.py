"""How much memory blocks need, and which windows of them fit on which devices. Pure arithmetic over bytes.

What is added to the plain sums was measured; docs/DECISIONS.md has the figures, tests/models/test_footprint.py and
tests/swarm/test_blocks.py hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from .defaults import DEFAULT_CACHE_TOKENS, MAX_IN_FLIGHT_STEPS, MAX_SESSIONS, SESSION_PROMISE_TOKENS

if TYPE_CHECKING:
    from swarmnode.models.footprint import Footprint

__all__ = [
    "Need",
    "Room",
    "Spread",
    "Task",
    "cache_that_fits",
    "fits",
    "least_cache",
    "need_of",
    "spread",
    "windows_that_fit",
]

STEP_FACTOR: Final = 1.25
STEP_BYTES: Final = 32 << 20
"""What kernels take beyond the tensors of a step: of 16 pairs of family and dtype, the worst took 1.29 times what was
reckoned, with 71 MiB beyond it."""

LOADING_BYTES: Final = 64 << 20
"""What a load takes beyond its weights and one block that is being converted."""

QUANTISING_BLOCKS: Final = 3
"""Blocks, as they are stored, whose room it takes to quantise one: the block, and what is made on the way."""

UNPACKING_BYTES: Final = 64 << 20
"""What long steps take beyond that where a layer's weights are made whole for them."""

RUNNING_BYTES: Final = 128 << 20
"""What the rest of the process grows by from before the load to serving: libraries, buffers, the allocator's holes."""

AT_A_TIME: Final = 2
"""Offloaded blocks that lie on their device at once: one computes, the next is on its way."""

LEAST_CACHE_TOKENS: Final = 16_384
"""Blocks are left out until there is room for a cache of so many tokens, where nobody has said how many."""

SPARE_SHARE: Final = 0.5
"""Of what there is room for beyond the default cache, how much a larger one may have: others live here, too."""

Window = tuple[int, int]
"""Blocks `start:end`."""


@dataclass(frozen=True, slots=True)
class Task:
    """What blocks are to do.

    Attributes:
        footprint: what each block takes.
        step_tokens: most tokens of a step; body_bytes: most bytes of its hidden states on the way.
        context_tokens: most tokens that the model is made for.
        cache_tokens: the cache that was asked for; None leaves it to the room there is.
        cache_bytes: the same in bytes; at most one of them is given.
    """

    footprint: Footprint
    step_tokens: int
    body_bytes: int
    context_tokens: int
    cache_tokens: int | None
    cache_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What blocks may take.

    Attributes:
        limits: bytes on each device that they may be on, in the order in which these are filled.
        weights_limit: bytes of weights, where these pass through other memory on their way there.
        offload: whether weights for which there is no room may stay in that other memory.
        spare_share: of the tokens for which there is room beyond the default cache, how many a larger one may have.
    """

    limits: tuple[float, ...]
    weights_limit: float = math.inf
    offload: bool = False
    spare_share: float = 1.0

    @property
    def limit(self) -> float:
        """Bytes in all."""
        return sum(self.limits)


@dataclass(frozen=True, slots=True)
class Spread:
    """Which device each block of a window is on.

    Attributes:
        devices: for each block, which of the room's devices.
        offloaded: blocks, counted from the window's first, whose weights are brought there for each pass.
    """

    devices: tuple[int, ...]
    offloaded: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Need:
    """What a window of blocks needs, in bytes.

    Attributes:
        weights: of its blocks.
        cache: when all its tokens are held.
        work: for the largest step, or for loading, whichever is more; and the rest of the process.
    """

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work


def need_of(task: Task, window: Window, cache_tokens: int) -> Need:
    """What a window of blocks needs with a cache of so many tokens."""
    start, end = window
    footprint = task.footprint
    longest = min(cache_tokens, task.context_tokens)
    step = footprint.step + footprint.reach * max(0, longest - task.step_tokens)
    # Steps of a session are on their way in and out at once, as bytes beside the tensors.
    bodies = 2 * MAX_IN_FLIGHT_STEPS * task.body_bytes
    cache = _cache_bytes(task, window, cache_tokens)
    quantised = footprint.stored != footprint.weights
    stepping = int(STEP_FACTOR * step) + STEP_BYTES + bodies + (UNPACKING_BYTES if quantised else 0)
    loading = max(footprint.stored[start:end]) * (QUANTISING_BLOCKS if quantised else 1) + LOADING_BYTES
    # The cache is empty while blocks load, so that the two never need room together.
    return Need(sum(footprint.weights[start:end]), cache, RUNNING_BYTES + max(stepping, loading - cache))


def windows_that_fit(task: Task, room: Room, count: int | None = None) -> list[Window]:
    """The windows `(start, end)` of blocks that there is room for, from block 0 on.

    Args:
        count: how many blocks each has; None is as many as fit, and no window lies within another.
    """
    total = task.footprint.num_blocks
    if count is not None:
        slides = ((start, start + count) for start in range(total - count + 1))
        return [window for window in slides if fits(task, room, window)]
    windows: list[Window] = []
    end = 0
    for start in range(total):
        end = max(end, start)
        while end > start and not fits(task, room, (start, end)):  # fewer blocks have more tokens for the same bytes
            end -= 1
        while end < total and fits(task, room, (start, end + 1)):
            end += 1
        if end > start and (not windows or windows[-1][1] < end):
            windows.append((start, end))
    return windows


def fits(task: Task, room: Room, window: Window) -> bool:
    """Whether there is room for a window with the least cache."""
    return spread(task, window, least_cache(task, window), room) is not None


def spread(task: Task, window: Window, cache_tokens: int, room: Room) -> Spread | None:
    """Where the blocks of a window go with a cache of so many tokens; None when there is no room for them.

    Each device takes a row of blocks with their caches, the first as many as fit there. Where weights have to stay in
    other memory, each device has its share of the blocks, and of these as few stay as need to.
    """
    start, end = window
    if sum(task.footprint.weights[start:end]) > room.weights_limit:
        return None
    devices: list[int] = []
    for device, limit in enumerate(room.limits):
        first = start + len(devices)
        stop = first
        while stop < end and need_of(task, (first, stop + 1), cache_tokens).total <= limit:
            stop += 1
        devices += [device] * (stop - first)
    if len(devices) == end - start:
        return Spread(tuple(devices))
    return _offloading(task, window, cache_tokens, room) if room.offload else None


def _offloading(task: Task, window: Window, cache_tokens: int, room: Room) -> Spread | None:
    devices: list[int] = []
    offloaded: list[int] = []
    for device, share in enumerate(_shares(task, window, room)):
        first = window[0] + len(devices)
        if share:
            kept = _kept(task, (first, first + share), cache_tokens, room.limits[device])
            if kept is None:
                return None
            # Apart from each other, so that one block's weights come while others compute.
            offloaded += [len(devices) + (number * share) // kept for number in range(kept)]
        devices += [device] * share
    return Spread(tuple(devices), frozenset(offloaded))


def _shares(task: Task, window: Window, room: Room) -> list[int]:
    """How many blocks each device has, in proportion to its room."""
    blocks, total = window[1] - window[0], room.limit
    if math.isinf(total) or not total:
        return [blocks, *[0] * (len(room.limits) - 1)]
    edges = [round(blocks * sum(room.limits[: device + 1]) / total) for device in range(len(room.limits))]
    return [edge - before for before, edge in zip((0, *edges), edges, strict=False)]


def _kept(task: Task, window: Window, cache_tokens: int, limit: float) -> int | None:
    """How many blocks of a device's share stay elsewhere; None when even all of them are not enough."""
    need, heaviest = need_of(task, window, cache_tokens), sorted(task.footprint.weights[slice(*window)])
    for kept in range(len(heaviest) + 1):
        # Any of them may be those that stay, so the lightest are counted; two are there at a time.
        weights = need.weights - sum(heaviest[:kept]) + sum(heaviest[-min(kept, AT_A_TIME) :] if kept else ())
        if weights + need.cache + need.work <= limit:
            return kept
    return None


def least_cache(task: Task, window: Window) -> int:
    """The cache, in tokens, that a window must have room for: what was asked for, if anything was."""
    if (asked := task.cache_bytes) is not None:
        return _largest(1, _most_cache(task), lambda tokens: _cache_bytes(task, window, tokens) <= asked)
    return LEAST_CACHE_TOKENS if task.cache_tokens is None else task.cache_tokens


def cache_that_fits(task: Task, window: Window, room: Room) -> int:
    """The tokens of cache for a window that fits: what was asked for, else what there is room for.

    That is as many as fit, up to the default; and more of them where much memory is spare. No weights are offloaded for
    the sake of more cache.
    """
    if task.cache_tokens is not None or task.cache_bytes is not None:
        return least_cache(task, window)
    resident = replace(room, offload=False)

    def fit(tokens: int) -> bool:
        return spread(task, window, tokens, resident) is not None

    if not fit(DEFAULT_CACHE_TOKENS):
        return _largest(LEAST_CACHE_TOKENS, DEFAULT_CACHE_TOKENS, fit)
    if math.isinf(room.limit) or not sum(task.footprint.token[slice(*window)]):
        return DEFAULT_CACHE_TOKENS
    spare = _largest(DEFAULT_CACHE_TOKENS, _most_cache(task), fit) - DEFAULT_CACHE_TOKENS
    return DEFAULT_CACHE_TOKENS + int(room.spare_share * spare)


def _most_cache(task: Task) -> int:
    """More tokens than that cannot be used."""
    return max(DEFAULT_CACHE_TOKENS, MAX_SESSIONS * task.context_tokens)


def _cache_bytes(task: Task, window: Window, tokens: int) -> int:
    """What the sessions of a window take when they hold so many tokens together."""
    start, end = window
    growing = tokens * sum(task.footprint.token[start:end])
    if growing:
        return growing
    # States that do not grow: the budget counts tokens, and no session is expected to have but a few.
    sessions = min(MAX_SESSIONS, -(-tokens // SESSION_PROMISE_TOKENS))
    return sessions * sum(task.footprint.session[start:end])


def _largest(low: int, high: int, fit: Callable[[int], bool]) -> int:
    """The largest of `low` to `high` that fits; those below it do, too. `low` if none does."""
    while low < high:
        middle = (low + high + 1) // 2
        if fit(middle):
            low = middle
        else:
            high = middle - 1
    return low
