"""Modules that stand in a part for what it does not hold, and where hidden states enter and leave it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Absent", "Doorway", "Gate"]


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


class Doorway(_StandIn):
    """Stands around a held block: gives it `incoming` instead of what the stock code brings, keeps what it returns.

    The block itself is untouched, so several spans may share it.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.incoming: torch.Tensor | None = None
        self.outgoing: object = None

    def forward(self, *args: Any, **kwargs: Any) -> object:
        """Run the block."""
        if self.incoming is not None and args:
            args = (self.incoming, *args[1:])
        elif self.incoming is not None:
            kwargs["hidden_states"] = self.incoming
        self.outgoing = vars(self)["stands_for"](*args, **kwargs)
        return self.outgoing
