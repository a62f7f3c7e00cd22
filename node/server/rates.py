"""How quick a server is, learnt from the steps it runs. Pure arithmetic."""

from __future__ import annotations

__all__ = ["Rates"]

WEIGHT = 0.1
"""Of the newest step in the mean: a hiccup fades within some twenty steps, a real change shows as fast."""

DECODE_TOKENS = 1
PREFILL_TOKENS = 32
"""From so many tokens on a step says how quick prefill is; what lies between says nothing clear of either."""


class Rates:
    """Exponential means of tokens per second through the whole span.

    Attributes:
        decode_tokens_per_second: of steps of a single token; 0 until one was seen.
        prefill_tokens_per_second: of long steps; 0 until one was seen.
    """

    def __init__(self) -> None:
        self.decode_tokens_per_second = 0.0
        self.prefill_tokens_per_second = 0.0

    def observe(self, tokens: int, seconds: float, share: float) -> None:
        """A step of `tokens` took `seconds` of computing in `share` (0 to 1) of the span's blocks."""
        if seconds <= 0.0:
            return
        rate = tokens * share / seconds
        if tokens <= DECODE_TOKENS:
            self.decode_tokens_per_second = _mean(self.decode_tokens_per_second, rate)
        elif tokens >= PREFILL_TOKENS:
            self.prefill_tokens_per_second = _mean(self.prefill_tokens_per_second, rate)


def _mean(old: float, new: float) -> float:
    return new if old == 0.0 else old + WEIGHT * (new - old)
