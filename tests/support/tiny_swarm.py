"""A tiny real model in plain transformers, and short ways to ask a swarm in memory that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import trio
from transformers import AutoModelForCausalLM, PreTrainedModel

from swarmnode.models.cut import quiet_transformers
from swarmnode.node.library import Generation, Model
from swarmnode.testing import MemorySwarm, open_memory_swarm

PROMPT = "Once upon a time there was"
TOKENS = 24


class Tiny:
    """A tiny model in a folder, and the same in plain transformers.

    Attributes:
        folder: what nodes load.
        whole: the stock model, float32.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with quiet_transformers():
            self.whole: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """What `generate()` adds to a prompt."""
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            answer = self.whole.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
        added: list[int] = answer[0, ids.shape[1] :].tolist()
        return added


async def read(generation: Generation) -> list[int]:
    """All ids of an answer, whose pieces make up its text."""
    async with generation:
        pieces = [piece async for piece in generation]
    assert "".join(pieces) == generation.text
    assert [id for piece in pieces for id in piece.ids] == generation.ids
    return generation.ids


@asynccontextmanager
async def asked(folder: Path, splits: Sequence[int] = (2,), **swarm: Any) -> AsyncIterator[tuple[MemorySwarm, Model]]:
    """A swarm of servers, and its model loaded by its client."""
    async with open_memory_swarm(folder, splits=splits, **swarm) as memory_swarm:
        yield memory_swarm, await memory_swarm.client.load(memory_swarm.model)


async def freed(swarm: MemorySwarm) -> None:
    """Wait until no server that lives holds a session."""
    living = [each for each in swarm.servers if swarm.net.living(each.peer)]
    with trio.fail_after(20):
        while any(each.node.sessions for each in living):  # noqa: ASYNC110 - what is awaited is their end
            await trio.sleep(0.01)
