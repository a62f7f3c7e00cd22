"""From logits to the next token, through transformers' own logits processors. Knows no model and no text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swarmnode.errors import SwarmFault

from .settings import Sampling

__all__ = ["Sampler", "Sampling"]

FIRST_ROOM_TOKENS = 1024


class Sampler:
    """Chooses tokens for one sequence and remembers them, as the repetition penalty needs.

    The processors, their order and the draw are those of `generate()`: the same logits and seed on the CPU give the
    same tokens. One thread at a time.

    Args:
        sampling: the settings.
        prompt_ids: all tokens before the first one to be chosen.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        self.sampling = sampling
        self._processors = _processors(sampling)
        self._history = torch.empty((1, len(prompt_ids) + FIRST_ROOM_TOKENS), dtype=torch.int64)
        self._length = 0
        self.observe(prompt_ids)
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def observe(self, ids: Sequence[int]) -> None:
        """Count tokens that came from elsewhere, such as the next message of a chat, as part of the sequence."""
        end = self._length + len(ids)
        if end > self._history.shape[1]:
            # Doubling keeps the cost of a long answer linear.
            grown = torch.empty((1, 2 * end), dtype=torch.int64)
            grown[:, : self._length] = self._history[:, : self._length]
            self._history = grown
        self._history[0, self._length : end] = torch.tensor(ids, dtype=torch.int64)
        self._length = end

    def next(self, logits: torch.Tensor) -> int:
        """The next token's id, which joins the history.

        Args:
            logits: `[vocab]` or any shape that holds just that, e.g. `[1, 1, vocab]`; any dtype, any device.

        Raises:
            SwarmFault: there are NaNs among them, so some server computed wrongly.
        """
        scores = logits.detach().reshape(1, -1).to(device="cpu", dtype=torch.float32, copy=True)
        if torch.isnan(scores).any():
            raise SwarmFault(
                "The model's scores are not numbers (NaN).",
                hint="A server computes wrongly, or float16 overflowed: try bfloat16 or float32, or other servers.",
            )
        scores = self._processors(self._history[:, : self._length], scores)
        if self.sampling.greedy:
            chosen = torch.argmax(scores, dim=-1)
        else:
            odds = torch.softmax(scores, dim=-1)
            chosen = torch.multinomial(odds, num_samples=1, generator=self._generator).squeeze(1)
        token = int(chosen.item())
        self.observe((token,))
        return token


def _processors(sampling: Sampling) -> LogitsProcessorList:
    """Those that `generate()` would make for these settings, in its order (`GenerationMixin._get_logits_processor`)."""
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.greedy:
        return chain
    if sampling.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k != 0:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p > 0.0:
        chain.append(MinPLogitsWarper(float(sampling.min_p)))
    return chain
