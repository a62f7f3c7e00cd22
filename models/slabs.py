"""The state one session keeps for ragged passes: for each block one growing slab of keys and one of values.

A slab has room for more tokens than it holds, so a step writes its rows and copies nothing. How much memory a session
of so many tokens takes is a plain sum (`capacity`), so that a budget can be kept without asking the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from .kernels import Room, room_of

__all__ = ["GROWTH", "LEAST_TOKENS", "REWIND_TOKENS", "RaggedCache", "Rows", "TokenShape", "capacity"]

LEAST_TOKENS = 64
"""Tokens a new slab has room for, and what the room of any slab is a multiple of."""

GROWTH = 1.25
"""A full slab grows by this factor: at most a fifth of it is idle, and a token is moved four times in its life."""

REWIND_TOKENS = 64
"""Tokens beyond its window that a sliding block keeps, so that a session can go back by as many."""


@dataclass(frozen=True)
class TokenShape:
    """What one token takes in one block's slabs, for one row of a session.

    Attributes:
        heads: key/value heads.
        key_width: values of a key.
        value_width: values of a value.
        element_bytes: bytes of one.
        window: how many tokens a query sees, itself among them, where that is bounded.
    """

    heads: int
    key_width: int
    value_width: int
    element_bytes: int
    window: int | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's key and value."""
        return self.heads * (self.key_width + self.value_width) * self.element_bytes

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the slabs of a session that has seen `tokens` tokens, at most."""
        return room(tokens, self.window) * self.token_bytes


States = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of the same tokens, `[rows, heads, tokens, width]` each."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Keys and values of a few consecutive tokens, copied out of a session.

    Attributes:
        tokens: how many.
        layers: for each block's layer in the stock cache its keys and values, `[rows, heads, tokens, width]` each; in a
            sliding block only the last tokens, if it keeps no more.
    """

    tokens: int
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]


