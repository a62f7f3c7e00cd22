"""Prompts of a soak and what plain transformers answers to them. Knows no swarm.

An answer is kept up to where the two best tokens come so close that another order of summing might swap them: what is
left has to be met by every server, however it packs its batches and however often a session was sent again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from swarmnode.models.cut import quiet_transformers

__all__ = ["Case", "make_cases", "read_cases", "write_cases"]

MARGIN: Final = 1e-3
"""By how much of the largest logit the best token leads the second at least; float32 sums differ by 1e-6 of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """Two turns of a talk, as token ids.

    Attributes:
        prompt, answer: the first turn.
        more, more_answer: what is put behind it, and what that is answered with.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    more: tuple[int, ...]
    more_answer: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """What a session holds in the end."""
        return len(self.prompt) + len(self.answer) + len(self.more) + len(self.more_answer)


def make_cases(
    folder: Path, *, count: int, dice: Random, prompt_tokens: tuple[int, int], answer_tokens: tuple[int, int]
) -> list[Case]:
    """So many cases of random lengths, answered by `generate` in float32. Takes seconds to minutes.

    Args:
        folder: the model.
        prompt_tokens, answer_tokens: least and most.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # small matrices; and this machine's cores are wanted elsewhere
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = range(3, model.config.get_text_config().vocab_size)
    cases: list[Case] = []
    while len(cases) < count:
        prompt = _draw(dice, words, prompt_tokens)
        answer = _answer(model, prompt, dice.randint(*answer_tokens))
        more = _draw(dice, words, answer_tokens)
        more_answer = _answer(model, [*prompt, *answer, *more], dice.randint(*answer_tokens))
        if answer and more_answer:
            cases.append(Case(tuple(prompt), tuple(answer), tuple(more), tuple(more_answer)))
    return cases


def write_cases(path: Path, cases: Sequence[Case]) -> None:
    """Put them in a file, for the processes that ask."""
    path.write_text(json.dumps([asdict(case) for case in cases]), encoding="utf-8")


def read_cases(path: Path) -> list[Case]:
    """What `write_cases` wrote."""
    read = json.loads(path.read_text(encoding="utf-8"))
    return [Case(**{turn: tuple(ids) for turn, ids in each.items()}) for each in read]


def _draw(dice: Random, words: Sequence[int], tokens: tuple[int, int]) -> list[int]:
    return dice.choices(words, k=dice.randint(*tokens))


def _answer(model: Any, ids: list[int], new_tokens: int) -> list[int]:
    """Greedy ids after these, up to the first that leads too narrowly."""
    import torch

    prompt = torch.tensor([ids])
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    answer: list[int] = []
    for id, logits in zip(made.sequences[0, len(ids) :].tolist(), made.logits, strict=True):
        best, second = logits[0].topk(2).values.tolist()
        if best - second < MARGIN * logits.abs().max().item():
            break
        answer.append(id)
    return answer
