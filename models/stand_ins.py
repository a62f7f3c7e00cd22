"""Modules that stand in a part for what it does not hold, and where hidden states enter and leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Absent", "Doorway", "Gate", "Pass", "Way"]


class _StandIn(nn.Module):
    """Stands for a module: has no weights of its own, but answers for its attributes (some models ask for them)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        vars(self)["stands_for"] = module  # past nn.Module's registration: its meta tensors are no part of the model

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["stands_for"], name)


class Gate(_StandIn):
    """Stands for a block that is elsewhere: passes on `incoming`, or the hidden state it sees, which it may remember.

    Args:
        block: the block it stands for.
        returns: how many values the family's blocks return, hidden state first; 0 for a bare tensor.
    """

    def __init__(self, block: nn.Module, returns: int) -> None:
        super().__init__(block)
        self.returns = returns
        self.incoming: torch.Tensor | None = None
        self.remembers = False
        self.seen: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> object:
        """Pass the hidden state on, ignoring everything else a block is given."""
        if self.remembers:
            self.seen = hidden_states
        out = hidden_states if self.incoming is None else self.incoming
        return (out, *[None] * (self.returns - 1)) if self.returns else out


class Absent(_StandIn):
    """Stands for a module the part does not need: an embedding gives zero, all else gives back what it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._embeds = isinstance(module, nn.Embedding)

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The first float tensor given, or a zero that adds to anything."""
        for value in (*args, *kwargs.values()):
            if not self._embeds and isinstance(value, torch.Tensor) and value.is_floating_point():
                return value
        return torch.zeros(())


@dataclass(slots=True)
class Pass:
    """One run of the stock decoder.

    Attributes:
        incoming: what the first block is given instead of what the stock code brings; taken by it.
        outgoing: what the last block that ran has returned.
        between: called before each block, where given. It may run other passes of the same blocks.
    """

    incoming: torch.Tensor | None
    between: Callable[[], object] | None = None
    outgoing: object = None


class Way:
    """The way through some blocks: tells their doorways which pass is on it."""

    def __init__(self) -> None:
        self.now: Pass | None = None

    @contextmanager
    def taken(self, by: Pass) -> Iterator[None]:
        """While this lasts, the pass is on it; one that it interrupts goes on afterwards."""
        interrupted, self.now = self.now, by
        try:
            yield
        finally:
            self.now = interrupted


class Doorway(_StandIn):
    """Stands around a held block: gives it what the pass brings if it is the first, keeps what it returns.

    The block itself is untouched, so several spans may share it.
    """

    def __init__(self, block: nn.Module, way: Way) -> None:
        super().__init__(block)
        vars(self)["way"] = way

    def forward(self, *args: Any, **kwargs: Any) -> object:
        """Run the block."""
        now: Pass = vars(self)["way"].now
        if now.between is not None:
            now.between()
        if now.incoming is not None:
            if args:
                args = (now.incoming, *args[1:])
            else:
                kwargs["hidden_states"] = now.incoming
            now.incoming = None
        now.outgoing = vars(self)["stands_for"](*args, **kwargs)
        return now.outgoing
