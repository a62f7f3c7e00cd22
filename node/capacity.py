"""How much memory blocks need, and which windows of them fit. Pure arithmetic over bytes.

What is added to the plain sums was measured; docs/DECISIONS.md has the figures, tests/models/test_footprint.py and
tests/swarm/test_blocks.py hold them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .defaults import DEFAULT_CACHE_TOKENS, MAX_IN_FLIGHT_STEPS, MAX_SESSIONS, SESSION_PROMISE_TOKENS

if TYPE_CHECKING:
    from swarmnode.models.footprint import Footprint

__all__ = ["Need", "Room", "Task", "cache_that_fits", "fits", "least_cache", "need_of", "windows_that_fit"]

STEP_FACTOR: Final = 1.25
STEP_BYTES: Final = 32 << 20
"""What kernels take beyond the tensors of a step: of 16 pairs of family and dtype, the worst took 1.29 times what was
reckoned, with 71 MiB beyond it."""

LOADING_BYTES: Final = 64 << 20
"""What a load takes beyond its weights and one block that is being converted."""

RUNNING_BYTES: Final = 128 << 20
"""What the rest of the process grows by from before the load to serving: libraries, buffers, the allocator's holes."""

LEAST_CACHE_TOKENS: Final = 16_384
"""Blocks are left out until there is room for a cache of so many tokens, where nobody has said how many."""

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
    """

    footprint: Footprint
    step_tokens: int
    body_bytes: int
    context_tokens: int
    cache_tokens: int | None


@dataclass(frozen=True, slots=True)
class Room:
    """What blocks may take.

    Attributes:
        limit: bytes in all, on the device that they will be on.
        weights_limit: bytes of weights, where these pass through other memory on their way there.
    """

    limit: float
    weights_limit: float = math.inf


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
    cache = cache_tokens * sum(footprint.token[start:end])
    if not cache:  # states that do not grow: the budget counts tokens, and no session is expected to have but a few
        cache = min(MAX_SESSIONS, -(-cache_tokens // SESSION_PROMISE_TOKENS)) * sum(footprint.session[start:end])
    stepping = int(STEP_FACTOR * step) + STEP_BYTES + bodies
    loading = max(footprint.weights[start:end]) + LOADING_BYTES
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
        while end < total and fits(task, room, (start, end + 1)):
            end += 1
        if end > start and (not windows or windows[-1][1] < end):
            windows.append((start, end))
    return windows


def fits(task: Task, room: Room, window: Window) -> bool:
    """Whether there is room for a window with the least cache."""
    need = need_of(task, window, least_cache(task))
    return need.total <= room.limit and need.weights <= room.weights_limit


def least_cache(task: Task) -> int:
    """The cache, in tokens, that a window must have room for."""
    return LEAST_CACHE_TOKENS if task.cache_tokens is None else task.cache_tokens


def cache_that_fits(task: Task, window: Window, room: Room) -> int:
    """The tokens of cache for a window that fits: what was asked for, else as many as fit, up to the default."""
    if task.cache_tokens is not None:
        return task.cache_tokens
    low, high = LEAST_CACHE_TOKENS, DEFAULT_CACHE_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        if need_of(task, window, middle).total <= room.limit:
            low = middle
        else:
            high = middle - 1
    return low
