"""Training through a span: whole rows forward without a cache, and gradients back through the frozen blocks.

Of a pass only what entered each block is kept; what happened inside is computed again on the way back, one block at a
time. So memory is what enters the blocks, and the inside of one. Work is cut into *groups* of rows, which know nothing
of each other, and each group into blocks: between two of them a caller may do something else. Knows no network.

Deep prompts (Liu et al., "P-Tuning v2", 2022, as Petals serves them): a prompt `[tokens, hidden]` of each block is
added to the hidden states that enter it, at the first positions of every row. Whoever wants the prompts to stand for
tokens of their own puts rows of zeros there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from swarmnode.errors import ProtocolViolation

from .families import require_trainable
from .span import Span

__all__ = ["Gradients", "Training", "backward", "finish", "forward", "open_training"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of a loss, with regard to what went into a pass.

    Attributes:
        hidden: shape of the input, in the span's dtype on its device.
        prompts: shape of the prompts, summed over the rows in float32 at least; None when there were none.
    """

    hidden: torch.Tensor
    prompts: torch.Tensor | None


class Training:
    """The blocks of a span, to be trained through. Their weights stay as they are. Made by `open_training`."""

    def __init__(self, span: Span, blocks: Sequence[Span] | None = None) -> None:
        self.span = span
        self._blocks = blocks or [Span(span.model, block, block + 1) for block in range(span.start, span.end)]

    def part(self, start: int, end: int) -> Training:
        """The blocks `start:end` of these. Raises `BadRange`."""
        part = self.span.part(start, end)
        return Training(part, self._blocks[start - self.span.start : end - self.span.start])

    def forward(self, hidden: torch.Tensor, prompts: torch.Tensor | None) -> Generator[None, None, torch.Tensor]:
        """Run one group of rows, pausing between blocks. Arguments, errors and result as the function `forward`."""
        self.check(hidden, prompts)
        hidden = self._here(hidden)
        for block in range(len(self._blocks)):
            if block:
                yield
            with torch.no_grad(), _frozen(self._blocks[block]):
                hidden = self._blocks[block].without_cache(_entering(hidden, prompts, block))
        return hidden

    def backward(
        self, hidden: torch.Tensor, gradient: torch.Tensor, prompts: torch.Tensor | None
    ) -> Generator[None, None, Gradients]:
        """Differentiate one group of rows, pausing between blocks. As the function `backward`."""
        self.check(hidden, prompts, gradient)
        hidden, gradient = self._here(hidden), self._here(gradient)
        kept: list[torch.Tensor] = []
        for block, span in enumerate(self._blocks):
            kept.append(_entering(hidden, prompts, block))
            if block + 1 < len(self._blocks):
                with torch.no_grad(), _frozen(span):
                    hidden = span.without_cache(kept[-1])
                yield
        del hidden
        of_prompts: list[torch.Tensor] = []
        for span in reversed(self._blocks):
            gradient = _through(span, kept.pop(), gradient)
            if prompts is not None:
                first = gradient[:, : prompts.shape[1]]
                summed = first.sum(0, dtype=torch.promote_types(first.dtype, torch.float32))
                of_prompts.append(summed.to(self.span.device))
            if kept:
                yield
        return Gradients(gradient, torch.stack(of_prompts[::-1]) if of_prompts else None)

    def check(self, hidden: torch.Tensor, prompts: torch.Tensor | None, gradient: torch.Tensor | None = None) -> None:
        """Refuse what cannot be run. Raises `ProtocolViolation`."""
        width = self.span.hidden_size
        if hidden.ndim != 3 or hidden.shape[2] != width or 0 in hidden.shape:
            raise self._violation(f"Rows have shape {list(hidden.shape)}, not [rows, tokens, {width}]")
        if gradient is not None and gradient.shape != hidden.shape:
            raise self._violation(f"A gradient of shape {list(gradient.shape)} came to rows of {list(hidden.shape)}")
        if prompts is None:
            return
        blocks = len(self._blocks)
        if prompts.ndim != 3 or prompts.shape[0] != blocks or prompts.shape[2] != width or 0 in prompts.shape:
            raise self._violation(f"Prompts have shape {list(prompts.shape)}, not [{blocks}, tokens, {width}]")
        if prompts.shape[1] > hidden.shape[1]:
            raise self._violation(f"Prompts of {prompts.shape[1]} tokens came to rows of {hidden.shape[1]}")

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        """In the span's dtype on its device, and such as autograd takes."""
        with torch.inference_mode(False):
            here = tensor.detach().to(device=self.span.device, dtype=self.span.dtype)
            return here.clone() if here.is_inference() else here

    def _violation(self, what: str) -> ProtocolViolation:
        span = self.span.start, self.span.end
        return ProtocolViolation(f"{what}, to train through blocks {span[0]}:{span[1]}.", span=span)


