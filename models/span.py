"""A span: some consecutive blocks of a model, hidden states in, hidden states out, one cache for each session."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from swarmnode.errors import BadRange, ProtocolViolation, ReplayNeeded

from . import cut
from .cache import SpanCache
from .quirks import quirks_of
from .stand_ins import Doorway, Gate

__all__ = ["Span", "SpanCache"]


class Span:
    """Blocks `start:end` of a model, as built by `build_part`.

    Attributes:
        model: the stock model with everything else taken out.
        start: first block held.
        end: first block not held any more.
        num_blocks: blocks of the whole model.
        hidden_size: width of the hidden state.
        truncatable: sessions may go back to an earlier position (sliding windows still forget what left them).
        weight_bytes: bytes of the blocks' weights and buffers.
    """

    def __init__(self, model: PreTrainedModel, start: int | None = None, end: int | None = None) -> None:
        part: cut.Part = model.part
        self.model = model
        self._config = cut.text_config(model.config)
        self.start = part.start if start is None else start
        self.end = part.end if end is None else end
        self.num_blocks = cut.num_blocks(model.config)
        self.hidden_size = cut.hidden_size(model.config)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._decoder, blocks, self._first, self._last = _open_doors(model, self.start, self.end)
        self.weight_bytes = sum(t.nbytes for block in blocks for t in (*block.parameters(), *block.buffers()))
        self._held = _cache_layers(blocks, self.start)
        self._single_steps = quirks_of(model.config.model_type).single_steps
        self.truncatable = self.open_cache().truncatable

    def part(self, start: int, end: int) -> Span:
        """The blocks `start:end` of these, on the same weights, with caches of their own. Raises BadRange."""
        if not self.start <= start < end <= self.end:
            raise BadRange(
                f"Blocks {start}:{end} are not among the blocks {self.start}:{self.end} held here.",
                hint=f"Name a range within {self.start}:{self.end}; the end is not included.",
            )
        return Span(self.model, start, end)

    def open_cache(self) -> SpanCache:
        """A new session's state, empty."""
        return SpanCache(self._config, self._held)

    @torch.inference_mode()
    def step(self, cache: SpanCache, hidden: torch.Tensor, position: int) -> torch.Tensor:
        """Run the blocks on a session's next tokens.

        Args:
            cache: the session's state; grows by `tokens`.
            hidden: `[rows, tokens, hidden_size]`, any device and float dtype.
            position: place of the first token in the session; behind `cache.position` it truncates.

        Returns:
            The hidden state after block `end - 1`, shape of `hidden`, in the span's dtype on the span's device.

        Raises:
            ReplayNeeded: the state cannot go back to `position`. Position 0 always can.
            ProtocolViolation: `position` is beyond the tokens seen, or `hidden` has another shape.
        """
        self._check(cache, hidden, position)
        cache.truncate(position)
        cache.spoiled = True  # until the step is through: half a step must not be built upon
        hidden = hidden.to(device=self.device, dtype=self.dtype)
        tokens = 1 if self._single_steps and position else hidden.shape[1]
        out = [self._run(cache, piece) for piece in torch.split(hidden, tokens, dim=1)]
        cache.spoiled = False
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)

    def _run(self, cache: SpanCache, hidden: torch.Tensor) -> torch.Tensor:
        about = cut.step_arguments(self._decoder, cache.ready(), cache.position, hidden)
        self._first.incoming = hidden
        try:
            # What the stock code makes of the zeros before the first held block is replaced in the doorway.
            self._decoder(inputs_embeds=torch.zeros_like(hidden), **about)
            cache.position += hidden.shape[1]
            return _hidden_state(self._last.outgoing).contiguous()
        finally:
            self._first.incoming = None
            self._first.outgoing = self._last.outgoing = None

    def _check(self, cache: SpanCache, hidden: torch.Tensor, position: int) -> None:
        span = (self.start, self.end)
        if hidden.ndim != 3 or hidden.shape[2] != self.hidden_size or 0 in hidden.shape:
            raise ProtocolViolation(
                f"A step for blocks {self.start}:{self.end} has shape {list(hidden.shape)}, "
                f"not [rows, tokens, {self.hidden_size}].",
                span=span,
            )
        if position < 0 or position > cache.position:
            raise ProtocolViolation(
                f"A step came for position {position}, but blocks {self.start}:{self.end} "
                f"have seen {cache.position} tokens.",
                hint="Send the tokens in between first.",
                span=span,
            )
        if not cache.can_truncate(position):
            raise ReplayNeeded(
                f"Blocks {self.start}:{self.end} cannot go back from position {cache.position} to {position}.",
                hint="Send the session again from position 0.",
                span=span,
            )


def _open_doors(model: PreTrainedModel, start: int, end: int) -> tuple[nn.Module, list[nn.Module], Doorway, Doorway]:
    """The decoder to call, the blocks `start:end`, and where hidden states go in and come out.

    The modules on the way from the decoder to its blocks are shallow copies, so that spans can share the weights.
    """
    layout: cut.Layout = model.swarmnode_layout
    all_blocks = list(cast(nn.ModuleList, model.get_submodule(layout.blocks)))
    blocks = all_blocks[start:end]
    first = Doorway(blocks[0])
    last = first if len(blocks) == 1 else Doorway(blocks[-1])
    returns = quirks_of(model.config.model_type).block_returns
    row: list[nn.Module] = [Gate(block, returns) for block in all_blocks]
    row[start:end] = [first, *blocks[1:-1], last][: len(blocks)]
    inner: nn.Module = nn.ModuleList(row)
    path = layout.blocks
    while path != layout.decoder:
        path, _, name = path.rpartition(".")
        owner = copy.copy(model.get_submodule(path))
        owner._modules = {**owner._modules, name: inner}
        inner = owner
    return inner, blocks, first, last


def _cache_layers(blocks: list[nn.Module], start: int) -> frozenset[int]:
    """Which layers of the stock cache the blocks write: those they name, else the one of their own index."""
    held: set[int] = set()
    for index, block in enumerate(blocks, start):
        named = (getattr(module, "layer_idx", None) for module in block.modules())
        held |= {layer for layer in named if isinstance(layer, int)} or {index}
    return frozenset(held)


def _hidden_state(output: object) -> torch.Tensor:
    """The hidden state of what a block returned."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(first, torch.Tensor):
        raise TypeError(f"a block returned {type(output).__name__}, not a hidden state")
    return first
