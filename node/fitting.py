"""How many blocks of a model fit into this machine's memory: reads what there is, says what is wrong with figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from swarmnode.errors import BadInput, BadRange, OutOfMemory
from swarmnode.models.footprint import footprint

from .capacity import (
    SPARE_SHARE,
    Need,
    Room,
    Spread,
    Task,
    cache_that_fits,
    fits,
    least_cache,
    need_of,
    spread,
    windows_that_fit,
)
from .defaults import BATCH_TOKENS, DEFAULT_CACHE_TOKENS, PREFILL_CHUNK_TOKENS, STEP_BODY_BYTES
from .machine import read_host_memory, read_memory
from .sizes import shown_size

if TYPE_CHECKING:
    import torch

    from swarmnode.models.adapters import Adapter
    from swarmnode.models.checkpoint import Checkpoint
    from swarmnode.models.quantised import Scheme

__all__ = ["Fit", "Request", "fit_blocks"]

WIDEST_ELEMENT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for.

    Attributes:
        window: the very blocks; None leaves them to us.
        count: how many blocks; None is as many as fit.
        auto: whether it was said that we should choose; else all blocks are meant, if they fit.
        cache_tokens: how much cache; None leaves it to the room there is.
        cache_memory: the same in bytes; at most one of them is given.
        max_memory: bytes that this process may take on each device; None is all that is free.
        offload: whether weights for which a device has no room may stay in the machine's memory.
        quant: in what linear layers will be kept.
    """

    window: tuple[int, int] | None = None
    count: int | None = None
    auto: bool = False
    cache_tokens: int | None = None
    cache_memory: int | None = None
    max_memory: int | None = None
    offload: bool = False
    quant: Scheme | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """Which windows of blocks fit here.

    Attributes:
        windows: those to choose among, from block 0 on; at least one.
        room: what they may take; endless where nobody knows.
        whole: what all blocks need at least.
    """

    task: Task
    windows: tuple[tuple[int, int], ...]
    room: Room
    whole: Need

    @property
    def limit_bytes(self) -> int | None:
        """What may be taken; None where nobody knows."""
        return None if math.isinf(self.room.limit) else int(self.room.limit)

    def cache_tokens(self, window: tuple[int, int]) -> int:
        """How many tokens of cache there will be."""
        return cache_that_fits(self.task, window, self.room)

    def spread(self, window: tuple[int, int]) -> Spread:
        """Which device each block of a window is on."""
        found = spread(self.task, window, self.cache_tokens(window), self.room)
        assert found is not None
        return found

    def need(self, window: tuple[int, int]) -> Need:
        """What a window needs with that cache."""
        return need_of(self.task, window, self.cache_tokens(window))


def fit_blocks(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    request: Request,
    adapters: Sequence[Adapter] = (),
) -> Fit:
    """Find out; takes up to a second, and wants a thread of its own.

    Args:
        devices: of one kind; blocks fill one after the other.
        adapters: those that will be held beside the blocks; they count among the weights.

    Raises:
        BadRange: the model does not have so many blocks.
        BadInput: it must be known how much memory is free, and the system does not say.
        OutOfMemory: what is asked for does not fit, or not even one block.
    """
    total, count = checkpoint.num_blocks, request.count
    if count is not None and count > total:
        raise BadRange(
            f"{checkpoint.name} has {total} blocks, not {count}.", hint=f"Give --num-blocks {total} or fewer."
        )
    room, words = _room(devices, request)
    task = _task(checkpoint, dtype, devices[0], request)
    for adapter in adapters:
        weights = map(sum, zip(task.footprint.weights, adapter.block_bytes(total, dtype), strict=True))
        task = replace(task, footprint=replace(task.footprint, weights=tuple(weights)))
    if request.window is not None:
        windows = [request.window] if fits(task, room, request.window) else []
    else:
        windows = windows_that_fit(task, room, count)
    if not windows:
        raise _nothing_fits(checkpoint.name, task, room, request, words)
    return Fit(task, tuple(windows), room, need_of(task, (0, total), least_cache(task, (0, total))))


