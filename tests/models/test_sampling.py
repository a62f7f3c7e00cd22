"""The sampler chooses what `generate()` chooses from the same logits."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from swarmnode.errors import SwarmFault
from swarmnode.models.sampling import Sampler, Sampling

PROMPT = [5, 17, 3, 3, 80, 41]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def ours(model: LlamaForCausalLM, sampling: Sampling) -> list[int]:
    sampler = Sampler(sampling, PROMPT)
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            ids.append(sampler.next(model(torch.tensor([ids]), use_cache=False).logits[0, -1]))
    return ids


def theirs(model: LlamaForCausalLM, seed: int | None = None, **settings: object) -> list[int]:
    if seed is not None:
        torch.manual_seed(seed)
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, use_cache=False, pad_token_id=0, **settings)
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [int(id) for id in out[0]]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_equals_generate(model: LlamaForCausalLM, penalty: float) -> None:
    expected = theirs(model, do_sample=False, repetition_penalty=penalty)
    assert ours(model, Sampling(repetition_penalty=penalty)) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.4, "top_k": 5},
        {"temperature": 1.2, "top_p": 0.7},
        {"temperature": 1.5, "min_p": 0.1},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
)
def test_seeded_sampling_equals_generate(model: LlamaForCausalLM, fields: dict[str, float]) -> None:
    for seed in (0, 11):
        settings = {"top_k": 0, **fields}
        expected = theirs(model, seed=seed, do_sample=True, **settings)
        assert ours(model, Sampling(seed=seed, **fields)) == expected  # type: ignore[arg-type]


def test_a_seed_repeats_and_no_seed_does_not(model: LlamaForCausalLM) -> None:
    wild = Sampling(temperature=5.0)
    assert ours(model, Sampling(temperature=5.0, seed=3)) == ours(model, Sampling(temperature=5.0, seed=3))
    # Two runs of 24 draws from 97 nearly equally likely tokens do not meet by chance.
    assert ours(model, wild) != ours(model, wild)


def test_takes_any_shape_dtype_and_leaves_the_logits_alone() -> None:
    logits = torch.tensor([0.0, 3.0, -1.0, 2.9])
    before = logits.clone()
    assert Sampler(Sampling(repetition_penalty=2.0), [1]).next(logits) == 3
    assert torch.equal(logits, before)
    assert Sampler(Sampling(), [0]).next(logits.to(torch.bfloat16).reshape(1, 1, 4)) == 1
    assert Sampler(Sampling(), []).next(logits) == 1


def test_the_history_grows_past_its_first_room() -> None:
    sampler = Sampler(Sampling(repetition_penalty=1.5), [])
    sampler.observe([0] * 5000)
    sampler.observe([2] * 5000)
    assert sampler.next(torch.tensor([1.0, 0.9, 1.1])) == 1


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(SwarmFault, match="NaN"):
        Sampler(Sampling(), [1]).next(torch.tensor([0.0, float("nan")]))
