"""Compare gradients through a model in parts with those of autograd on the model whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from . import cut
from .span import Span
from .tiny import VOCABULARY
from .tiny_checkpoint import SEED, TinyCheckpoint
from .training import Training, finish

__all__ = ["TRAINING_TOLERANCE", "WholePass", "by_autograd", "compare_training"]

ROWS, TOKENS = 3, 13
"""More tokens than the tiny models' windows hold."""

GROUP_ROWS = 2
"""Rows that go through a chain of spans at once, at most."""

PROMPT_TOKENS = 3

TRAINING_TOLERANCE = 1e-4
"""How far gradients in float32 may be from the whole model's, relative to the largest: rounding, not another result."""


def compare_training(checkpoint: TinyCheckpoint) -> str:
    """Why a model cannot be trained in parts, in one sentence; empty when it can.

    The loss is that of the next token. It is differentiated with regard to what enters block 0 and to deep prompts.
    """
    torch.manual_seed(SEED + 3)
    try:
        expected = by_autograd(checkpoint.whole)
        gaps = [gap for spans in _chains(checkpoint) for gap in _gaps(spans, expected)]
    except Exception as error:  # noqa: BLE001  any failure of foreign code is a finding, not a crash
        return f"Its stock code gives no gradients: {type(error).__name__}: {' '.join(str(error).split())}."
    if max(gaps) <= TRAINING_TOLERANCE:
        return ""
    return f"Gradients in parts differ from those of the whole (by {max(gaps):.0e} of the largest)."


@dataclass(frozen=True)
class WholePass:
    """What autograd has to say of a loss on the whole model.

    Attributes:
        entering, leaving: of the first and the last block, with their gradients.
        prompts: `[blocks, PROMPT_TOKENS, width]`.
    """

    entering: torch.Tensor
    entering_gradient: torch.Tensor
    prompts: torch.Tensor
    prompts_gradient: torch.Tensor
    leaving: torch.Tensor
    leaving_gradient: torch.Tensor


def by_autograd(whole: PreTrainedModel) -> WholePass:
    """The loss of the next token of some rows, with deep prompts, differentiated by autograd alone."""
    ids = torch.randint(3, VOCABULARY, (ROWS, TOKENS))
    blocks = list(cast(nn.ModuleList, whole.get_submodule(cut.find_layout(whole).blocks)))
    prompts = torch.randn(len(blocks), PROMPT_TOKENS, cut.hidden_size(whole.config), dtype=whole.dtype)
    prompts.requires_grad_()
    ends: dict[str, torch.Tensor] = {}

    def enter(block: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if block == 0:
            hidden = ends["entering"] = hidden.detach().requires_grad_()
        hidden = torch.cat([hidden[:, :PROMPT_TOKENS] + prompts[block], hidden[:, PROMPT_TOKENS:]], dim=1)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def leave(output: Any) -> None:
        ends["leaving"] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as hooks:
        for index, block in enumerate(blocks):
            entered = block.register_forward_pre_hook(
                lambda _, args, kwargs, index=index: enter(index, args, kwargs), with_kwargs=True
            )
            hooks.callback(entered.remove)
        hooks.callback(blocks[-1].register_forward_hook(lambda _, __, output: leave(output)).remove)
        logits = whole(input_ids=ids, **cut.step_arguments(whole, None, 0, ids)).logits
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, (ends["entering"], prompts, ends["leaving"]))
    return WholePass(
        ends["entering"].detach(), gradients[0], prompts.detach(), gradients[1], ends["leaving"].detach(), gradients[2]
    )


def _chains(checkpoint: TinyCheckpoint) -> Iterator[list[Span]]:
    """Single blocks, each loaded by itself; all in one, which has served a session; and in two at every boundary."""
    blocks = cut.num_blocks(checkpoint.config)
    dtype = checkpoint.whole.dtype
    yield [checkpoint.span(index, index + 1, dtype) for index in range(blocks)]
    together = checkpoint.span(0, blocks, dtype)
    together.step(together.open_session(), torch.zeros(1, TOKENS, together.hidden_size), 0)
    yield [together]
    for at in range(1, blocks):
        yield [together.part(0, at), together.part(at, blocks)]


def _gaps(spans: Sequence[Span], expected: WholePass) -> Iterator[float]:
    """How far what comes out of a chain of spans, and the gradients, are from the whole's, relative to the largest."""
    hidden, gradient = [], []
    of_prompts = torch.zeros_like(expected.prompts)
    chain = [(Training(span), expected.prompts[span.start : span.end]) for span in spans]
    for rows, wanted in zip(
        torch.split(expected.entering, GROUP_ROWS), torch.split(expected.leaving_gradient, GROUP_ROWS), strict=True
    ):
        states = [rows]
        for training, prompts in chain:
            states.append(finish(training.forward(states[-1], prompts)))
        hidden.append(states.pop())
        flowing = wanted
        for training, prompts in reversed(chain):
            found = finish(training.backward(states.pop(), flowing, prompts))
            flowing = found.hidden
            assert found.prompts is not None
            of_prompts[training.span.start : training.span.end] += found.prompts
        gradient.append(flowing)
    yield _gap(torch.cat(hidden), expected.leaving)
    yield _gap(torch.cat(gradient), expected.entering_gradient)
    yield _gap(of_prompts, expected.prompts_gradient)


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    gap = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return math.inf if math.isnan(gap) else gap
