"""A span: some consecutive blocks of a model, hidden states in, hidden states out, one cache for each session."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from swarmnode.errors import ProtocolViolation, ReplayNeeded

from . import cut
from .cache import SpanCache
from .families import certificate

__all__ = ["Span", "SpanCache"]


class Span:
    """Blocks `start:end` of a model, as built by `build_part`.

    Attributes:
        start: first block held.
        end: first block not held any more.
        num_blocks: blocks of the whole model.
        hidden_size: width of the hidden state.
        truncatable: sessions may go back to an earlier position (sliding windows still forget what left them).
        weight_bytes: bytes of all weights and buffers held.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._config = cut.text_config(model.config)
        part: cut.Part = model.part
        self.start, self.end = part.start, part.end
        self.num_blocks = cut.num_blocks(model.config)
        self.hidden_size = cut.hidden_size(model.config)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.weight_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        layout: cut.Layout = model.swarmnode_layout
        self._decoder = model.get_submodule(layout.decoder)
        self._held = _cache_layers(model.get_submodule(layout.blocks)[self.start : self.end])
        self._incoming: torch.Tensor | None = None
        self._outgoing: Any = None
        blocks = model.get_submodule(layout.blocks)
        blocks[self.start].register_forward_pre_hook(self._enter, with_kwargs=True)
        blocks[self.end - 1].register_forward_hook(self._leave)

    @property
    def truncatable(self) -> bool:
        """Whether sessions may go back to an earlier position without being sent again."""
        return certificate(self._model.config.model_type).truncatable

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
        out = self._run(cache, hidden.to(device=self.device, dtype=self.dtype), position)
        cache.position = position + hidden.shape[1]
        cache.spoiled = False
        return out

    def _run(self, cache: SpanCache, hidden: torch.Tensor, position: int) -> torch.Tensor:
        forward = self._decoder.forward
        rows, tokens = hidden.shape[:2]
        about = cut.step_arguments(forward, position, rows, tokens, cache.ready(), self.device)
        self._incoming = hidden
        try:
            self._decoder(inputs_embeds=hidden, **about)
            return _first(self._outgoing).contiguous()
        finally:
            self._incoming = self._outgoing = None

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the first block: whatever the stock code did to the hidden state on its way here does not count."""
        if args:
            return (self._incoming, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._incoming}

    def _leave(self, _: nn.Module, __: object, output: object) -> None:
        self._outgoing = output

    def _check(self, cache: SpanCache, hidden: torch.Tensor, position: int) -> None:
        span = (self.start, self.end)
        if hidden.ndim != 3 or hidden.shape[2] != self.hidden_size or 0 in hidden.shape:
            raise ProtocolViolation(
                f"A step for blocks {self.start}:{self.end} has shape {list(hidden.shape)}, not [rows, tokens, {self.hidden_size}].",
                span=span,
            )
        if position < 0 or position > cache.position:
            raise ProtocolViolation(
                f"A step came for position {position}, but blocks {self.start}:{self.end} have seen {cache.position} tokens.",
                hint="Send the tokens in between first.",
                span=span,
            )
        if not cache.can_truncate(position):
            raise ReplayNeeded(
                f"Blocks {self.start}:{self.end} cannot go back from position {cache.position} to {position}.",
                hint="Send the session again from position 0.",
                span=span,
            )


def _cache_layers(blocks: nn.ModuleList) -> frozenset[int]:
    """Which layers of the stock cache the blocks write: a block may have several, or none."""
    indices = (getattr(module, "layer_idx", None) for block in blocks for module in block.modules())
    return frozenset(index for index in indices if isinstance(index, int))


def _first(output: object) -> torch.Tensor:
    """The hidden state of what a block returned."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(first, torch.Tensor):
        raise TypeError(f"a block returned {type(output).__name__}, not a hidden state")
    return first
