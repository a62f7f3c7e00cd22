"""What is known of the way to a peer, and what the messages of a session teach about it. Knows no stream, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["Link", "LinkMeter"]

TELLING_BYTES: Final = 1024 * 1024
"""Shorter messages vanish in buffers on the way and say nothing of the link's rate."""

WEIGHT: Final = 0.25
"""Of the newest sample in the mean."""


@dataclass(frozen=True, slots=True)
class Link:
    """The way to a peer.

    Attributes:
        near: it is on this machine, so that nothing goes over a wire.
        bits_per_second: as the transport measured it; None when it did not.
        at_most_bits_per_second: what goes at most now, by the transport's window or by how quickly our own long
            messages were taken. The true rate is not above it, but may be far below.
        round_trip_seconds: None when unknown.
    """

    near: bool = False
    bits_per_second: float | None = None
    at_most_bits_per_second: float | None = None
    round_trip_seconds: float | None = None


class LinkMeter:
    """Learns from what a session sends anyway: long messages, and pings."""

    def __init__(self) -> None:
        self._at_most: float | None = None
        self._round_trip: float | None = None

    def sent(self, message_bytes: int, seconds: float) -> None:
        """A message went out; it took so long until all of it was taken."""
        if message_bytes >= TELLING_BYTES and seconds > 0:
            self._at_most = _mean(self._at_most, 8 * message_bytes / seconds)

    def answered(self, seconds: float) -> None:
        """A ping was answered. The quickest answer is the one that waited least for the programs at both ends."""
        self._round_trip = seconds if self._round_trip is None else min(self._round_trip, seconds)

    def link(self, known: Link) -> Link:
        """What the network knows of the way, and what was learnt besides."""
        return replace(
            known,
            at_most_bits_per_second=min(
                (each for each in (known.at_most_bits_per_second, self._at_most) if each is not None), default=None
            ),
            round_trip_seconds=self._round_trip if known.round_trip_seconds is None else known.round_trip_seconds,
        )


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
