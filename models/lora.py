"""PEFT's LoRA layers in a part of a model, several adapters side by side, each for the tokens that chose it.

Importing this imports PEFT, which takes seconds. Where an adapter comes from, and whether it fits, `adapters.py` knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn
from transformers import PreTrainedModel

from .adapters import AdaptedLayer, Adapter
from .mix import Mix, running_mix
from .packed import LEAST_SHARED_WORK
from .weights import LazyTensor

__all__ = ["adapt"]


class MixedLinear(Linear):
    """PEFT's layer around a linear one, whose adapters count only for the tokens that the running mix gives them."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's result, with what adapters add to it."""
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        mix = running_mix()
        if mix is None:
            return result
        if mix.whole is not None:
            return result + self.delta(mix.whole, x) if mix.whole in self.lora_A else result
        return self._mixed(mix, x, result)

    def _move_adapter_to_device_of_base_layer(self, *_: object, **__: object) -> None:
        """`adapt` puts weights where they belong; PEFT would look at the base's, which quantised layers make anew."""

    def delta(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        """What an adapter adds for an input, in PEFT's own arithmetic."""
        lora_a, lora_b = cast(nn.Linear, self.lora_A[adapter]), cast(nn.Linear, self.lora_B[adapter])
        added: torch.Tensor = lora_b(lora_a(x.to(lora_a.weight.dtype))) * self.scaling[adapter]
        return added.to(x.dtype)

    def _mixed(self, mix: Mix, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        packed, out = x.flatten(0, -2), result.flatten(0, -2)
        if packed.shape[0] != mix.packed_tokens:
            raise RuntimeError(f"an adapted layer was given {packed.shape[0]} of {mix.packed_tokens} packed tokens")
        for tile in mix.tiles:
            if tile.adapter in self.lora_A:
                rows = tile.rows.to(packed.device)
                with self._threads(tile.adapter, len(rows)):
                    added = self.delta(tile.adapter, packed[rows])[: tile.count]
                rows = rows[: tile.count]
                out.index_copy_(0, rows, out[rows] + added)
        for share in mix.shares:
            if share.adapter in self.lora_A:
                for step, into in zip(share.split(packed), share.split(out), strict=True):
                    # In memory of its own, aligned as a lone session's: its bits depend on it.
                    own = step.clone(memory_format=torch.contiguous_format)
                    with self._threads(share.adapter, own.shape[:2].numel()):
                        into.add_(self.delta(share.adapter, own))
        return out.view_as(result)

    @contextmanager
    def _threads(self, adapter: str, rows: int) -> Iterator[None]:
        """While this lasts, as many threads compute as so many rows pay for. It is their number that decides."""
        threads = torch.get_num_threads()
        if threads == 1 or rows * cast(int, self.in_features) * self.r[adapter] > LEAST_SHARED_WORK:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def adapt(model: PreTrainedModel, adapter: Adapter, tensors: dict[str, LazyTensor], blocks: range) -> None:
    """Put an adapter's layers of some blocks into a part, where they do nothing until a mix names `adapter.key`.

    Args:
        tensors: the adapter's, under its own names.
        blocks: those that the part holds.
    """
    keys: set[str] = getattr(model, "swarmnode_adapters", set())
    dtype = model.dtype  # asked before adapters come first among the parameters, as they do on quantised weights
    for layer in adapter.layers:
        if layer.block in blocks:
            _adapt_layer(model, adapter.key, layer, tensors, dtype)
    model.swarmnode_adapters = keys | {adapter.key}


def _adapt_layer(
    model: PreTrainedModel, key: str, layer: AdaptedLayer, tensors: dict[str, LazyTensor], states: torch.dtype
) -> None:
    base: Any = model.get_submodule(layer.path)
    alpha = cast(int, layer.scaling * layer.rank)
    config = LoraConfig(
        r=layer.rank,
        lora_alpha=alpha,
        lora_bias=layer.bias is not None,
        fan_in_fan_out=layer.is_transposed,
        init_lora_weights=False,
        inference_mode=True,
    )
    with torch.device("meta"):  # the weights come from the adapter
        if isinstance(base, MixedLinear):
            base.update_layer(key, r=layer.rank, lora_alpha=alpha, config=config)
        else:
            base = MixedLinear(base, key, config, layer.rank, alpha, is_target_conv_1d_layer=layer.is_transposed).eval()
            parent, _, name = layer.path.rpartition(".")
            setattr(model.get_submodule(parent), name, base)
    own = base.get_base_layer()
    some = next(chain(own.parameters(), own.buffers()))
    weight = own._parameters.get("weight")  # none where it is quantised
    dtype = weight.dtype if weight is not None and weight.dtype.is_floating_point else states

    def loaded(name: str) -> nn.Parameter:
        return nn.Parameter(tensors[name].to(some.device, dtype), requires_grad=False)

    base.lora_A[key].weight = loaded(layer.a)
    base.lora_B[key].weight = loaded(layer.b)
    if layer.bias is not None:
        base.lora_B[key].bias = loaded(layer.bias)
    base.scaling[key] = layer.scaling
