"""What a span costs and how quick it is: asked of the span itself on the torch thread, before anybody uses it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

import torch

from swarmnode.models.span import RaggedCache, Span, SpanCache
from swarmnode.node.tensors import tensor_to_bytes
from swarmnode.node.torch_thread import TorchThread

from .rates import Rates

__all__ = ["Costs", "learn_costs", "measure_rates"]

MEASURED_DECODE_STEPS: Final = 8
MEASURED_PREFILL_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Costs:
    """What sessions on a span allocate.

    Attributes:
        token_bytes: for a token on the whole span; 0 where states do not grow, or where it is not known yet.
        first_tokens: tokens' worth of what a session holds from its first token on, where each has a stock cache.
    """

    span: Span
    token_bytes: int = 0
    first_tokens: int = 0

    def tokens(self, share: float, tokens: int) -> int:
        """What a session on this share of the span allocates for so many tokens, in tokens of the whole span."""
        if self.span.ragged and self.token_bytes:
            tokens = -(-self.span.cache_bytes(tokens) // self.token_bytes)
        elif tokens:
            tokens += self.first_tokens
        return math.ceil(share * tokens)


def learn_costs(span: Span) -> Costs:
    """Find out, on the torch thread."""
    token_bytes = span.token_bytes
    if span.ragged or not token_bytes:
        return Costs(span, token_bytes)
    return Costs(span, token_bytes, -(-(span.cache_bytes(1) - token_bytes) // token_bytes))


async def measure_rates(span: Span, torch_thread: TorchThread) -> Rates:
    """How quick a span is, by a few steps of noise."""
    rates = Rates()
    cache = await torch_thread.run(span.open_session)
    shapes = [MEASURED_PREFILL_TOKENS, MEASURED_PREFILL_TOKENS] + [1] * MEASURED_DECODE_STEPS
    position = 0
    for number, tokens in enumerate(shapes):
        seconds = await torch_thread.run(_timed, span, cache, tokens, position)
        position += tokens
        # The first step of either kind warms up kernels and memory.
        if number not in (0, 2):
            rates.observe(tokens, seconds, 1.0)
    return rates


def _timed(span: Span, cache: SpanCache | RaggedCache, tokens: int, position: int) -> float:
    noise = torch.randn(1, tokens, span.hidden_size, dtype=span.dtype, device=span.device)
    begun = time.perf_counter()
    tensor_to_bytes(span.step(cache, noise, position), "float32")  # waits for the device
    return time.perf_counter() - begun
