"""Tiny models of a dozen families write in parts what transformers' own greedy `generate()` writes."""

from __future__ import annotations

import pytest
import torch

from swarmnode.models.cut import quiet_transformers
from swarmnode.models.tiny import VOCABULARY, tiny_config
from swarmnode.models.tiny_checkpoint import TinyCheckpoint, tiny_checkpoint

FAMILIES = (
    *("bloom", "cohere", "deepseek_v3", "falcon", "gemma3_text", "gpt2"),
    *("gpt_oss", "jamba", "llama", "mamba", "mixtral", "opt"),
    *("qwen3_5", "qwen3_moe"),
)
PROMPT_TOKENS = 9
NEW_TOKENS = 12


def in_parts(checkpoint: TinyCheckpoint, prompt: torch.Tensor) -> list[int]:
    ends = checkpoint.ends()
    spans = [checkpoint.span(0, 1), checkpoint.span(1, 3), checkpoint.span(3, 4)]
    caches = [span.open_cache() for span in spans]
    ids: list[int] = []
    feed, position = prompt, 0
    while len(ids) < NEW_TOKENS:
        hidden = ends.embed(feed, position)
        for span, cache in zip(spans, caches, strict=True):
            hidden = span.step(cache, hidden, position)
        position += feed.shape[1]
        ids.append(int(ends.logits(hidden).argmax()))
        feed = torch.tensor([[ids[-1]]])
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_token_for_token(family: str) -> None:
    torch.set_num_threads(1)
    with tiny_checkpoint(tiny_config(family)) as checkpoint, quiet_transformers():
        prompt = torch.randint(3, VOCABULARY, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(3))
        written = checkpoint.whole.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
        )
        assert in_parts(checkpoint, prompt) == written[0, PROMPT_TOKENS:].tolist()
