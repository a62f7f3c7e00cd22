"""How a server says "not now": why, and when asking again makes sense. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from swarmnode.node.defaults import MAX_RETRY_AFTER_SECONDS, MIN_RETRY_AFTER_SECONDS

__all__ = ["Busy", "busy_for"]


@dataclass(frozen=True, slots=True)
class Busy:
    """Why not now, in one sentence, and when asking again makes sense."""

    reason: str
    retry_after_seconds: float


def busy_for(reason: str, seconds: float) -> Busy:
    """With the time kept within what a client is ever told."""
    return Busy(reason, min(max(seconds, MIN_RETRY_AFTER_SECONDS), MAX_RETRY_AFTER_SECONDS))
