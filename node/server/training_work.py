"""What the torch thread does of a pass of training: bodies decoded, a group taken on by one block, answers encoded.

Knows no stream and no order of things.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from typing_extensions import Buffer

from swarmnode.errors import OutOfMemory, SwarmnodeError
from swarmnode.models.training import Gradients as Found
from swarmnode.models.training import Training
from swarmnode.node.deep_prompts import prompt_messages
from swarmnode.node.tensors import tensor_from_bytes, tensor_to_bytes
from swarmnode.protocols.messages import Gradients, Message, Rows, TensorHeader, Train
from swarmnode.protocols.tensors import CODEC_LOSSLESS, CODEC_RAW

__all__ = ["Answers", "Coded", "Group", "Pass", "stretch"]

Coded = tuple[TensorHeader, Buffer]
Answers = Sequence[tuple[Message, Buffer]]


@dataclass(slots=True, eq=False)
class Pass:
    """A pass that was let in.

    Attributes:
        group_rows: most rows of a group.
        coded_prompts: as they came, of all blocks in order; decoded with the first group.
        prompts: decoded; and the sum so far of their gradients.
    """

    asked: Train
    training: Training
    group_rows: int
    coded_prompts: list[Coded] = field(default_factory=list)
    prompts: torch.Tensor | None = None
    of_prompts: torch.Tensor | None = None

    @property
    def codec(self) -> int:
        """How answers go: as they are, in whatever form keeps them so."""
        return CODEC_LOSSLESS if CODEC_LOSSLESS in self.asked.codecs else CODEC_RAW


@dataclass(slots=True, eq=False)
class Group:
    """Some rows of a pass.

    Attributes:
        row: the first of them.
        rows, gradients: as they came.
        done: is given what came of it, on the event loop, unless the pass ends before.
        work: what has begun.
    """

    owner: Pass
    row: int
    rows: Coded
    gradients: Coded | None
    done: Callable[[Answers | SwarmnodeError], None]
    work: Generator[None, None, torch.Tensor | Found] | None = None

    @property
    def last(self) -> bool:
        return self.row + self.rows[0].shape[0] == self.owner.asked.rows


def stretch(group: Group) -> Answers | SwarmnodeError | None:
    """Take a group through one block more; the answers to it when it is through, or why it failed."""
    try:
        if group.work is None:
            group.work = _begin(group)
        try:
            next(group.work)
        except StopIteration as through:
            return list(_answers(group, through.value))
        _wait_for(group.owner.training.span.device)
    except SwarmnodeError as error:
        return error
    except torch.OutOfMemoryError:
        rows, tokens, _ = group.rows[0].shape
        return OutOfMemory(
            f"The device has no room to train on {rows} rows of {tokens} tokens.",
            hint="Send shorter rows, or try later.",
        )
    return None


def _wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given: it works that off in order, and sessions are to wait for one stretch."""
    if device.type == "cuda":
        for each in range(torch.cuda.device_count()):
            torch.cuda.synchronize(each)
    elif device.type == "mps":
        torch.mps.synchronize()


def _begin(group: Group) -> Generator[None, None, torch.Tensor | Found]:
    owner = group.owner
    if owner.coded_prompts:
        owner.prompts = torch.cat([tensor_from_bytes(*coded) for coded in owner.coded_prompts])
        owner.coded_prompts = []
    rows = tensor_from_bytes(*group.rows)
    if group.gradients is None:
        return owner.training.forward(rows, owner.prompts)
    return owner.training.backward(rows, tensor_from_bytes(*group.gradients), owner.prompts)


def _answers(group: Group, result: torch.Tensor | Found) -> Iterator[tuple[Message, Buffer]]:
    owner = group.owner
    asked = owner.asked
    if isinstance(result, torch.Tensor):
        tensor, body = tensor_to_bytes(result, asked.dtype, owner.codec)
        yield Rows(group.row, tensor), body
        return
    tensor, body = tensor_to_bytes(result.hidden, asked.dtype, owner.codec)
    yield Gradients(group.row, tensor), body
    if result.prompts is not None:
        owner.of_prompts = result.prompts if owner.of_prompts is None else owner.of_prompts + result.prompts
        if group.last:
            yield from prompt_messages(owner.of_prompts, asked.start, asked.dtype, owner.codec)
