"""A span: some consecutive blocks of a model, hidden states in, hidden states out, one state for each session."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from swarmnode.errors import BadRange, ProtocolViolation, ReplayNeeded

from . import cut
from .cache import SpanCache
from .families import certificate
from .linears import take_linears
from .mix import Mix, mix_of, running
from .packed import Batch, Piece
from .quantised import QuantisedLinear
from .quirks import one_by_one, quirks_of
from .ragged import Ragged, whole_rows
from .slabs import RaggedCache, Rows
from .stand_ins import Doorway, Gate, Pass, Way

__all__ = ["Piece", "RaggedCache", "Rows", "Span", "SpanCache"]

MAX_PARTS = 16
"""Parts of a span that it remembers; the one that was not asked for longest is forgotten."""


class Span:
    """Blocks `start:end` of a model, as built by `build_part`.

    Attributes:
        model: the stock model with everything else taken out.
        start: first block held.
        end: first block not held any more.
        num_blocks: blocks of the whole model.
        hidden_size: width of the hidden state.
        truncatable: sessions may go back to an earlier position (sliding windows still forget what left them).
        weight_bytes: bytes of the blocks' weights and buffers, with those of adapters.
        adapters: keys of the adapters that sessions may choose.
    """

    def __init__(self, model: PreTrainedModel, start: int | None = None, end: int | None = None) -> None:
        part: cut.Part = model.part
        self.model = model
        self._config = cut.text_config(model.config)
        self.start = part.start if start is None else start
        self.end = part.end if end is None else end
        self.num_blocks = cut.num_blocks(model.config)
        self.hidden_size = cut.hidden_size(model.config)
        weight = _first_weight(model)
        self.dtype: torch.dtype = weight.dtype
        self.device: torch.device = weight.device
        self._way = Way()
        self._decoder, blocks = _open_doors(model, self.start, self.end, self._way)
        self.weight_bytes = sum(t.nbytes for block in blocks for t in (*block.parameters(), *block.buffers()))
        self.adapters: frozenset[str] = frozenset(getattr(model, "swarmnode_adapters", ()))
        self._blocks = blocks
        self._held = _cache_layers(blocks, self.start)
        self._ragged = Ragged(self._decoder, self._config, self._held)
        self._parts: dict[tuple[int, int], Span] = {}
        take_linears(blocks)
        self._whole_rows = whole_rows(self._decoder, blocks)
        self._single_steps = quirks_of(model.config.model_type).single_steps
        self.truncatable = self.open_cache().truncatable

    def part(self, start: int, end: int) -> Span:
        """The blocks `start:end` of these, on the same weights; the same object again while it is remembered.

        Sessions share passes only on one object, so it pays to ask for a range again rather than to build it anew.

        Raises:
            BadRange: these are not all held here.
        """
        if not self.start <= start < end <= self.end:
            raise BadRange(
                f"Blocks {start}:{end} are not among the blocks {self.start}:{self.end} held here.",
                hint=f"Name a range within {self.start}:{self.end}; the end is not included.",
            )
        if (start, end) == (self.start, self.end):
            return self
        part = self._parts.pop((start, end), None) or Span(self.model, start, end)
        self._parts[start, end] = part
        if len(self._parts) > MAX_PARTS:
            del self._parts[next(iter(self._parts))]
        return part

    @property
    def ragged(self) -> bool:
        """Whether one pass serves many sessions. Otherwise they run one after another, each through a stock cache."""
        return self.why_not_ragged == ""

    @cached_property
    def why_not_ragged(self) -> str:
        """Why each session needs a pass of its own, a sentence; empty when it does not. The first look runs a token."""
        entry = certificate(self.model.config.model_type)
        if not entry.ragged:
            return entry.why_not_ragged or entry.reason
        return one_by_one(self.model.config) or self._ragged.why_not(self._probe)

    def open_cache(self) -> SpanCache:
        """A new session's state as a stock cache, empty: for `step`, of any family."""
        return SpanCache(self._config, self._held)

    def open_ragged_cache(self) -> RaggedCache:
        """A new session's state for passes that it shares with others, empty. Only where `ragged`."""
        return self._ragged.open_cache()

    def open_session(self, adapter: str | None = None) -> SpanCache | RaggedCache:
        """A new session's state, empty, of the kind that serves most sessions: for `run` and `step`.

        Args:
            adapter: the key of the adapter to run it with.
        """
        if adapter is not None and adapter not in self.adapters:
            raise ValueError(f"these blocks have no adapter {adapter}")
        cache = self.open_ragged_cache() if self.ragged else self.open_cache()
        cache.adapter = adapter
        return cache

    @cached_property
    def token_bytes(self) -> int:
        """Bytes that a token adds to a session's state, for one row, while no sliding window is full."""
        if self.ragged:
            return sum(token.token_bytes for token in self._ragged.tokens)
        return self._stock_bytes(2) - self._stock_bytes(1)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the state of a session from `open_session` after `tokens` tokens in one row, at most.

        Without windows and recurrent states it is exact, whatever steps the tokens came in.
        """
        if self.ragged:
            return sum(token.cache_bytes(tokens) for token in self._ragged.tokens)
        return self._stock_bytes(1) + (tokens - 1) * self.token_bytes if tokens else 0

    @torch.inference_mode()
    def step(self, cache: SpanCache | RaggedCache, hidden: torch.Tensor, position: int) -> torch.Tensor:
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
        return self.run([Piece(cache, hidden, position)])[0]

    @torch.inference_mode()
    def run(
        self,
        pieces: Sequence[Piece],
        *,
        deterministic: bool = False,
        between: Callable[[], object] | None = None,
    ) -> list[torch.Tensor]:
        """Run the blocks on the next tokens of several sessions, in one pass where they have ragged caches.

        A session's steps come out the same bit for bit whoever shares the pass and in whatever order, on one CPU. When
        `deterministic` is false, a piece that has a pass for itself is not filled up with rows that nobody needs; where
        some weights are not in linear layers that our kernel takes, it may come out in other last bits then. So may,
        with quantised weights, any piece of a long pass.

        Args:
            between: called before each block. It may run other sessions on the same blocks: no bits depend on that.

        Returns:
            For each piece the hidden state after block `end - 1`, shape of its `hidden`, in the span's dtype on the
            span's device.

        Raises:
            ReplayNeeded, ProtocolViolation: as `check`, of any piece, before anything has changed.
        """
        if len({id(piece.cache) for piece in pieces}) < len(pieces):
            raise ValueError("a session can have one piece in a pass")
        for piece in pieces:
            self.check(piece)
        packed = [piece for piece in pieces if isinstance(piece.cache, RaggedCache)]
        together = self._run_packed(packed, deterministic, between) if packed else []
        outs = dict(zip(map(id, packed), together, strict=True))
        return [outs[id(piece)] if id(piece) in outs else self._run_alone(piece, between) for piece in pieces]

    def weights(self) -> Iterator[nn.Parameter]:
        """The parameters of the blocks."""
        return (weight for block in self._blocks for weight in block.parameters())

    def without_cache(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the blocks on whole rows without adapters, remembering nothing, in the caller's own gradient mode.

        Args:
            hidden: `[rows, tokens, hidden_size]`, in the span's dtype on the span's device.

        Returns:
            The hidden state after block `end - 1`, shape of `hidden`.
        """
        with running(None):  # it may come between two blocks of a pass that others' adapters take part in
            return self._through(hidden, cut.step_arguments(self._decoder, None, 0, hidden), None)

    def check(self, piece: Piece) -> None:
        """Refuse what cannot be run.

        Raises:
            ReplayNeeded: the state cannot go back to `position`. Position 0 always can.
            ProtocolViolation: `position` is beyond the tokens seen, or `hidden` has another shape.
        """
        span = (self.start, self.end)
        cache, hidden, position = piece.cache, piece.hidden, piece.position
        if hidden.ndim != 3 or hidden.shape[2] != self.hidden_size or 0 in hidden.shape:
            raise ProtocolViolation(
                f"A step for blocks {self.start}:{self.end} has shape {list(hidden.shape)}, "
                f"not [rows, tokens, {self.hidden_size}].",
                span=span,
            )
        if sum(piece.steps) != hidden.shape[1] or min(piece.steps) < 1:
            raise ProtocolViolation(
                f"Steps of {', '.join(map(str, piece.steps))} tokens do not make up the {hidden.shape[1]} that came.",
                span=span,
            )
        if position < 0 or position > cache.position:
            raise ProtocolViolation(
                f"A step came for position {position}, but blocks {self.start}:{self.end} "
                f"have seen {cache.position} tokens.",
                hint="Send the tokens in between first.",
                span=span,
            )
        if position and cache.rows != hidden.shape[0]:
            raise ProtocolViolation(f"A step of {hidden.shape[0]} rows came to a session of {cache.rows}.", span=span)
        if not cache.can_truncate(position):
            raise ReplayNeeded(
                f"Blocks {self.start}:{self.end} cannot go back from position {cache.position} to {position}.",
                hint="Send the session again from position 0.",
                span=span,
            )

    def _run_packed(
        self, pieces: Sequence[Piece], deterministic: bool, between: Callable[[], object] | None
    ) -> list[torch.Tensor]:
        for piece in pieces:
            _go_to(piece)
        hidden = [self._here(piece.hidden).flatten(0, 1) for piece in pieces]
        sizes = [rows.shape[0] for rows in hidden]
        whole = deterministic or len(pieces) > 1
        batch = Batch(pieces, self._whole_rows if whole else None, self._ragged.attention)
        packed = torch.cat([*hidden, *[hidden[-1][-1:]] * batch.padding]).unsqueeze(0)
        mix = mix_of(pieces, batch.padding)
        about_pass = self._ragged.packed(batch, self.device, whole_experts=whole)
        with running(mix), about_pass as about:
            out = self._through(packed, about, between)
        for piece in pieces:
            piece.cache.position += piece.hidden.shape[1]
        apart = torch.split(out[0, : sum(sizes)], sizes)
        return [rows.view_as(piece.hidden) for rows, piece in zip(apart, pieces, strict=True)]

    def _run_alone(self, piece: Piece, between: Callable[[], object] | None) -> torch.Tensor:
        cache = cast(SpanCache, piece.cache)
        _go_to(piece)
        cache.spoiled = True  # until the step is through: half a step must not be built upon
        with running(Mix(whole=cache.adapter) if cache.adapter is not None else None):
            out = [
                self._run_stock(cache, one, between)
                for step in torch.split(self._here(piece.hidden), [*piece.steps], dim=1)
                for one in torch.split(step, 1 if self._single_steps and cache.position else step.shape[1], dim=1)
            ]
        cache.spoiled = False
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)

    def _run_stock(self, cache: SpanCache, hidden: torch.Tensor, between: Callable[[], object] | None) -> torch.Tensor:
        about = cut.step_arguments(self._decoder, cache.ready(), cache.position, hidden)
        out = self._through(hidden, about, between)
        cache.position += hidden.shape[1]
        return out

    def _through(
        self, hidden: torch.Tensor, about: dict[str, Any], between: Callable[[], object] | None
    ) -> torch.Tensor:
        this = Pass(hidden, between)
        with self._way.taken(this):
            # What the stock code makes of the zeros before the first held block is replaced in the doorway.
            self._decoder(inputs_embeds=torch.zeros_like(hidden), **about)
        return _hidden_state(this.outgoing).contiguous()

    def _here(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.to(device=self.device, dtype=self.dtype)

    def try_out(self) -> None:
        """Run a token of noise. Raises whatever the family's code raises."""
        self._probe(self.open_session())

    def _probe(self, cache: SpanCache | RaggedCache, tokens: int = 1) -> None:
        """Run noise, to learn what a state takes."""
        noise = torch.ones(1, tokens, self.hidden_size, device=self.device)
        self.run([Piece(cache, noise, 0)])

    def _stock_bytes(self, tokens: int) -> int:
        cache = self.open_cache()
        self._probe(cache, tokens)
        return cache.memory_bytes


def _go_to(piece: Piece) -> None:
    piece.cache.truncate(piece.position)
    piece.cache.rows = piece.hidden.shape[0]


def _open_doors(model: PreTrainedModel, start: int, end: int, way: Way) -> tuple[nn.Module, list[nn.Module]]:
    """The decoder to call, whose passes are on `way`, and the blocks `start:end`.

    The modules on the way from the decoder to its blocks are shallow copies, so that spans can share the weights.
    """
    layout: cut.Layout = model.swarmnode_layout
    all_blocks = list(cast(nn.ModuleList, model.get_submodule(layout.blocks)))
    blocks = all_blocks[start:end]
    returns = quirks_of(model.config.model_type).block_returns
    row: list[nn.Module] = [Gate(block, returns) for block in all_blocks]
    row[start:end] = [Doorway(block, way) for block in blocks]
    inner: nn.Module = nn.ModuleList(row)
    path = layout.blocks
    while path != layout.decoder:
        path, _, name = path.rpartition(".")
        owner = copy.copy(model.get_submodule(path))
        owner._modules = {**owner._modules, name: inner}
        inner = owner
    return inner, blocks


def _cache_layers(blocks: list[nn.Module], start: int) -> frozenset[int]:
    """Which layers of the stock cache the blocks write: those they name, else the one of their own index."""
    held: set[int] = set()
    for index, block in enumerate(blocks, start):
        named = (getattr(module, "layer_idx", None) for module in block.modules())
        held |= {layer for layer in named if isinstance(layer, int)} or {index}
    return frozenset(held)


def _first_weight(model: PreTrainedModel) -> torch.Tensor:
    """The first tensor whose type and place are those of hidden states: not one that only holds codes."""
    for module in model.modules():
        held = (module.scale,) if isinstance(module, QuantisedLinear) else module.parameters(recurse=False)
        for weight in held:
            if weight.is_floating_point() and weight.itemsize > 1:
                return weight
    raise TypeError("a part has no weights")


def _hidden_state(output: object) -> torch.Tensor:
    """The hidden state of what a block returned."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(first, torch.Tensor):
        raise TypeError(f"a block returned {type(output).__name__}, not a hidden state")
    return first
