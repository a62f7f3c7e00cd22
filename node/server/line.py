"""Who was told to come again, and when: places in line for a server whose cache is full. Pure.

A refusal is honest when coming again at the told time works. So whoever is refused keeps a place by the order of first
refusals, times are told one session's end apart, and who comes later does not take the room of those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmnode.node.defaults import LATE_SECONDS, MAX_PLACES

from .schedule import Priority

__all__ = ["Line"]


@dataclass(slots=True)
class _Place:
    priority: Priority
    number: int
    due: float


class Line:
    """Places of peers, at most one each. Nobody need come: a place is lost soon after its time."""

    def __init__(self, *, max_places: int = MAX_PLACES, late_seconds: float = LATE_SECONDS) -> None:
        self._max_places = max_places
        self._late_seconds = late_seconds
        self._places: dict[str, _Place] = {}
        self._number = 0

    def __len__(self) -> int:
        """How many peers have a place, some of them perhaps too late."""
        return len(self._places)

    def before(self, peer: str, priority: Priority, now: float) -> int:
        """How many stand before this peer: those of a higher class, and of its own those who came first."""
        late = [other for other, place in self._places.items() if now > place.due + self._late_seconds]
        for other in late:
            del self._places[other]
        mine = self._places.get(peer)
        rank = priority, self._number + 1 if mine is None else mine.number
        return sum((each.priority, each.number) < rank for other, each in self._places.items() if other != peer)

    def stand(self, peer: str, priority: Priority, due: float, number: int | None = None) -> None:
        """`peer` is told to come at `due`. It keeps the place it has; a new one is behind all others of its class.

        Args:
            number: of a place that it left in vain, and has again.
        """
        place = self._places.get(peer)
        if place is not None:
            place.priority, place.due = min(priority, place.priority), due
        elif len(self._places) < self._max_places:
            self._number += number is None
            self._places[peer] = _Place(priority, self._number if number is None else number, due)

    def leave(self, peer: str) -> int | None:
        """`peer` is let in; the number of its place, if it had one."""
        place = self._places.pop(peer, None)
        return None if place is None else place.number
