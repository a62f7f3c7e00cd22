"""The attention of packed sessions: each step with its own keys, values and mask, by the family's own function.

Two functions are registered with transformers under `NAME`, one that attends and one that makes masks, and `Passage`
stands for the cache. They find the batch that is running now in a context variable. Knows nothing of spans.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cache import SpanCache, open_stock_cache
from .slabs import RaggedCache, Slab

__all__ = ["NAME", "Batch", "NotRagged", "Passage", "Piece"]

NAME = "swarmnode_ragged"
"""The name of our functions in a config's `_attn_implementation`."""


LEAST_SHARED_WORK = 2**20
"""Multiplications of a step's attention from which on it pays to share it between threads. Most steps have less, and
waking the others takes longer than they do. It is a step's own shape that decides, because bits depend on it."""

_Attention = Callable[..., tuple[torch.Tensor, object]]


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
        as_stock: single queries, too, are attended to by the stock kernel, which is slower.

    Attributes:
        layer: the layer of the stock cache that the block now running has just written.
        written: the layers whose blocks have attended.
    """

    def __init__(self, pieces: Sequence[Piece], padding: int, attention: str, *, as_stock: bool) -> None:
        self.attention = attention
        self.as_stock = as_stock
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
        with call.threads():
            outs = [call.session(session, layer, *each) for session, each in zip(self._sessions, packed, strict=False)]
        if self._padding:
            outs.append(outs[0].new_zeros(1, self._padding, *outs[0].shape[2:]))
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


class _Call:
    """One block's attention.

    Args:
        module: the stock attention.
        stock: the attention function that it would call.
        mask: what it takes for its mask.
        options: what else it tells that function.
        as_stock: as `Batch` has it.
    """

    def __init__(
        self, module: nn.Module, stock: _Attention, mask: _Recipe, options: dict[str, Any], *, as_stock: bool
    ) -> None:
        self._module = module
        self._stock = stock
        self._mask = mask
        self._options = options
        plain = stock is sdpa_attention_forward and options.get("position_bias") is None
        self._grouped = plain and not as_stock
        self._scale: float | None = options.get("scaling")
        self._as_stock = as_stock
        self._threads = torch.get_num_threads()

    @contextmanager
    def threads(self) -> Iterator[None]:
        """While this lasts, each step is attended to by as many threads as it pays for."""
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)

    def session(
        self, session: _Session, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one session's tokens, packed as they came."""
        slab = session.cache.slab(layer)
        if session.rows > 1:
            queries, keys, values = (_by_rows(states, session.rows) for states in (queries, keys, values))
        if len(session.steps) == 1:
            out = self._step(session, slab, session.steps[0], (queries, keys, values))
        else:
            steps = [
                self._step(session, slab, step, [states[:, :, step[0] : step[1]] for states in (queries, keys, values)])
                for step in session.steps
            ]
            out = torch.cat(steps, 1)
        return out if session.rows == 1 else out.flatten(0, 1).unsqueeze(0)

    def _step(
        self, session: _Session, slab: Slab, step: tuple[int, int], states: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        queries, new_keys, new_values = states
        tokens, position = step[1] - step[0], session.position + step[0]
        keys, values = slab.append(new_keys, new_values, position, session.end)
        first = slab.first(position)
        seen = position + tokens - first
        mask = self._mask.make(tokens, seen, position, first, queries.device)
        if not self._as_stock:
            torch.set_num_threads(self._threads if queries.numel() * seen > LEAST_SHARED_WORK else 1)
        if self._grouped and tokens == 1 and mask is None:
            return _one_query(queries, keys, values, self._scale)
        return self._stock(self._module, queries, keys, values, mask, **self._options)[0]


def _one_query(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Attention of one query, `[rows, heads, 1, width]`; the result is `[rows, 1, heads, width]`.

    The query heads that share a key head are this head's rows, so that its keys are read once and not once for each.
    """
    rows, heads, _, width = query.shape
    grouped = query.reshape(rows, keys.shape[1], heads // keys.shape[1], width)
    out = scaled_dot_product_attention(grouped, keys, values, scale=scale)
    return out.reshape(rows, 1, heads, values.shape[3])


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
        self._made: dict[Hashable, torch.Tensor | None] = {}

    def make(self, queries: int, keys: int, position: int, first: int, device: torch.device) -> torch.Tensor | None:
        """For `queries` tokens from `position` on, which see `keys` tokens from `first` on."""
        asked = (queries, keys, position, first, device)
        if asked not in self._made:
            sizes = {"q_length": queries, "kv_length": keys, "q_offset": position, "kv_offset": first}
            mask = self._make(**(self._about | sizes | {"batch_size": 1}))
            self._made[asked] = None if mask is None else mask.to(device)
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
    stock = _stock_attention(batch.attention, module)
    call = _Call(module, stock, attention_mask, options, as_stock=batch.as_stock)
    return batch.attend(call, query, key, value), None


def _put_off(**about: Any) -> _Recipe:
    """Stands for the function that makes masks while a batch is running."""
    padding = about["attention_mask"]
    if padding is not None and not padding.all():
        raise NotRagged("It makes a padding mask itself.")
    return _Recipe(AttentionMaskInterface()[_BATCH.get().attention], about | {"attention_mask": None})


def _stock_attention(name: str, module: nn.Module) -> _Attention:
    """The attention function that the stock code would have called."""
    family = sys.modules[type(module).__module__]
    eager = getattr(family, "eager_attention_forward", None)
    stock: _Attention | None = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    if stock is None:
        raise NotRagged("Its own attention function is not to be found.")
    return stock


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _put_off)
