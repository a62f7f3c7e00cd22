"""The state one session keeps on one part: transformers' own cache, filled only for the blocks that are held.

The cache has a layer for every block of the whole model, as the stock forward expects. The layers of blocks that are
elsewhere hold nothing and only report the session's position, because the stock code asks any layer how long the
sequence is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

__all__ = ["SpanCache", "can_truncate", "open_stock_cache"]


class SpanCache:
    """One session's state on one span.

    Attributes:
        position: the number of tokens it holds.
        rows: sequences that the session has side by side.
        spoiled: a step broke in the middle.
        adapter: the key of the adapter that made it, if any.
    """

    def __init__(self, config: PretrainedConfig, held: frozenset[int]) -> None:
        self._config = config
        self._held = held
        self._stock = open_stock_cache(config, held)
        self.position = 0
        self.rows = 1
        self.spoiled = False
        self.adapter: str | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of all tensors held now."""
        return sum(tensor.nbytes for layer in self._held_layers() for tensor in _tensors(vars(layer)))

    @property
    def truncatable(self) -> bool:
        """Whether nothing held now stands in the way of going back to an earlier position."""
        return all(can_truncate(layer) for layer in self._held_layers())

    def ready(self) -> Cache:
        """The stock cache, told the session's position, to pass to a forward."""
        seek(self._stock, self.position)
        return self._stock

    def can_truncate(self, position: int) -> bool:
        """Whether the state can go back to `position`: always to 0, else only while nothing before it was forgotten."""
        if position == 0 or position >= self.position:
            return position == 0 or not self.spoiled
        return not self.spoiled and self.truncatable

    def truncate(self, position: int) -> None:
        """Forget the tokens from `position` on. Ask `can_truncate` first."""
        if position == 0:
            self._stock = open_stock_cache(self._config, self._held)
            self.spoiled = False
        elif position < self.position:
            for layer in self._held_layers():
                layer.crop(position - self.position)
        self.position = min(position, self.position)

    def _held_layers(self) -> Iterator[Any]:
        for index, layer in enumerate(self._stock.layers):
            if index in self._held:
                yield layer


class _Elsewhere:
    """Mixed into a cache layer's class: holds no tokens, but reports as many as the session has."""

    _layer_type = None  # keeps transformers from registering the mixed class
    position = 0

    def get_seq_length(self) -> int:
        return self.position

    def update(self, *_: object, **__: object) -> None:
        raise RuntimeError("a block wrote to the cache of a block that is elsewhere")

    update_conv_state = update_recurrent_state = update_indexer = update


_CLASSES: dict[type, type] = {}


def _elsewhere(layer_class: type) -> type:
    if layer_class not in _CLASSES:
        _CLASSES[layer_class] = _mixed(layer_class)
    return _CLASSES[layer_class]


def _mixed(layer_class: type) -> type:
    return type(f"Elsewhere{layer_class.__name__}", (_Elsewhere, layer_class), {"_layer_type": None})


def open_stock_cache(config: PretrainedConfig, held: frozenset[int]) -> Cache:
    """A new stock cache in which only the layers of `held` will be filled."""
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if index not in held:
            empty: Any = object.__new__(_elsewhere(type(layer)))
            vars(empty).update(vars(layer))
            cache.layers[index] = empty
    return cache


def seek(cache: Cache, position: int) -> None:
    """Tell the layers that hold nothing how many tokens the session has."""
    for layer in cache.layers:
        if isinstance(layer, _Elsewhere):
            layer.position = position
            stock = cast(Any, layer)
            if hasattr(stock, "cumulative_length"):
                stock.cumulative_length = position
            if hasattr(stock, "has_previous_state"):
                stock.has_previous_state = dict.fromkeys(stock.has_previous_state, position > 0)


def can_truncate(layer: Any) -> bool:
    """Whether a filled stock layer still has all it needs to go back to any earlier position."""
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return False
    if isinstance(layer, DynamicSlidingWindowLayer):
        return bool(layer.get_seq_length() < layer.sliding_window)
    return bool(layer.is_croppable)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
