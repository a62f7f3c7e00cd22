"""What plain transformers answers on one machine: the reference that the swarm is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["english_ids", "plain_answer"]

ENGLISH = Path(__file__).parents[2] / "LICENSE"


@cache
def english_ids(model: str) -> tuple[int, ...]:
    """A few thousand token ids of English text."""
    from swarmnode.models.checkpoint import open_checkpoint

    return tuple(open_checkpoint(model).tokenizer()(ENGLISH.read_text(encoding="utf-8"))["input_ids"])


def plain_answer(model: str, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Greedy ids after the prompt, from `generate` of the whole model in float32 with one thread."""
    import torch

    ids = torch.tensor([list(prompt)])
    out = _whole(model).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


@cache
def _whole(model: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from swarmnode.models.checkpoint import open_checkpoint

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(open_checkpoint(model).folder, dtype=torch.float32).eval()
