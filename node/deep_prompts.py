"""Prompts of blocks, or their gradients, as messages of the training protocol: both sides send such."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from typing_extensions import Buffer

from swarmnode.protocols.messages import Message, Prompts
from swarmnode.protocols.tensors import DTYPE_BYTES

from .defaults import STEP_BODY_BYTES
from .tensors import tensor_to_bytes

__all__ = ["prompt_messages"]


def prompt_messages(
    prompts: torch.Tensor, first_block: int, dtype: str, codec: int
) -> Iterator[tuple[Message, Buffer]]:
    """Messages that carry `[blocks, tokens, hidden_size]`, as many blocks in each as a body has room for."""
    _, tokens, width = prompts.shape
    blocks = max(1, STEP_BODY_BYTES // (tokens * width * DTYPE_BYTES[dtype]))
    for piece in torch.split(prompts, blocks):
        tensor, body = tensor_to_bytes(piece, dtype, codec)
        yield Prompts(first_block, tensor), body
        first_block += piece.shape[0]
