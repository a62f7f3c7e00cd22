"""How a server says "not now": why, and when asking again makes sense. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from swarmnode.errors import PeerBusy, PeerRefused
from swarmnode.node.defaults import MAX_RETRY_AFTER_SECONDS, MIN_RETRY_AFTER_SECONDS

__all__ = ["Busy", "as_error", "busy_for", "never"]


@dataclass(frozen=True, slots=True)
class Busy:
    """Why not now, in one sentence, and when asking again makes sense; None is never."""

    reason: str
    retry_after_seconds: float | None


def busy_for(reason: str, seconds: float) -> Busy:
    """With the time kept within what a client is ever told."""
    return Busy(reason, min(max(seconds, MIN_RETRY_AFTER_SECONDS), MAX_RETRY_AFTER_SECONDS))


def never(reason: str) -> Busy:
    """Not now, and not later."""
    return Busy(reason, None)


def as_error(busy: Busy) -> PeerRefused:
    """What a session is refused or ended with."""
    later = busy.retry_after_seconds
    if later is None:
        return PeerRefused(busy.reason, hint="Ask another server, or for less.")
    hint = f"Try again in about {later:.0f} seconds, or another server."
    return PeerBusy(busy.reason, hint=hint, retry_after_seconds=later)
