"""How a server says "not now": why, and when asking again makes sense. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarmnode.errors import PeerBusy, PeerRefused
from swarmnode.node.defaults import MAX_RETRY_AFTER_SECONDS, MIN_RETRY_AFTER_SECONDS

__all__ = ["FIRST_GUESS_SECONDS", "LASTING_WEIGHT", "Busy", "Lasting", "as_error", "busy_for", "never"]

FIRST_GUESS_SECONDS: Final = 10.0
"""How long what was let in is taken to last while none of it has ended yet."""

LASTING_WEIGHT: Final = 0.2
"""Of the newest in the mean of those that have ended."""


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


class Lasting:
    """How long what was let in lasts here: an exponential mean over what has ended.

    Attributes:
        seconds: that mean.
    """

    def __init__(self) -> None:
        self.seconds = FIRST_GUESS_SECONDS

    def ended(self, since: float, now: float) -> None:
        """Something that was let in at `since` is over."""
        self.seconds += LASTING_WEIGHT * (max(0.0, now - since) - self.seconds)


def as_error(busy: Busy) -> PeerRefused:
    """What a session is refused or ended with."""
    later = busy.retry_after_seconds
    if later is None:
        return PeerRefused(busy.reason, hint="Ask another server, or for less.")
    hint = f"Try again in about {later:.0f} seconds, or another server."
    return PeerBusy(busy.reason, hint=hint, retry_after_seconds=later)
