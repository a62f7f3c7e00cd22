"""What a pass of a real span takes, measured and put as a sum, for simulations. One thread, by its own CPU time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import torch

from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.models.span import Piece, RaggedCache, Span, SpanCache

from .load import Cost

__all__ = ["measure"]

PASSES: Final = (
    # sessions that decode, tokens each has seen, tokens of one prefill, tokens it has seen
    *((sessions, seen, 0, 0) for sessions, seen in ((1, 100), (4, 100), (8, 100), (16, 100), (32, 100))),
    *((sessions, seen, 0, 0) for sessions, seen in ((4, 1000), (1, 2000))),
    *((0, 0, tokens, seen) for tokens, seen in ((32, 0), (64, 0), (128, 0), (256, 0), (512, 0), (1024, 0))),
    *((0, 0, tokens, seen) for tokens, seen in ((128, 2048), (256, 1024), (512, 1024))),
    *((sessions, 100, tokens, 0) for sessions, tokens in ((8, 128), (8, 256), (16, 512))),
)
ROUNDS: Final = 3
CHUNK_TOKENS: Final = 512
"""In which caches are filled before they are measured."""


def measure(model: str, dtype: str) -> tuple[Cost, list[dict[str, object]]]:
    """Seconds of each part of a pass through the whole model, and by how much the sum misses each measured pass."""
    checkpoint = open_checkpoint(model)
    span = checkpoint.load_span(0, checkpoint.num_blocks, dtype=getattr(torch, dtype))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = [_seconds(span, *each) for each in PASSES]
    finally:
        torch.set_num_threads(threads)
    parts = torch.tensor([_parts(*each) for each in PASSES], dtype=torch.float64)
    taken = torch.tensor(seconds, dtype=torch.float64)
    # Relative errors are made small, so that short passes count as much as long ones.
    fitted = torch.linalg.lstsq(parts / taken[:, None], torch.ones(len(PASSES), 1, dtype=torch.float64)).solution[:, 0]
    base, token, segment, read, pair = fitted.tolist()
    cost = Cost(
        checkpoint.num_blocks,
        base_seconds=base,
        token_seconds=token,
        segment_seconds=segment,
        read_seconds=read,
        pair_seconds=pair,
    )
    misses = ((parts @ fitted - taken) / taken).tolist()
    return cost, [
        {"pass": each, "ms": round(1000 * took, 1), "missed_by": round(miss, 3)}
        for each, took, miss in zip(PASSES, seconds, misses, strict=True)
    ]


def _parts(sessions: int, seen: int, tokens: int, prefill_seen: int) -> Sequence[float]:
    """How many passes, tokens, segments, tokens read from caches and pairs of tokens these are."""
    pairs = sessions * (seen + 0.5) + tokens * (prefill_seen + tokens / 2)
    return 1.0, sessions + tokens, sessions + bool(tokens), sessions * seen + prefill_seen, pairs


def _seconds(span: Span, sessions: int, seen: int, tokens: int, prefill_seen: int) -> float:
    """The quickest of some passes: what else the machine did is not looked at."""
    caches = [(_filled(span, seen), 1, seen) for _ in range(sessions)]
    if tokens:
        caches.append((_filled(span, prefill_seen), tokens, prefill_seen))
    taken = []
    for _ in range(ROUNDS):
        pieces = [Piece(cache, _noise(span, length), position) for cache, length, position in caches]
        begun = time.thread_time()
        span.run(pieces, deterministic=True)
        taken.append(time.thread_time() - begun)
    return min(taken)


def _filled(span: Span, tokens: int) -> SpanCache | RaggedCache:
    cache = span.open_session()
    for position in range(0, tokens, CHUNK_TOKENS):
        span.step(cache, _noise(span, min(CHUNK_TOKENS, tokens - position)), position)
    return cache


def _noise(span: Span, tokens: int) -> torch.Tensor:
    return torch.randn(1, tokens, span.hidden_size, dtype=span.dtype)
