"""How much sooner a prompt's first token comes when the server has seen how the prompt begins."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from swarmnode.models.settings import Sampling

from .report import spread

if TYPE_CHECKING:
    from swarmnode.node.library import Model

__all__ = ["SHARED_TOKENS", "FirstTokens", "sample_first_tokens"]

SHARED_TOKENS = 1024
"""What prompts begin with: a long system prompt."""

OWN_TOKENS = 32
"""What comes behind it in each."""


class FirstTokens:
    """Seconds to the first token of prompts whose beginning the server meets for the first time, and again."""

    def __init__(self) -> None:
        self.miss: list[float] = []
        self.hit: list[float] = []

    def report(self) -> dict[str, object]:
        miss, hit = ([1e3 * seconds for seconds in each] for each in (self.miss, self.hit))
        return {
            "miss_ms": spread(miss),
            "hit_ms": spread(hit),
            "ratio": round(spread(miss)["median"] / spread(hit)["median"], 1),
        }


async def sample_first_tokens(model: Model, seed: int, into: FirstTokens) -> None:
    """Ask twice for one token, behind the same beginning that nobody has sent before."""
    random = Random(seed)
    begins = _ids(model, random, SHARED_TOKENS)
    for seconds in (into.miss, into.hit):
        answer = model.generate([*begins, *_ids(model, random, OWN_TOKENS)], sampling=Sampling(max_new_tokens=1))
        async for _ in answer:
            pass
        seconds.append(answer.ttft_seconds)


def _ids(model: Model, random: Random, count: int) -> list[int]:
    return [random.randrange(len(model.tokenizer)) for _ in range(count)]
