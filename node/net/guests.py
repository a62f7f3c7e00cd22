"""Whom this node has connections to: lists of peer ids that are allowed or denied. Pure: no file, no connection."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Guests"]


@dataclass(frozen=True, slots=True)
class Guests:
    """The rule, for connections of both directions. Who is denied stays out, on the other list or not.

    Attributes:
        allowed: only these are let in; None lets everybody in.
        denied: these are not.
    """

    allowed: frozenset[str] | None = None
    denied: frozenset[str] = frozenset()

    def why_not(self, peer: str) -> str | None:
        """Why a peer stays out, as the end of a sentence about it; None when it may come in."""
        if peer in self.denied:
            return "it is on the list of peers that this node denies"
        if self.allowed is not None and peer not in self.allowed:
            return "it is not on the list of peers that this node allows"
        return None
