"""How quick a server is, learnt from the steps and batches it runs. Pure arithmetic."""

from __future__ import annotations

__all__ = ["Pace", "Rates"]

WEIGHT = 0.1
"""Of the newest step in the mean: a hiccup fades within some twenty steps, a real change shows as fast."""

DECODE_TOKENS = 1
PREFILL_TOKENS = 32
"""From so many tokens on a step says how quick prefill is; what lies between says nothing clear of either."""

MIN_SPREAD = 0.01
"""Of the tokens of batches, in squares of their mean: below it, no line can be drawn through them."""


class Rates:
    """Exponential means of tokens per second through the whole span.

    Attributes:
        decode_tokens_per_second: of steps of a single token; 0 until one was seen.
        prefill_tokens_per_second: of long steps; 0 until one was seen.
    """

    def __init__(self, decode_tokens_per_second: float = 0.0, prefill_tokens_per_second: float = 0.0) -> None:
        self.decode_tokens_per_second = decode_tokens_per_second
        self.prefill_tokens_per_second = prefill_tokens_per_second

    def observe(self, tokens: int, seconds: float, share: float) -> None:
        """A step of `tokens` took `seconds` of computing in `share` (0 to 1) of the span's blocks."""
        if seconds <= 0.0:
            return
        rate = tokens * share / seconds
        if tokens <= DECODE_TOKENS:
            self.decode_tokens_per_second = _mean(self.decode_tokens_per_second, rate)
        elif tokens >= PREFILL_TOKENS:
            self.prefill_tokens_per_second = _mean(self.prefill_tokens_per_second, rate)


class Pace:
    """What batches take: a line through those run lately, so many seconds for each and so many for each token.

    Newer batches weigh more, as in `Rates`. Until batches of different sizes were seen, all is put down to tokens; when
    they are all of a size again, a token costs what it did.
    """

    def __init__(self) -> None:
        self._batches = 0.0
        self._tokens = 0.0
        self._seconds = 0.0
        self._tokens_squared = 0.0
        self._products = 0.0
        self._token_seconds: float | None = None

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took `seconds`."""
        if tokens < 1 or seconds <= 0.0:
            return
        kept = 1.0 - WEIGHT
        self._batches = kept * self._batches + 1.0
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + seconds
        self._tokens_squared = kept * self._tokens_squared + tokens * tokens
        self._products = kept * self._products + tokens * seconds
        mean_tokens, mean_seconds = self._tokens / self._batches, self._seconds / self._batches
        spread = self._tokens_squared / self._batches - mean_tokens**2
        if spread > MIN_SPREAD * mean_tokens**2:
            self._token_seconds = (self._products / self._batches - mean_tokens * mean_seconds) / spread

    def seconds(self, tokens: int, batches: int) -> float:
        """What `batches` that carry `tokens` together should take; 0 while no batch was seen."""
        if not self._batches:
            return 0.0
        mean_tokens, mean_seconds = self._tokens / self._batches, self._seconds / self._batches
        slope = mean_seconds / mean_tokens
        if self._token_seconds is not None:
            # Noise may tilt the line so far that a batch or a token would cost less than nothing.
            slope = min(max(self._token_seconds, 0.0), slope)
        return slope * tokens + (mean_seconds - slope * mean_tokens) * batches


def _mean(old: float, new: float) -> float:
    return new if old == 0.0 else old + WEIGHT * (new - old)
