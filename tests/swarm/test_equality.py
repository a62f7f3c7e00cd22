"""The swarm's greedy text equals transformers' on one machine: a real model, real processes, 1 to 5 servers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import swarmnode
from support.programs import split_evenly, swarm
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.models.settings import Sampling

MODEL = "SmolLM2-135M-Instruct"
NUM_BLOCKS = 30
NEW_TOKENS = 12
LENGTHS = (1, 2, 3, 5, 7, 8, 13, 21, 34, 55, 64, 89, 100, 144, 200, 256, 377, 512, 777, 1000)
TEXT = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@cache
def prompts() -> list[list[int]]:
    """Twenty runs of token ids, each from another place of an English text."""
    ids: list[int] = open_checkpoint(MODEL).tokenizer()(TEXT)["input_ids"]
    return [ids[index * 61 : index * 61 + length] for index, length in enumerate(LENGTHS)]


@cache
def reference() -> list[list[int]]:
    """What plain transformers answers."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(open_checkpoint(MODEL).folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


def test_the_prompts_are_what_they_should_be() -> None:
    assert [len(prompt) for prompt in prompts()] == list(LENGTHS)
    assert len({tuple(prompt) for prompt in prompts()}) == len(LENGTHS)


@pytest.mark.parametrize("servers", [1, 2, 3, 5])
async def test_greedy_text_is_that_of_transformers(servers: int, swarm_of: Callable[[int], str]) -> None:
    expected = reference()
    address = swarm_of(servers)
    async with swarmnode.open_node(join=[address]) as node:
        model = await node.load(dtype="float32", device="cpu")
        for prompt, answer in zip(prompts(), expected, strict=True):
            generation = model.generate(prompt, sampling=Sampling(max_new_tokens=NEW_TOKENS))
            async for _ in generation:
                pass
            assert list(generation.ids) == answer, f"prompt of {len(prompt)} tokens"
            assert [(hop.start, hop.end) for hop in generation.route.hops] == split_evenly(NUM_BLOCKS, servers)


@pytest.fixture
def swarm_of(request: pytest.FixtureRequest) -> Callable[[int], str]:
    def start(servers: int) -> str:
        running = swarm(None, split_evenly(NUM_BLOCKS, servers))
        address, _ = running.__enter__()
        request.addfinalizer(lambda: running.__exit__(None, None, None))
        return address

    return start
