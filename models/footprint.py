"""What the blocks of a model take of a device's memory: weights, caches, and the largest step. Loads nothing.

A model of the real sizes is built and run without memory (`peak.py`), so every family's own code says what it takes.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .cut import quiet_transformers, sketch_blocks, text_config
from .peak import without_memory
from .quantised import Scheme
from .quirks import quirks_of
from .slabs import capacity
from .span import RaggedCache, Span, SpanCache

__all__ = ["Footprint", "block_kind", "footprint"]

UNTRACED_STEP_WIDTHS = 64
"""Where a family's code cannot be run without numbers: a step is taken to hold so many hidden states at its peak."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What blocks take, in bytes.

    Attributes:
        weights: of each block, with its buffers.
        stored: of each block, what it is read as before it is quantised; else the same.
        token: of each block, what its cache takes for one token of a session.
        session: of each block, what a session takes there beyond that, however short it is.
        step: the most that the largest step takes besides, of any block, in a session that begins with it.
        reach: what it takes more for each token that the session holds before.
    """

    weights: tuple[int, ...]
    stored: tuple[int, ...]
    token: tuple[int, ...]
    session: tuple[int, ...]
    step: int
    reach: float

    @property
    def num_blocks(self) -> int:
        return len(self.weights)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What one block takes; `far` is its largest step behind all other tokens of the longest session."""

    token: int
    session: int
    step: int
    far: int


def footprint(
    config: PretrainedConfig,
    dtype: torch.dtype,
    *,
    step_tokens: int,
    session_tokens: int,
    quant: Scheme | None = None,
    device_type: str = "cpu",
) -> Footprint:
    """What each block of a model takes in `dtype`.

    Args:
        config: of the whole model.
        step_tokens: the most tokens of one step.
        session_tokens: the most tokens that a session holds.
        quant: in what the weights of linear layers will be kept.
        device_type: where it will run: `cpu`, `cuda`, `mps`.
    """
    model = sketch_blocks(config, dtype, quant)
    blocks = _blocks(model)
    before = _full_slab(max(1, session_tokens - step_tokens))
    found: dict[Hashable, _Taken] = {}
    kinds = [block_kind(model, index, block) for index, block in enumerate(blocks)]
    with quiet_transformers():
        for index, kind in enumerate(kinds):
            if kind not in found:
                found[kind] = _run(Span(model, index, index + 1), step_tokens, before, device_type)
    step = max(taken.step for taken in found.values())
    weights = tuple(map(_bytes, blocks))
    return Footprint(
        weights=weights,
        stored=weights if quant is None else tuple(map(_bytes, _blocks(sketch_blocks(config, dtype)))),
        token=tuple(found[kind].token for kind in kinds),
        session=tuple(found[kind].session for kind in kinds),
        step=step,
        reach=max(0, max(taken.far for taken in found.values()) - step) / before,
    )


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    return list(cast(nn.ModuleList, model.get_submodule(model.swarmnode_layout.blocks)))


def _bytes(block: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers()))


def block_kind(model: PreTrainedModel, index: int, block: nn.Module) -> Hashable:
    """Blocks of one kind take the same."""
    config = text_config(model.config)
    named = [getattr(config, field, None) for field in ("layer_types", "layers_block_type")]
    weights = (*block.named_parameters(), *block.named_buffers())
    shapes = tuple((name, tuple(each.shape), each.dtype) for name, each in weights)
    return type(block), *(kinds[index] if kinds else None for kinds in named), shapes


def _run(span: Span, step_tokens: int, before: int, device_type: str) -> _Taken:
    """Run one block without memory: for what a token takes, a first step, and one behind `before` other tokens."""

    def step(cache: SpanCache | RaggedCache, tokens: int, position: int) -> None:
        hidden = torch.empty(1, tokens, span.hidden_size, dtype=span.dtype, device="meta")
        span.step(cache, hidden, position)

    try:
        with without_memory(device_type) as ledger:
            token = span.token_bytes
            session = 0 if span.ragged else span.cache_bytes(1) - token
            first, long = span.open_session(), span.open_session()
            peak = far = ledger.peak_bytes(lambda: step(first, step_tokens, 0))
            if not quirks_of(span.model.config.model_type).single_steps:
                step(long, before, 0)
                far = ledger.peak_bytes(lambda: step(long, step_tokens, before))
    except (NotImplementedError, RuntimeError):  # its code branches on numbers, and here are none
        width = span.hidden_size * span.dtype.itemsize
        return _Taken(2 * width, 0, *2 * (UNTRACED_STEP_WIDTHS * step_tokens * width,))
    return _Taken(token, session, peak, far)


def _full_slab(tokens: int) -> int:
    """The most tokens, up to so many, behind which the next one makes a session's slab grow: a copy that counts."""
    full = capacity(1)
    while capacity(full + 1) <= tokens:
        full = capacity(full + 1)
    return min(full, tokens)
