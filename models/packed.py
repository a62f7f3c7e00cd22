"""The attention of packed sessions: each step with its own keys, values and mask, by the family's own function.

Two functions are registered with transformers under `NAME`, one that attends and one that makes masks, and `Passage`
stands for the cache. They find the batch that is running now in a context variable. Knows nothing of spans.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cache import SpanCache, open_stock_cache
from .slabs import RaggedCache

__all__ = ["NAME", "Batch", "NotRagged", "Passage", "Piece"]

NAME = "swarmnode_ragged"
"""The name of our functions in a config's `_attn_implementation`."""


class NotRagged(Exception):
    """Raised when stock code does what a shared pass cannot serve; the message is the reason, a sentence."""


@dataclass(frozen=True, eq=False)
class Piece:
    """The next tokens of one session.

    Attributes:
        cache: its state.
        hidden: `[rows, tokens, hidden_size]`, any device and float dtype.
        position: place of the first token in the session; behind `cache.position` it truncates.
        segments: how many tokens each of its steps has, if it is several: a replay of what came step by step, or
            drafted tokens to be checked one by one. Their sum is `tokens`.
    """

    cache: RaggedCache | SpanCache
    hidden: torch.Tensor
    position: int
    segments: tuple[int, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """The segments; one where none are named."""
        return self.segments or (self.hidden.shape[1],)


class _Session:
    """A piece's tokens among the packed ones."""

    def __init__(self, piece: Piece) -> None:
        assert isinstance(piece.cache, RaggedCache)
        self.cache = piece.cache
        self.rows, self.tokens, _ = piece.hidden.shape
        self.position = piece.position
        self.end = piece.position + self.tokens
        stops = tuple(accumulate(piece.steps))
        self.steps = tuple(zip((0, *stops[:-1]), stops, strict=True))

    @property
    def places(self) -> list[int]:
        """The position of each packed token."""
        return [*range(self.position, self.end)] * self.rows


class Batch:
    """The pieces of one pass, and how far their attention has come.

    Args:
        padding: packed tokens behind those of the pieces; nothing attends to them.
        attention: the attention implementation of the stock model.

    Attributes:
        layer: the layer of the stock cache that the block now running has just written.
        written: the layers whose blocks have attended.
    """

    def __init__(self, pieces: Sequence[Piece], padding: int, attention: str) -> None:
        self.attention = attention
        self.layer: int | None = None
        self.written: set[int] = set()
        self._sessions = [_Session(piece) for piece in pieces]
        self._padding = padding
        self._sizes = [session.rows * session.tokens for session in self._sessions] + ([padding] if padding else [])

    @contextmanager
    def running(self) -> Iterator[None]:
        """While this lasts, attention of our name is this batch's."""
        token = _BATCH.set(self)
        try:
            yield
        finally:
            _BATCH.reset(token)

    def position_ids(self) -> torch.Tensor:
        """`[1, tokens]`; the padding repeats the last."""
        places = [place for session in self._sessions for place in session.places]
        return torch.tensor([places + places[-1:] * self._padding])

    def attend(self, call: _Call, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of the packed tokens, `[1, heads, tokens, width]` each; gives `[1, tokens, heads, width]`."""
        layer, self.layer = self.layer, None
        if layer is None or layer in self.written:
            raise NotRagged("Its attention does not keep keys and values in the common cache.")
        self.written.add(layer)
        packed = zip(*(torch.split(states, self._sizes, 2) for states in (query, key, value)), strict=True)
        outs = [call.session(session, layer, *states) for session, states in zip(self._sessions, packed, strict=False)]
        if self._padding:
            outs.append(outs[0].new_zeros(1, self._padding, *outs[0].shape[2:]))
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


@dataclass(frozen=True)
class _Call:
    """One block's attention: what the stock code gave to its attention function beside the states."""

    module: nn.Module
    stock: Callable[..., tuple[torch.Tensor, object]]
    mask: _Recipe
    options: dict[str, Any]

    def session(
        self, session: _Session, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one session's tokens, packed as they came."""
        apart = [queries, keys, values]
        if session.rows > 1:
            apart = [_by_rows(states, session.rows) for states in apart]
        if len(session.steps) == 1:
            out = self._step(session, layer, 0, apart)
        else:
            steps = [
                self._step(session, layer, start, [states[:, :, start:stop] for states in apart])
                for start, stop in session.steps
            ]
            out = torch.cat(steps, 1)
        return out if session.rows == 1 else out.flatten(0, 1).unsqueeze(0)

    def _step(self, session: _Session, layer: int, start: int, states: list[torch.Tensor]) -> torch.Tensor:
        queries, new_keys, new_values = states
        position = session.position + start
        slab = session.cache.slab(layer)
        keys, values = slab.append(new_keys, new_values, position, session.end)
        mask = self.mask.make(queries.shape[2], keys.shape[2], position, slab.first(position))
        return self.stock(self.module, queries, keys, values, mask, **self.options)[0]


def _by_rows(packed: torch.Tensor, rows: int) -> torch.Tensor:
    """`[1, heads, rows · tokens, width]` → `[rows, heads, tokens, width]`."""
    _, heads, tokens, width = packed.shape
    return packed.view(heads, rows, tokens // rows, width).transpose(0, 1)


class _Recipe:
    """A mask that is made when it is known for which tokens, as the stock code would have made it for these alone.

    It passes through stock code as if it were the mask; code that does more with it cannot share a pass.
    """

    def __init__(self, make: Callable[..., torch.Tensor | None], about: dict[str, Any]) -> None:
        self._make = make
        self._about = about
        self._made: dict[tuple[int, int, int, int], torch.Tensor | None] = {}

    def make(self, queries: int, keys: int, position: int, first: int) -> torch.Tensor | None:
        """For `queries` tokens from `position` on, which see `keys` tokens from `first` on."""
        asked = (queries, keys, position, first)
        if asked not in self._made:
            sizes = {"q_length": queries, "kv_length": keys, "q_offset": position, "kv_offset": first}
            self._made[asked] = self._make(**(self._about | sizes | {"batch_size": 1}))
        return self._made[asked]

    def _refuse(self, *_: object) -> Any:
        raise NotRagged("Its attention works on the mask itself.")

    __getattr__ = __getitem__ = __add__ = __radd__ = __mul__ = __rmul__ = _refuse


class Passage(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """Stands for the stock cache: keeps nothing, and tells the batch which block's keys and values come next."""

    def __init__(self, config: PretrainedConfig, held: frozenset[int]) -> None:
        super().__init__()
        self.layers = open_stock_cache(config, held).layers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give back what is to be stored: it is stored where it is attended to."""
        _BATCH.get().layer = layer_idx
        return key_states, value_states

    def _refuse(self, *_: object, **__: object) -> None:
        raise NotRagged("It keeps more than keys and values.")

    update_conv_state = update_recurrent_state = update_indexer = _refuse


_BATCH: ContextVar[Batch] = ContextVar("the batch that stock modules are running now")


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Stands for the family's attention function while a batch is running."""
    if not isinstance(attention_mask, _Recipe):
        raise NotRagged("It makes its attention mask itself.")
    batch = _BATCH.get()
    call = _Call(module, _stock_attention(batch.attention, module), attention_mask, options)
    return batch.attend(call, query, key, value), None


def _put_off(**about: Any) -> _Recipe:
    """Stands for the function that makes masks while a batch is running."""
    if about["attention_mask"] is not None:
        raise NotRagged("It makes a padding mask itself.")
    return _Recipe(AttentionMaskInterface()[_BATCH.get().attention], about)


def _stock_attention(name: str, module: nn.Module) -> Callable[..., tuple[torch.Tensor, object]]:
    """The attention function that the stock code would have called."""
    family = sys.modules[type(module).__module__]
    eager = getattr(family, "eager_attention_forward", None)
    stock: Callable[..., tuple[torch.Tensor, object]] | None = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    if stock is None:
        raise NotRagged("Its own attention function is not to be found.")
    return stock


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _put_off)
