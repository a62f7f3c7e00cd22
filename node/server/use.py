"""What is asked of a server's engine: who wants to use which blocks, and how far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarmnode.errors import SwarmnodeError
from swarmnode.protocols.adapters import AdapterId

from .schedule import Priority

__all__ = ["Use"]


@dataclass(frozen=True, slots=True)
class Use:
    """Who wants to use which blocks, and how far.

    Attributes:
        tokens: how far the session is meant to grow. No promise on either side.
        dtype: in which its hidden states come.
        public_tokens: how many of its first tokens are no secret.
        ended: told why when the engine has to end the session.
        adapter: with which it computes.
    """

    session: bytes
    peer: str
    start: int
    end: int
    tokens: int
    priority: Priority
    ended: Callable[[SwarmnodeError], None]
    dtype: str
    public_tokens: int
    adapter: AdapterId | None = None
