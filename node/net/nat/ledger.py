"""What a relay promises and to whom: reservations, circuits, their bounds. Plain decisions; `now` is an argument."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "CIRCUIT_BYTES_PER_SECOND",
    "MAX_CIRCUIT_SECONDS",
    "MAX_IDLE_SECONDS",
    "RESERVATION_SECONDS",
    "Ledger",
    "Pace",
    "Status",
]

RESERVATION_SECONDS = 3600.0
"""How long a reservation holds unless renewed: libp2p's custom, long beside a renewal, short beside a dead peer."""
MAX_RESERVATIONS = 256
"""Peers that may be reached through us. Each costs an idle connection and a line here."""
MAX_RESERVATIONS_PER_HOST = 16
"""Of these, behind one IP address: a house full of servers, but not all of our places."""
MAX_CIRCUITS = 128
"""Relayed connections at a time: each may use `CIRCUIT_BYTES_PER_SECOND` of our line and half a megabyte of buffers."""
MAX_CIRCUITS_PER_PEER = 16
"""Of these, those of one peer, at either end."""
MAX_CIRCUIT_SECONDS = 24 * 3600.0
"""A circuit ends after a day. Who needs a relay that long finds another, or has it again."""
MAX_IDLE_SECONDS = 600.0
"""A circuit that carries nothing for so long ends: a session pings, so this one is forgotten."""
CIRCUIT_BYTES_PER_SECOND = 2 * 1024 * 1024
"""What a circuit may carry each way, on average. A step of one token is 5 KiB of it, a long prompt a few seconds."""
BURST_BYTES = 4 * 1024 * 1024
"""So much may go at once after a pause, so that a prefill of a small model is not slowed at all."""


class Status(IntEnum):
    """How a relay answers; the numbers are those of circuit relay v2."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True, slots=True)
class _Reservation:
    host: str
    until: float


class Ledger:
    """The books of one relay."""

    def __init__(self) -> None:
        self._reservations: dict[str, _Reservation] = {}
        self._circuits: Counter[str] = Counter()
        self._open = 0

    @property
    def reservations(self) -> int:
        return len(self._reservations)

    @property
    def circuits(self) -> int:
        return self._open

    def reserve(self, peer: str, host: str, now: float) -> Status:
        """Take or renew a place for a peer, which is seen at `host`: whoever holds it has few places."""
        self.expire(now)
        if peer not in self._reservations:
            neighbours = sum(each.host == host for each in self._reservations.values())
            if len(self._reservations) >= MAX_RESERVATIONS or neighbours >= MAX_RESERVATIONS_PER_HOST:
                return Status.RESERVATION_REFUSED
        self._reservations[peer] = _Reservation(host, now + RESERVATION_SECONDS)
        return Status.OK

    def begin(self, source: str, target: str, now: float) -> Status:
        """Take a circuit between two peers; `end` it when it was OK."""
        self.expire(now)
        if source == target:
            return Status.PERMISSION_DENIED
        if target not in self._reservations:
            return Status.NO_RESERVATION
        busiest = max(self._circuits[source], self._circuits[target])
        if self._open >= MAX_CIRCUITS or busiest >= MAX_CIRCUITS_PER_PEER:
            return Status.RESOURCE_LIMIT_EXCEEDED
        self._open += 1
        self._circuits.update((source, target))
        return Status.OK

    def end(self, source: str, target: str) -> None:
        """Give a circuit back."""
        self._open -= 1
        self._circuits.subtract((source, target))
        self._circuits = +self._circuits

    def release(self, peer: str) -> None:
        """Forget the reservation of a peer that has gone."""
        self._reservations.pop(peer, None)

    def expire(self, now: float) -> None:
        """Forget the reservations that were not renewed."""
        self._reservations = {peer: each for peer, each in self._reservations.items() if each.until > now}


class Pace:
    """How long whoever carries bytes has to wait, so that on average no more than a rate goes through."""

    def __init__(
        self, now: float, bytes_per_second: float = CIRCUIT_BYTES_PER_SECOND, burst: int = BURST_BYTES
    ) -> None:
        self._rate = bytes_per_second
        self._burst = burst
        self._left = float(burst)
        self._at = now

    def delay_seconds(self, size: int, now: float) -> float:
        """Account for so many bytes; the seconds to wait before the next."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - size
        self._at = now
        return max(0.0, -self._left / self._rate)
