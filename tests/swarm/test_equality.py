"""The swarm's greedy text equals transformers' on one machine: a real model, real processes, 1 to 5 servers."""

from __future__ import annotations

from functools import cache

import pytest

import swarmnode
from support.plain import english_ids, plain_answer
from support.programs import split_evenly, swarm
from swarmnode.models.settings import Sampling

MODEL = "SmolLM2-135M-Instruct"
NUM_BLOCKS = 30
NEW_TOKENS = 8
LENGTHS = (1, 2, 3, 5, 7, 8, 13, 21, 34, 55, 64, 89, 100, 144, 200, 256, 377, 512, 777, 1000)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@cache
def prompts() -> list[tuple[int, ...]]:
    """Twenty runs of token ids, each from another place of an English text."""
    ids = english_ids(MODEL)
    return [ids[index * 61 : index * 61 + length] for index, length in enumerate(LENGTHS)]


@cache
def reference() -> list[list[int]]:
    return [plain_answer(MODEL, prompt, NEW_TOKENS) for prompt in prompts()]


def test_the_prompts_are_what_they_should_be() -> None:
    assert [len(prompt) for prompt in prompts()] == list(LENGTHS)
    assert len(set(prompts())) == len(LENGTHS) == 20
    assert len({tuple(answer) for answer in reference()}) > len(LENGTHS) // 2, "the answers say something of the prompt"


@pytest.mark.in_turns
@pytest.mark.parametrize("servers", [1, 2, 3, 5])
async def test_greedy_text_is_that_of_transformers(servers: int) -> None:
    expected = reference()
    with swarm(None, split_evenly(NUM_BLOCKS, servers)) as (address, _):
        async with swarmnode.open_node(join=[address], listen=(), compression="lossless") as node:
            model = await node.load(dtype="float32", device="cpu")
            assert model.name == MODEL
            for prompt, answer in zip(prompts(), expected, strict=True):
                generation = model.generate(prompt, sampling=Sampling(max_new_tokens=NEW_TOKENS))
                async for _ in generation:
                    pass
                assert list(generation.ids) == answer, f"prompt of {len(prompt)} tokens"
                assert generation.route is not None
                assert [(hop.start, hop.end) for hop in generation.route.hops] == split_evenly(NUM_BLOCKS, servers)
