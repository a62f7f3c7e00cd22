"""On the bundled real model: a lone session writes what `generate()` writes, and company changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarmnode.models.chat import chat_ids
from swarmnode.models.checkpoint import Checkpoint
from swarmnode.models.ends import Ends
from swarmnode.models.span import Piece, Span

NEW_TOKENS = 10
QUESTIONS = (
    "Name three rivers of Europe, and say where each one ends.",
    "Why is the sky blue?",
    "What is 12 times 12?",
)


def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    tokenizer = checkpoint.tokenizer()
    return [chat_ids(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]


def texts(ends: Ends, span: Span, asked: Sequence[list[int]], *, deterministic: bool) -> list[list[int]]:
    """Greedy continuations, all in the same passes; each begins one pass later than the one before."""
    caches = [span.open_session() for _ in asked]
    feeds = [list(prompt) for prompt in asked]
    written: list[list[int]] = [[] for _ in asked]
    for turn in range(NEW_TOKENS + len(asked) - 1):
        present = [number for number in range(len(asked)) if 0 <= turn - number < NEW_TOKENS]
        pieces = [
            Piece(
                caches[number],
                ends.embed(torch.tensor([feeds[number]]), caches[number].position),
                caches[number].position,
            )
            for number in present
        ]
        for number, out in zip(present, span.run(pieces, deterministic=deterministic), strict=True):
            feeds[number] = [int(ends.logits(out).argmax())]
            written[number] += feeds[number]
    return written


@pytest.mark.slow
def test_alone_as_generate_and_together_as_alone(bundled: Checkpoint) -> None:
    ends, span = bundled.load_ends(dtype=torch.float32), bundled.load_span(0, 30, dtype=torch.float32)
    asked = prompts(bundled)
    whole = AutoModelForCausalLM.from_pretrained(bundled.folder, dtype=torch.float32).eval()
    ids = torch.tensor([asked[0]])
    expected = whole.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )
    assert texts(ends, span, asked[:1], deterministic=False) == [expected[0, len(asked[0]) :].tolist()]
    alone = [texts(ends, span, [prompt], deterministic=True)[0] for prompt in asked]
    assert texts(ends, span, asked, deterministic=True) == alone


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hidden_states_are_the_same_bits_in_any_company(bundled: Checkpoint, dtype: torch.dtype) -> None:
    span = bundled.load_span(0, 30, dtype=dtype)
    generator = torch.Generator().manual_seed(8)
    hidden = torch.randn(5, 31, span.hidden_size, generator=generator)
    lengths = [20, 7, 1, 1, 1, 1]

    def alone(number: int) -> torch.Tensor:
        cache = span.open_session()
        steps = torch.split(hidden[number : number + 1], lengths, 1)
        return torch.cat([span.run([Piece(cache, step, cache.position)], deterministic=True)[0] for step in steps], 1)

    expected = [alone(number) for number in range(2)]
    caches = [span.open_session() for _ in hidden]
    outs: list[list[torch.Tensor]] = [[] for _ in hidden]
    for steps in torch.split(hidden, lengths, 1):
        pieces = [Piece(cache, step, cache.position) for cache, step in zip(caches, torch.split(steps, 1), strict=True)]
        for out, made in zip(outs, span.run(pieces), strict=True):
            out.append(made)
    replayed = span.run(
        [Piece(span.open_session(), hidden[:1], 0, tuple(lengths)), Piece(span.open_session(), hidden[1:2], 0)]
    )
    assert torch.equal(replayed[0], expected[0])
    for number, made in enumerate(expected):
        assert torch.equal(torch.cat(outs[number], 1), made)
