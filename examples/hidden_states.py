"""Inside a trio program of your own: a swarm in this process, several prompts at once, and raw hidden states.

    python examples/hidden_states.py

Needs no network and no download: it makes a tiny model with random weights, so the text is nonsense.
"""

from __future__ import annotations

import tempfile

import torch
import trio

from swarmnode.node.library import Model
from swarmnode.testing import make_tiny_model, open_memory_swarm

PROMPTS = ("The sea", "A machine", "Tomorrow")


async def answer(model: Model, prompt: str) -> None:
    generation = model.generate(prompt, max_new_tokens=12, temperature=0.8, seed=1)
    async for _ in generation:
        pass
    print(f"{prompt!r} -> {generation.text!r} ({generation.finish_reason})")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_memory_swarm(make_tiny_model(folder), splits=[1, 3]) as swarm:
            model = await swarm.client.load(swarm.model)
            for hop in (await model.route()).hops:
                print(f"blocks {hop.start}:{hop.end} on {hop.peer}")

            # Sessions are independent: a nursery of prompts is all it takes.
            async with trio.open_nursery() as nursery:
                for prompt in PROMPTS:
                    nursery.start_soon(answer, model, prompt)

            # What block 0 sees goes in, what the last block gives comes out; the servers keep the cache.
            async with model.session() as session:
                first = await session.step(torch.randn(1, 5, model.hidden_size))
                more = await session.step(torch.randn(1, 1, model.hidden_size))
                again = await session.step(torch.randn(1, 2, model.hidden_size), position=3, keep=1)
                print([list(each.shape) for each in (first, more, again)], "position", session.position)


if __name__ == "__main__":
    trio.run(main)
