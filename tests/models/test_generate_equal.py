"""On the bundled real model, cut in parts, the sampler writes what transformers' own `generate()` writes."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from swarmnode.models.chat import chat_ids
from swarmnode.models.checkpoint import Checkpoint
from swarmnode.models.sampling import Sampler, Sampling

CUTS = (0, 11, 30)
NEW_TOKENS = 32
QUESTION = [{"role": "user", "content": "Name three rivers of Europe, and say where each one ends."}]


@pytest.fixture(scope="module")
def whole(bundled: Checkpoint) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(bundled.folder, dtype=torch.float32).eval()


def in_parts(checkpoint: Checkpoint, prompt: list[int], sampling: Sampling) -> list[int]:
    ends = checkpoint.load_ends(dtype=torch.float32)
    spans = [checkpoint.load_span(*blocks, dtype=torch.float32) for blocks in itertools.pairwise(CUTS)]
    caches = [span.open_cache() for span in spans]
    sampler = Sampler(sampling, prompt)
    ids = list(prompt)
    feed, position = prompt, 0
    while len(ids) < len(prompt) + sampling.max_new_tokens:
        hidden = ends.embed(torch.tensor([feed]), position)
        for span, cache in zip(spans, caches, strict=True):
            hidden = span.step(cache, hidden, position)
        position += len(feed)
        feed = [sampler.next(ends.logits(hidden))]
        ids += feed
        if feed[0] in checkpoint.eos_ids:
            break
    return ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "settings"),
    [
        (Sampling(max_new_tokens=NEW_TOKENS), {"do_sample": False}),
        (
            Sampling(max_new_tokens=NEW_TOKENS, repetition_penalty=1.2),
            {"do_sample": False, "repetition_penalty": 1.2},
        ),
        (
            Sampling(max_new_tokens=NEW_TOKENS, temperature=0.8, top_p=0.95, top_k=50, seed=5),
            {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 50},
        ),
    ],
)
def test_token_for_token(
    bundled: Checkpoint, whole: PreTrainedModel, sampling: Sampling, settings: dict[str, object]
) -> None:
    prompt = chat_ids(bundled.tokenizer(), QUESTION)
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    ids = torch.tensor([prompt])
    expected = whole.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, pad_token_id=2, **settings
    )
    assert in_parts(bundled, prompt, sampling) == expected[0].tolist()