def open_training(span: Span) -> Training:
    """Raises `FamilyNotCertified` unless gradients through blocks of the family were shown to be right."""
    require_trainable(span.model.config)
    return Training(span)


def forward(
    span: Span, hidden: torch.Tensor, prompts: torch.Tensor | None = None, *, group_rows: int | None = None
) -> torch.Tensor:
    """Run the blocks on whole rows without a cache, causally, as the stock model does.

    Args:
        hidden: `[rows, tokens, hidden_size]`, any device and float dtype.
        prompts: `[blocks of the span, prompt tokens, hidden_size]`, added to what enters each block at the first
            positions of every row.
        group_rows: most rows to run at once; None is all of them.

    Returns:
        The hidden state after the last block, shape of `hidden`, in the span's dtype on the span's device.

    Raises:
        FamilyNotCertified: as `open_training`.
        ProtocolViolation: a shape that does not fit.
    """
    training = open_training(span)
    groups = [finish(training.forward(group, prompts)) for group in _groups(hidden, group_rows)]
    return torch.cat(groups)


def backward(
    span: Span,
    hidden: torch.Tensor,
    gradient: torch.Tensor,
    prompts: torch.Tensor | None = None,
    *,
    group_rows: int | None = None,
) -> Gradients:
    """The gradients of a loss with regard to what went into `forward`, by what they are for what came out.

    The same arguments give the same bits, on one machine with one number of threads.

    Args:
        hidden, prompts: as they were given to `forward`.
        gradient: of the loss with regard to what `forward` returned; same shape.
        group_rows: as for `forward`.

    Raises:
        FamilyNotCertified, ProtocolViolation: as `forward`.
    """
    training = open_training(span)
    training.check(hidden, prompts, gradient)
    found = [
        finish(training.backward(rows, wanted, prompts))
        for rows, wanted in zip(_groups(hidden, group_rows), _groups(gradient, group_rows), strict=True)
    ]
    of_prompts = [each.prompts for each in found if each.prompts is not None]
    return Gradients(
        torch.cat([each.hidden for each in found]), sum(of_prompts[1:], of_prompts[0]) if of_prompts else None
    )


def finish(work: Generator[None, None, T]) -> T:
    """What comes of work that pauses, without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result


def _through(span: Span, entering: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Compute a block again and go back through it."""
    with torch.inference_mode(False), torch.enable_grad(), _frozen(span):
        entering.requires_grad_()
        leaving = span.without_cache(entering)
        return torch.autograd.grad(leaving, entering, gradient.to(leaving.device))[0]


def _entering(hidden: torch.Tensor, prompts: torch.Tensor | None, block: int) -> torch.Tensor:
    """What a block sees: not `hidden` itself, which its caller may keep."""
    with torch.inference_mode(False), torch.no_grad():
        entering = hidden.clone()
        if prompts is not None:
            entering[:, : prompts.shape[1]] += prompts[block].to(device=hidden.device, dtype=hidden.dtype)
        return entering


@contextmanager
def _frozen(span: Span) -> Iterator[None]:
    """Meanwhile no weight wants a gradient, so that autograd keeps nothing for it; afterwards all is as it was.

    `torch.matmul` picks its kernel by that flag, so the way there is computed under it, too.
    """
    wanting = [weight for weight in span.weights() if weight.requires_grad]
    for weight in wanting:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanting:
            weight.requires_grad_()


def _groups(rows: torch.Tensor, group_rows: int | None) -> tuple[torch.Tensor, ...]:
    return torch.split(rows, group_rows or max(1, len(rows)))