def _room(devices: Sequence[torch.device], request: Request) -> tuple[Room, str]:
    """What may be taken, and the same in words."""
    found = [_room_on(device, request) for device in devices]
    weights_limit = math.inf
    if devices[0].type not in ("cpu", "mps") and (host := read_host_memory()) is not None:
        weights_limit = host.free  # they are read into the machine's memory first
    words = [
        words if len(devices) == 1 else f"{device}: {words}" for device, (_, words) in zip(devices, found, strict=True)
    ]
    spare_share = SPARE_SHARE if request.max_memory is None else 1.0
    room = Room(tuple(limit for limit, _ in found), weights_limit, request.offload, spare_share)
    return room, "; ".join(filter(None, words))


def _room_on(device: torch.device, request: Request) -> tuple[float, str]:
    memory = read_memory(device)
    if memory is None and request.max_memory is None:
        if request.auto or request.offload:
            raise BadInput(
                "This system does not say how much memory is free, so nobody knows how many blocks fit.",
                hint="Say how much may be taken, such as --max-memory 8GiB, or name the blocks.",
            )
        return math.inf, ""
    if memory is None:
        assert request.max_memory is not None
        return request.max_memory, f"--max-memory allows {shown_size(request.max_memory)}"
    if request.max_memory is None or memory.free <= request.max_memory - memory.used:
        return memory.free, f"{shown_size(memory.free)} are free, says {memory.source}"
    limit = max(0, request.max_memory - memory.used)
    words = f"--max-memory {shown_size(request.max_memory)} leaves {shown_size(limit)}"
    return limit, f"{words} beside the {shown_size(memory.used)} that the program has already"


def _task(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, request: Request) -> Task:
    state_bytes = checkpoint.hidden_size * WIDEST_ELEMENT_BYTES
    step_tokens = max(BATCH_TOKENS, min(PREFILL_CHUNK_TOKENS, STEP_BODY_BYTES // state_bytes))
    longest = min(checkpoint.context_tokens, request.cache_tokens or DEFAULT_CACHE_TOKENS)
    found = footprint(
        checkpoint.config,
        dtype,
        step_tokens=step_tokens,
        session_tokens=longest,
        quant=request.quant,
        device_type=device.type,
    )
    return Task(
        found,
        step_tokens,
        step_tokens * state_bytes,
        checkpoint.context_tokens,
        request.cache_tokens,
        request.cache_memory,
    )


def _nothing_fits(name: str, task: Task, room: Room, request: Request, words: str) -> OutOfMemory:
    count = request.count or 1
    total = task.footprint.num_blocks
    window = request.window or min(
        ((start, start + count) for start in range(total - count + 1)),
        key=lambda each: need_of(task, each, least_cache(task, each)).total,
    )
    least = least_cache(task, window)
    need = need_of(task, window, least)
    smaller = "fewer --cache-tokens" if request.cache_memory is None else "a smaller --cache-memory"
    most = max((end - start for start, end in windows_that_fit(task, room)), default=0)
    if request.window is not None:
        what, hint = f"Blocks {window[0]}:{window[1]} of {name} need", "Name fewer blocks, or give --blocks auto"
    elif most:
        what, hint = f"{count} blocks of {name} need", f"Give --num-blocks {most} or fewer"
    else:
        what, hint = f"Not even one block of {name} fits: it needs", "Make room, or raise --max-memory"
    if need.weights > room.weights_limit:
        words = f"{words}; and {shown_size(room.weights_limit)} are free where weights are read into first"
    return OutOfMemory(
        f"{what} {shown_size(need.total)} ({shown_size(need.weights)} of weights, {shown_size(need.cache)} for a cache "
        f"of {least} tokens, {shown_size(need.work)} to work in), and {words}.",
        hint=f"{hint}; {smaller}, a smaller --dtype or --quant need less.",
    )