def capacity(tokens: int) -> int:
    """The room of a slab that holds `tokens` tokens: the same however it came to hold them."""
    step = LEAST_TOKENS
    while step < tokens:
        step = -(-int(step * GROWTH) // LEAST_TOKENS) * LEAST_TOKENS
    return step if tokens else 0


def room(tokens: int, window: int | None) -> int:
    """The room of a slab of a session of `tokens` tokens whose queries see `window` of them."""
    return capacity(tokens) if window is None else min(capacity(tokens), _most(window))


def _kept(window: int) -> int:
    """Tokens before the next one that a sliding block keeps at least."""
    return window - 1 + REWIND_TOKENS


def _most(window: int) -> int:
    """Room of a sliding block's slab: a quarter is slack, so that old tokens are dropped only now and then."""
    return capacity(int(_kept(window) * GROWTH) + LEAST_TOKENS)


class Slab:
    """Keys and values of one block: `[rows, heads, room, width]`, filled from token `base` on.

    Attributes:
        marks: tokens up to which what is appended is to be copied at once, and the copies.
    """

    __slots__ = ("_kernel_room", "base", "keys", "marks", "room", "values", "window")

    def __init__(self, window: int | None, marks: dict[int, States | None] | None = None) -> None:
        self.window = window
        self.marks = {} if marks is None else marks
        self.base = 0
        self.room = 0
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self._kernel_room: tuple[torch.Tensor, torch.Tensor, Room] | None = None

    @property
    def memory_bytes(self) -> int:
        return sum(slab.nbytes for slab in (self.keys, self.values) if slab is not None)

    @property
    def token(self) -> TokenShape:
        assert self.keys is not None
        assert self.values is not None
        _, heads, _, width = self.keys.shape
        return TokenShape(heads, width, self.values.shape[3], self.keys.element_size(), self.window)

    def reaches(self, position: int) -> bool:
        """Whether all that a query at `position` sees is still here."""
        return self.base <= self.first(position)

    def first(self, position: int) -> int:
        """The first token that a query at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    def copy(self, start: int, end: int) -> States:
        """A copy of the keys and values of the tokens `start:end`, all of which are still here."""
        assert self.keys is not None
        assert self.values is not None
        kept = slice(start - self.base, end - self.base)
        return self.keys[:, :, kept].clone(), self.values[:, :, kept].clone()

    def append(self, keys: torch.Tensor, values: torch.Tensor, position: int, end: int) -> States:
        """Write the rows of the tokens from `position` on; return what their queries see, `[rows, heads, seen, width]`.

        Args:
            keys, values: `[rows, heads, tokens, width]`.
            end: how many tokens the session will have after this pass: room is made for all of them at once.
        """
        seen = self._append(keys, values, position, end)
        self.written(position, position + keys.shape[2])
        return seen

    def written(self, position: int, after: int) -> None:
        """Note that the tokens from `position` up to `after` are in: `append` does, after `place` a kernel's caller."""
        if after in self.marks:
            self.marks[after] = self.copy(max(position, self.base), after)

    def _append(self, keys: torch.Tensor, values: torch.Tensor, position: int, end: int) -> States:
        tokens = keys.shape[2]
        if self.window is not None and self._overflows(self.window, tokens, position):
            return self._overflow(keys, values, position)
        self._prepare(keys, values, position, end)
        assert self.keys is not None
        assert self.values is not None
        at = position - self.base
        self.keys.narrow(2, at, tokens).copy_(keys)
        self.values.narrow(2, at, tokens).copy_(values)
        first = max(0, self.first(position) - self.base)
        seen = at + tokens - first
        return self.keys.narrow(2, first, seen), self.values.narrow(2, first, seen)

    def place(
        self, keys: torch.Tensor, values: torch.Tensor, rows: int, position: int, end: int
    ) -> tuple[Room, int, int]:
        """Make room for one token at `position` and leave the writing to a kernel.

        Args:
            keys, values: `[1, heads, tokens, width]`, among them those that will be written.
            rows: of the session.
            end: as in `append`.

        Returns:
            The slab as kernels know it, where in it the token belongs, and the first one that its query sees.
        """
        if end - self.base > self.room:
            like = [states[:, :, :1].expand(rows, -1, -1, -1) for states in (keys, values)]
            self._prepare(like[0], like[1], position, end)
        known = self._kernel_room
        if known is None or known[0] is not self.keys or known[1] is not self.values:
            assert self.keys is not None
            assert self.values is not None
            known = self.keys, self.values, room_of(self.keys, self.values)
            self._kernel_room = known
        return known[2], position - self.base, max(0, self.first(position) - self.base)

    def _prepare(self, keys: torch.Tensor, values: torch.Tensor, position: int, end: int) -> None:
        """See to it that all tokens up to `end` have room, at the cost of those that no query sees any more."""
        if end - self.base > self.room:
            if self.window is not None and position + keys.shape[2] - self.base > _most(self.window):
                self._drop(position - _kept(self.window))
            self._make_room(end - self.base, keys, values)

    def _make_room(self, tokens: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        wanted = room(tokens, self.window)
        if self.keys is None or self.values is None:
            self.keys, self.values = _empty(keys, wanted), _empty(values, wanted)
        elif self.room < wanted:
            self.keys, self.values = _grown(self.keys, wanted), _grown(self.values, wanted)
        self.room = self.keys.shape[2]

    def _drop(self, base: int) -> None:
        """Forget the tokens before `base`."""
        assert self.keys is not None
        assert self.values is not None
        for slab in (self.keys, self.values):
            left = slab[:, :, base - self.base :].clone()
            slab[:, :, : left.shape[2]] = left
        self.base = base

    def _overflows(self, window: int, tokens: int, position: int) -> bool:
        """Whether there will not be room for so many tokens, even without those that no query sees any more."""
        return tokens > _most(window) - _kept(window) and position + tokens - self.base > _most(window)

    def _overflow(self, keys: torch.Tensor, values: torch.Tensor, position: int) -> States:
        """As `append`, for more tokens than the slab will have room for: the last are kept, the others only seen."""
        assert self.window is not None
        whole = [keys, values]
        base = self.first(position)
        if self.keys is not None and self.values is not None:
            old = slice(0, position - self.base)
            whole = [torch.cat([self.keys[:, :, old], keys], 2), torch.cat([self.values[:, :, old], values], 2)]
            base = self.base
        end = position + keys.shape[2]
        kept = end - _kept(self.window)
        self._make_room(_most(self.window), keys, values)
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, : end - kept] = whole[0][:, :, kept - base :]
        self.values[:, :, : end - kept] = whole[1][:, :, kept - base :]
        self.base = kept
        seen = self.first(position) - base
        return whole[0][:, :, seen:], whole[1][:, :, seen:]


class RaggedCache:
    """One session's state on one span.

    Attributes:
        position: the number of tokens it holds.
        rows: sequences that the session has side by side.
        adapter: the key of the adapter that made it, if any.

    Args:
        windows: for each block's layer in the stock cache how many tokens its queries see, None for all.
    """

    def __init__(self, windows: Mapping[int, int | None]) -> None:
        self._slabs = {layer: Slab(window) for layer, window in windows.items()}
        self.position = 0
        self.rows = 1
        self.adapter: str | None = None

    @property
    def tokens(self) -> list[TokenShape]:
        """What a token takes in each block that has run."""
        return [slab.token for slab in self._slabs.values() if slab.keys is not None]

    @property
    def memory_bytes(self) -> int:
        """Bytes of all slabs, the room for tokens to come among them."""
        return sum(slab.memory_bytes for slab in self._slabs.values())

    @property
    def spoiled(self) -> bool:
        """Whether a pass that broke took away what the next token needs. What came before `position` is never lost."""
        return not all(slab.reaches(self.position) for slab in self._slabs.values())

    def can_truncate(self, position: int) -> bool:
        """Whether the state can go back to `position`: always to 0, and by `REWIND_TOKENS` from where it has been."""
        return position == 0 or all(slab.reaches(min(position, self.position)) for slab in self._slabs.values())

    def truncate(self, position: int) -> None:
        """Forget the tokens from `position` on. Ask `can_truncate` first."""
        if position == 0:
            self._slabs = {layer: Slab(slab.window, slab.marks) for layer, slab in self._slabs.items()}
        self.position = min(position, self.position)

    def mark(self, ends: Iterable[int]) -> None:
        """Before a pass: tokens that it will reach and up to which `copy` will be asked for copies."""
        for slab in self._slabs.values():
            if slab.window is not None:  # all others keep everything
                slab.marks = dict.fromkeys(ends)

    def copy_bytes(self, start: int, end: int) -> int | None:
        """Bytes of a copy of the tokens `start:end`; None if there can be none, for want of a mark."""
        size_bytes = 0
        for slab in self._slabs.values():
            if slab.window is None:
                size_bytes += self.rows * (end - start) * slab.token.token_bytes
            elif (states := slab.marks.get(end)) is not None:
                size_bytes += sum(each.nbytes for each in states)
            else:
                return None
        return size_bytes

    def copy(self, start: int, end: int) -> Rows:
        """A copy of the tokens `start:end`, which were one segment. Ask `copy_bytes` first."""
        layers: dict[int, States] = {}
        for layer, slab in self._slabs.items():
            states = slab.marks[end] if slab.window is not None else slab.copy(start, end)
            assert states is not None
            layers[layer] = states
        return Rows(end - start, layers)

    def put(self, rows: Rows, end: int) -> None:
        """Hold the next tokens as if they had been computed here.

        Args:
            end: how many tokens the session will have when all is put and computed that comes together.
        """
        for layer, (keys, values) in rows.layers.items():
            slab = self._slabs[layer]
            first = self.position + rows.tokens - keys.shape[2]
            if first > self.position:  # a sliding block of which nobody will see what was before
                slab.base = first
            slab.append(keys, values, first, end)
        self.position += rows.tokens

    def slab(self, layer: int) -> Slab:
        """The keys and values of a block, by its layer in the stock cache."""
        return self._slabs[layer]


def _empty(like: torch.Tensor, tokens: int) -> torch.Tensor:
    rows, heads, _, width = like.shape
    return like.new_empty((rows, heads, tokens, width))


def _grown(slab: torch.Tensor, tokens: int) -> torch.Tensor:
    grown = _empty(slab, tokens)
    grown[:, :, : slab.shape[2]] = slab
    return grown
