"""Whose turn it is among peers that wait for the same thing, by tokens served. Pure.

Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", 1996) with equal weights: of those who wait, the
one with the fewest tokens served goes next. Who comes, or comes back, starts level with whoever went last, so that
nobody saves turns up by staying away. While two peers wait, what they are served never differs by more than the
largest piece of the one and the largest of the other, however many sessions each has.
"""

from __future__ import annotations

__all__ = ["Turns"]


class Turns:
    """Tokens served to each peer, as far as they still matter."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._floor = 0

    def __len__(self) -> int:
        """How many peers are remembered."""
        return len(self._served)

    def level(self, peer: str) -> int:
        """Where `peer` stands; the lowest goes first."""
        return max(self._served.get(peer, 0), self._floor)

    def charge(self, peer: str, tokens: int) -> None:
        """`peer` has been served `tokens`, in its turn."""
        self._floor = self.level(peer)
        self._served[peer] = self._floor + tokens

    def forget(self, waiting: set[str]) -> None:
        """Drop what tells nobody apart any more; once nobody waits, all begin anew."""
        if not waiting:
            self._served.clear()
            self._floor = 0
            return
        for peer in [peer for peer, served in self._served.items() if served <= self._floor]:
            del self._served[peer]
