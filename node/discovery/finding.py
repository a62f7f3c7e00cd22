"""Records that several peers sent for one key → the servers, and whether enough peers have answered. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from swarmnode.errors import ProtocolViolation
from swarmnode.protocols.directory import AgedRecord
from swarmnode.protocols.keys import allowed_keys
from swarmnode.protocols.records import ServerRecord, open_record

__all__ = ["Merge", "newest_of"]

AGREEING_ANSWERS = 2
"""So many of the peers asked hold everything that all of them together know of, before no more are asked."""
LEAST_ANSWERS = 3
"""Before that, so many must have answered at all."""


class Merge:
    """What peers keep under one key, put together.

    Attributes:
        crowded: whether one of them says that the servers are under the bucket keys too.
    """

    def __init__(self, key: bytes) -> None:
        self.crowded = False
        self._key = key
        self._opened: dict[bytes, ServerRecord | None] = {}
        self._alive: dict[bytes, ServerRecord] = {}
        self._answers: list[frozenset[tuple[str, str]]] = []

    @property
    def records(self) -> list[ServerRecord]:
        """The newest record of each server."""
        return newest_of(self._alive.values())

    @property
    def enough(self) -> bool:
        """Whether asking more peers is not worth it: they agree, and not on nothing."""
        if len(self._answers) < LEAST_ANSWERS:
            return False
        everything = {_server(record) for record in self.records}
        agreeing = sum(everything <= answer for answer in self._answers)
        return bool(everything) and agreeing >= AGREEING_ANSWERS

    def add(self, records: Iterable[AgedRecord], *, crowded: bool) -> None:
        """What one peer answered. Records that are forged, foreign to the key or expired are left out."""
        held = set()
        for data, age_seconds in records:
            record = self._open(data)
            if record is not None and age_seconds < record.lifetime_seconds:
                self._alive[data] = record
                held.add(_server(record))
        self._answers.append(frozenset(held))
        self.crowded = self.crowded or crowded

    def _open(self, data: bytes) -> ServerRecord | None:
        if data not in self._opened:
            try:
                record = open_record(data)
            except ProtocolViolation:
                record = None
            self._opened[data] = record if record is not None and self._key in allowed_keys(record) else None
        return self._opened[data]


def _server(record: ServerRecord) -> tuple[str, str]:
    return record.peer, record.model.name


def newest_of(records: Iterable[ServerRecord]) -> list[ServerRecord]:
    """Of each server's records of a model the one with the highest sequence, in order of their blocks."""
    newest: dict[tuple[str, str], ServerRecord] = {}
    for record in records:
        server = _server(record)
        if server not in newest or newest[server].sequence < record.sequence:
            newest[server] = record
    return sorted(newest.values(), key=lambda record: (record.start, record.end, record.peer))
