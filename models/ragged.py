"""One pass of stock modules for the next tokens of many sessions: what to tell the decoder, and for how many rows.

The tokens are packed into one row of `[1, tokens, hidden]`. What mixes tokens in a stock block is its attention, and
that goes through transformers' attention interface, where `packed.py` takes each session apart. All else in a block
works on rows, and a row's bits do not depend on its neighbours in linear layers of ours (`linears.py`), and in other
code as long as there is a multiple of `whole_rows` of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from .experts import EXPERTS, ROWS
from .layout import argument_names
from .linears import LOW_RANK, PackedLinear
from .packed import NAME, Batch, NotRagged, Passage
from .quantised import QuantisedLinear
from .slabs import RaggedCache, TokenShape

__all__ = ["Ragged", "whole_rows"]

STRIDE_BYTES = 128
"""What an elementwise function takes at a time with AVX-512: two registers. With less, it is a part of that."""


def whole_rows(decoder: nn.Module, blocks: Iterable[nn.Module]) -> int:
    """Of how many rows a pass must be a multiple, so that no row's bits depend on how many there are.

    Products with weights in torch's own kernels want `ROWS`. Elementwise functions take `STRIDE_BYTES` at a time and
    the rest singly, in other arithmetic; so rows times width must be a multiple of that for the narrowest values, as
    wide as some weight is or as the decoder's frequencies are, which are single.
    """
    widths: list[int] = []
    strides = [1]
    rows = 1
    for path, module in (named for block in blocks for named in block.named_modules()):
        if not LOW_RANK.isdisjoint(path.split(".")):
            continue  # their product is linear from end to end
        if isinstance(module, QuantisedLinear):
            rows = ROWS
            widths += module.out_features, module.in_features
            strides.append(STRIDE_BYTES // module.scale.element_size())
        for weight in module.parameters(recurse=False):
            if weight.ndim > 1:
                rows = rows if isinstance(module, PackedLinear) else ROWS
                widths += weight.shape
                strides.append(STRIDE_BYTES // weight.element_size())
    wanted = [(max(strides), width) for width in widths]
    frequencies = (each for name, each in decoder.named_buffers() if name.endswith("inv_freq"))
    wanted += [(STRIDE_BYTES // each.element_size(), each.shape[-1]) for each in frequencies]
    return max([rows, *(stride // math.gcd(stride, width) for stride, width in wanted)])


class Ragged:
    """Lets a decoder, in which held blocks stand among gates, run packed pieces.

    Args:
        decoder: the stock module that will be called.
        config: the decoder's own config.
        held: the layers of the stock cache that the held blocks write.

    Attributes:
        attention: the attention implementation of the stock model.
        tokens: what a token takes in each held block's slabs, once `why_not` was asked.
    """

    def __init__(self, decoder: nn.Module, config: PretrainedConfig, held: frozenset[int]) -> None:
        self.tokens: list[TokenShape] = []
        self._passage = Passage(config, held)
        # A multimodal model may only hand them on.
        self._takes_positions = not {"position_ids", "kwargs"}.isdisjoint(argument_names(decoder))
        self._configs = [(config, config._experts_implementation_internal) for config in _configs(decoder)]
        self.attention = str(config._attn_implementation)
        self._held = held
        self._windows = {layer: getattr(self._passage.layers[layer], "sliding_window", None) for layer in sorted(held)}

    def open_cache(self) -> RaggedCache:
        """A new session's state, empty."""
        return RaggedCache(self._windows)

    def why_not(self, run: Callable[[RaggedCache], None]) -> str:
        """What the stock code does that a shared pass cannot serve, found by running some tokens; empty if nothing."""
        cache = self.open_cache()
        try:
            run(cache)
        except NotRagged as reason:
            return str(reason)
        self.tokens = cache.tokens
        return ""

    @contextmanager
    def packed(self, batch: Batch, device: torch.device, *, whole_experts: bool) -> Iterator[dict[str, Any]]:
        """Arguments for the decoder, which attends raggedly meanwhile.

        Args:
            device: where the decoder computes; the pieces may have come elsewhere.
            whole_experts: experts, too, work on whole rows each.

        Raises:
            NotRagged: stock code does something else than attend through the interface.
        """
        arguments: dict[str, Any] = {"use_cache": True, "past_key_values": self._passage}
        if self._takes_positions:
            arguments["position_ids"] = batch.position_ids().to(device)
        with _implementations(self._configs, experts=whole_experts), batch.running():
            yield arguments
        if batch.written != self._held:
            raise NotRagged("Its attention does not go through transformers' attention interface.")


def _configs(decoder: nn.Module) -> list[PretrainedConfig]:
    """Every config that a module of the decoder asks how to attend."""
    configs = (getattr(module, "config", None) for module in decoder.modules())
    return list({id(config): config for config in configs if isinstance(config, PretrainedConfig)}.values())


@contextmanager
def _implementations(configs: Sequence[tuple[PretrainedConfig, str | None]], *, experts: bool) -> Iterator[None]:
    """Name our functions in the configs for a while; a pass that this one interrupts finds its own afterwards.

    Args:
        configs: each with the stock name of what runs its experts.
    """
    before = [(each, each._attn_implementation_internal, each._experts_implementation_internal) for each, _ in configs]
    try:
        for config, stock_experts in configs:
            config._attn_implementation_internal = NAME
            config._experts_implementation_internal = EXPERTS if experts else stock_experts
        yield
    finally:
        for config, attention_before, experts_before in before:
            config._attn_implementation_internal = attention_before
            config._experts_implementation_internal = experts_before
