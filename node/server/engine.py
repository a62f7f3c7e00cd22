"""Runs steps through a span on the torch thread, one after the other, and measures them. Knows no session."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from typing_extensions import Buffer

from swarmnode.errors import OutOfMemory
from swarmnode.models.span import Span, SpanCache
from swarmnode.node.defaults import PREFILL_CHUNK_TOKENS, STEP_BODY_BYTES
from swarmnode.node.tensors import tensor_from_bytes, tensor_to_bytes
from swarmnode.node.torch_thread import TorchThread
from swarmnode.protocols.messages import Step, TensorHeader

from .rates import Rates

__all__ = ["Computed", "Engine", "Held"]

MEASURED_DECODE_STEPS = 8
MEASURED_PREFILL_TOKENS = 64
WIDEST_ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Held:
    """What a session holds here: a part of the span, and its state on it."""

    part: Span
    cache: SpanCache


@dataclass(frozen=True, slots=True)
class Computed:
    """A step's result, ready to be sent; and how long it waited and took."""

    tensor: TensorHeader
    body: Buffer
    queue_us: int
    compute_us: int


class Engine:
    """The span of this server, and the thread that may touch it.

    Attributes:
        rates: learnt from every step.
    """

    def __init__(self, span: Span, torch_thread: TorchThread) -> None:
        self.rates = Rates()
        self._span = span
        self._torch_thread = torch_thread

    @property
    def start(self) -> int:
        return self._span.start

    @property
    def end(self) -> int:
        return self._span.end

    @property
    def num_blocks(self) -> int:
        return self._span.num_blocks

    @property
    def hidden_size(self) -> int:
        return self._span.hidden_size

    @property
    def max_step_tokens(self) -> int:
        """Most tokens of one step, so that its body stays within bounds in any dtype."""
        return max(1, min(PREFILL_CHUNK_TOKENS, STEP_BODY_BYTES // (self.hidden_size * WIDEST_ELEMENT_BYTES)))

    async def open(self, start: int, end: int) -> Held:
        """An empty cache for blocks `start:end`, which must lie inside the span."""
        return await self._torch_thread.run(self._open, start, end)

    async def step(
        self,
        held: Held,
        step: Step,
        body: Buffer,
        *,
        keep: int | None,
        dtype: str,
        codec: Callable[[TensorHeader], int],
    ) -> Computed:
        """Run the next tokens of a session.

        Args:
            step, body: with the hidden states `[1, tokens, hidden_size]` as they came.
            keep: how many of the last tokens to return; None for all.
            dtype: of the result.
            codec: chooses the result's codec by its dtype and shape; called on the torch thread.

        Raises:
            ReplayNeeded, ProtocolViolation: as `Span.step`; the latter also when `body` cannot be decoded.
            OutOfMemory: the device has no room.
        """
        asked = time.perf_counter()

        def run() -> Computed:
            begun = time.perf_counter()
            with _telling_of_room(step.tensor.tokens):
                hidden = held.part.step(held.cache, tensor_from_bytes(step.tensor, body), step.position)
                kept = hidden if keep is None else hidden[:, hidden.shape[1] - keep :]
                rows, tokens, width = kept.shape
                header, data = tensor_to_bytes(kept, dtype, codec(TensorHeader(dtype, (rows, tokens, width))))
            ended = time.perf_counter()
            self.rates.observe(step.tensor.tokens, ended - begun, self._share(held))
            return Computed(header, data, _microseconds(begun - asked), _microseconds(ended - begun))

        return await self._torch_thread.run(run)

    async def measure(self) -> None:
        """Run a few steps of noise, so that the first record can say how quick this server is."""
        held = await self.open(self.start, self.end)
        shapes = [MEASURED_PREFILL_TOKENS, MEASURED_PREFILL_TOKENS] + [1] * MEASURED_DECODE_STEPS
        position = 0
        for number, tokens in enumerate(shapes):
            seconds = await self._torch_thread.run(self._timed, held, tokens, position)
            position += tokens
            # The first step of either kind warms up kernels and memory.
            if number not in (0, 2):
                self.rates.observe(tokens, seconds, 1.0)

    def _open(self, start: int, end: int) -> Held:
        part = self._span if (start, end) == (self.start, self.end) else self._span.part(start, end)
        return Held(part, part.open_cache())

    def _timed(self, held: Held, tokens: int, position: int) -> float:
        noise = torch.randn(1, tokens, self.hidden_size, dtype=self._span.dtype, device=self._span.device)
        begun = time.perf_counter()
        tensor_to_bytes(held.part.step(held.cache, noise, position), "float32")  # waits for the device
        return time.perf_counter() - begun

    def _share(self, held: Held) -> float:
        return (held.part.end - held.part.start) / (self.end - self.start)


@contextmanager
def _telling_of_room(tokens: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"The device has no room for {tokens} tokens more.", hint="Try again later, or another server."
        ) from error


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
