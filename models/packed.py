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
from .experts import ROWS
from .kernels import attend, have_kernels
from .slabs import RaggedCache, Slab

__all__ = ["NAME", "SHORT_STEP", "Batch", "NotRagged", "Passage", "Piece", "running_batch"]

NAME = "swarmnode_ragged"
"""The name of our functions in a config's `_attn_implementation`."""


LEAST_SHARED_WORK = 2**20
"""Multiplications of a step's attention from which on it pays to share it between threads. Most steps have less, and
waking the others takes longer than they do. It is a step's own shape that decides, because bits depend on it."""

SHORT_STEP = 32
"""Tokens of the longest step whose rows go through linear layers in the kernel. Longer ones are quicker in torch's."""

_CPU = torch.device("cpu")

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
    """A piece's tokens among the packed ones, from `offset` on."""

    def __init__(self, piece: Piece, offset: int) -> None:
        assert isinstance(piece.cache, RaggedCache)
        self.cache = piece.cache
        self.offset = offset
        self.rows, self.tokens, _ = piece.hidden.shape
        self.position = piece.position
        self.end = piece.position + self.tokens
        stops = tuple(accumulate(piece.steps))
        self.steps = tuple(zip((0, *stops[:-1]), stops, strict=True))

    @property
    def stop(self) -> int:
        """The first packed token behind its own."""
        return self.offset + self.rows * self.tokens

    @property
    def places(self) -> list[int]:
        """The position of each packed token."""
        return [*range(self.position, self.end)] * self.rows

    def long_runs(self) -> Iterator[tuple[int, int]]:
        """Where among the packed tokens those of steps with more than `SHORT_STEP` tokens are."""
        for row in range(self.rows):
            for start, stop in self.steps:
                if stop - start > SHORT_STEP:
                    yield self.offset + row * self.tokens + start, self.offset + row * self.tokens + stop


class Batch:
    """The pieces of one pass, and how far their attention has come.

    Args:
        whole_rows: what the packed tokens are filled up to a multiple of; nothing attends to those added. None leaves
            them as they are, whatever that does to their bits.
        attention: the attention implementation of the stock model.

    Attributes:
        tokens: how many are packed, those that fill up among them.
        short_runs, long_runs: where rows of steps of up to `SHORT_STEP` tokens are, and of longer ones: first row, and
            the one behind the last. What fills up counts as short.
        layer: the layer of the stock cache that the block now running has just written.
        written: the layers whose blocks have attended.
    """

    def __init__(self, pieces: Sequence[Piece], whole_rows: int | None, attention: str) -> None:
        self.attention = attention
        self.layer: int | None = None
        self.written: set[int] = set()
        self._sessions: list[_Session] = []
        self._own = 0
        for piece in pieces:
            self._sessions.append(_Session(piece, self._own))
            self._own = self._sessions[-1].stop
        self.long_runs = tuple(run for session in self._sessions for run in session.long_runs())
        self.tokens = self._own
        if whole_rows is not None:
            # A long run is computed with the rows behind it that make it a multiple of `ROWS`.
            wanted = max([self._own, *(stop + (start - stop) % ROWS for start, stop in self.long_runs)])
            self.tokens = -(-wanted // whole_rows) * whole_rows
        edges = [0, *(edge for run in self.long_runs for edge in run), self.tokens]
        between = zip(edges[::2], edges[1::2], strict=True)
        self.short_runs = [(start, stop) for start, stop in between if start < stop]

    @property
    def padding(self) -> int:
        """Packed tokens behind those of the pieces."""
        return self.tokens - self._own

    def runs(self, most_tokens: int) -> tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]:
        """Where rows of steps of up to so many tokens, at least `SHORT_STEP`, are, and of longer ones."""
        if not self.long_runs:
            return self.short_runs, ()  # decode, where every layer asks
        few = [run for run in self.long_runs if run[1] - run[0] <= most_tokens]
        many = [run for run in self.long_runs if run[1] - run[0] > most_tokens]
        return sorted([*self.short_runs, *few]), many

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
        return torch.tensor([places + places[-1:] * self.padding])

    def attend(self, call: _Call, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of the packed tokens, `[1, heads, tokens, width]` each; gives `[1, tokens, heads, width]`."""
        layer, self.layer = self.layer, None
        if layer is None or layer in self.written:
            raise NotRagged("Its attention does not keep keys and values in the common cache.")
        self.written.add(layer)
        singles: list[_Session] = []
        others: list[_Session] = []
        for session in self._sessions:
            (singles if call.is_single(session, layer) else others).append(session)
        if len(others) == 1 and not singles and not self.padding:
            return call.session(others[0], layer, query, key, value)
        out = query.new_empty(1, self.tokens, query.shape[1], value.shape[3])
        if singles:
            call.together(singles, layer, (query, key, value), out)
        for session in others:
            own = [states[:, :, session.offset : session.stop] for states in (query, key, value)]
            out[:, session.offset : session.stop] = call.session(session, layer, *own)
        if self.padding:
            out[:, self._own :] = 0
        return out


class _Call:
    """One block's attention.

    Args:
        module: the stock attention.
        stock: the attention function that it would call.
        mask: what it takes for its mask.
        options: what else it tells that function.
        states: queries, keys and values.
    """

    def __init__(
        self,
        module: nn.Module,
        stock: _Attention,
        mask: _Recipe,
        options: dict[str, Any],
        states: Sequence[torch.Tensor],
    ) -> None:
        self._module = module
        self._stock = stock
        self._mask = mask
        self._options = options
        self._plain = stock is sdpa_attention_forward and options.get("position_bias") is None
        self._scale: float | None = options.get("scaling")
        self._threads = torch.get_num_threads()
        self._kernel = self._plain and have_kernels(*states)

    def is_single(self, session: _Session, layer: int) -> bool:
        """Whether a session has one token, which the kernel can attend to together with those of others."""
        return session.tokens == 1 and self._takes(session.cache.slab(layer), session.position)

    def together(
        self, sessions: Sequence[_Session], layer: int, states: Sequence[torch.Tensor], out: torch.Tensor
    ) -> None:
        """Attention of sessions with one token each, written to where they are in `out`."""
        slabs = [session.cache.slab(layer) for session in sessions]
        rooms, places = [], []
        for session, slab in zip(sessions, slabs, strict=True):
            room, at, first = slab.place(states[1], states[2], session.rows, session.position, session.end)
            rooms.append(room)
            places.append((session.offset, at, first))
        attend(states, out, rooms, places, scale=self._scale, threads=self._threads)
        for session, slab in zip(sessions, slabs, strict=True):
            slab.written(session.position, session.end)

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
        tokens, position = step[1] - step[0], session.position + step[0]
        if tokens == 1 and self._takes(slab, position):
            return self._single(session, slab, position, [each.transpose(0, 2) for each in states])
        queries, new_keys, new_values = states
        keys, values = slab.append(new_keys, new_values, position, session.end)
        first = slab.first(position)
        seen = position + tokens - first
        mask = self._mask.make(tokens, seen, position, first, queries.device)
        # Bits depend on the number of threads, so it depends on the step's own shape.
        torch.set_num_threads(self._threads if queries.numel() * seen > LEAST_SHARED_WORK else 1)
        try:
            if self._plain and tokens == 1 and mask is None:
                return _one_query(queries, keys, values, self._scale)
            return self._stock(self._module, queries, keys, values, mask, **self._options)[0]
        finally:
            torch.set_num_threads(self._threads)

    def _takes(self, slab: Slab, position: int) -> bool:
        """Whether the kernel can attend to a single token."""
        if not self._kernel:
            return False
        first = slab.first(position)
        return self._mask.make(1, position + 1 - first, position, first, _CPU) is None

    def _single(self, session: _Session, slab: Slab, position: int, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Attention of one token of each row, `[1, heads, rows, width]`; gives `[rows, 1, heads, width]`."""
        queries, keys, values = states
        out = queries.new_empty(1, session.rows, queries.shape[1], values.shape[3])
        room, at, first = slab.place(keys, values, session.rows, position, session.end)
        attend(states, out, [room], [(0, at, first)], scale=self._scale, threads=self._threads)
        slab.written(position, position + 1)
        return out.transpose(0, 1)


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
        """For `queries` tokens from `position` on, which see `keys` tokens from `first` on; None where one sees all."""
        asked = (queries, keys, position, first, device)
        if asked not in self._made:
            sizes = {"q_length": queries, "kv_length": keys, "q_offset": position, "kv_offset": first}
            mask = self._make(**(self._about | sizes | {"batch_size": 1}))
            # On a GPU, asking would wait for it.
            if queries == 1 and mask is not None and mask.is_cpu and mask.dtype == torch.bool and mask.all():
                mask = None
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


def running_batch() -> Batch | None:
    """The batch that stock modules are running now, if any."""
    return _BATCH.get(None)


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
    call = _Call(module, stock, attention_mask, options, (query, key, value))
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
