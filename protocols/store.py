"""The records a peer keeps for others, under the keys they belong to. Pure: `now` is an argument, nothing is sent.

What holds, whoever announces: a record is kept under its own keys only, never beyond the lifetime it was signed with,
however often it is handed on; the newest sequence of a server wins under all its keys at once; and every collection has
a bound. A server is known by its peer id and the name of the model it serves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from swarmnode.errors import ProtocolViolation

from . import limits
from .crowding import Covering, spared
from .directory import Found, Verdict
from .keys import INDEX_KEY, allowed_keys, distance
from .records import ServerRecord, open_record

__all__ = [
    "CROWDED_RECORDS",
    "MAX_INDEX_RECORDS_PER_MODEL",
    "MAX_RECORDS",
    "MAX_RECORDS_PER_PEER",
    "MAX_TOMBSTONES",
    "TOMBSTONE_SECONDS",
    "RecordStore",
]

MAX_RECORDS = 4096  # 16 MiB at the very most
MAX_RECORDS_PER_PEER = 4  # a peer serves one model, or moves from one to another
MAX_INDEX_RECORDS_PER_MODEL = 3  # enough to learn of a model while one of its servers dies
CROWDED_RECORDS = limits.MAX_RECORDS_PER_KEY // 2  # owners learn of the crowd well before places run out
TOMBSTONE_SECONDS = 600.0  # how long an expired record's sequence is remembered, so that it is not taken again
MAX_TOMBSTONES = 2 * MAX_RECORDS

_Server = tuple[str, str]  # peer id, model name


@dataclass(slots=True)
class _Kept:
    """The newest record of a server and the keys it is kept under."""

    server: _Server
    record: ServerRecord
    data: bytes
    expires: float
    distance: int
    keys: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Tombstone:
    sequence: int
    expires: float  # of the record: it cannot live longer when it comes again
    forget: float


class _DeclinedError(Exception):
    """An offered record is not kept."""

    def __init__(self, reason: str, newest_sequence: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.newest_sequence = newest_sequence


class RecordStore:
    """The part of the directory that one peer holds.

    Args:
        home: our own key (`keys.home_key`). When the store is full, records nearer to it are worth more, since the
            swarm looks for those here; without it a full store takes nobody new.
    """

    def __init__(self, home: bytes | None = None) -> None:
        self._home = home
        self._kept: dict[_Server, _Kept] = {}
        self._by_data: dict[bytes, _Kept] = {}  # a record comes once for each of its keys; it is verified once
        self._under: dict[bytes, dict[_Server, _Kept]] = {}  # in order of arrival under the key
        self._by_distance: list[tuple[int, _Server]] = []
        self._of_peer: dict[str, int] = {}
        self._tombstones: OrderedDict[_Server, _Tombstone] = OrderedDict()

    def __len__(self) -> int:
        """How many servers' records are kept, those included that expired since `expire` was last called."""
        return len(self._kept)

    def keys(self) -> list[bytes]:
        """The keys that something is kept under."""
        return list(self._under)

    def offer(self, key: bytes, data: bytes, age_seconds: float, now: float) -> Verdict:
        """Keep a record under a key, if it is sound and there is room.

        Args:
            key: 32 bytes, one of the record's own keys.
            data: the signed record as it came.
            age_seconds: how much of its lifetime has passed, as the announcing peer says. Understating it
                gains a record at most its own lifetime here, once.
            now: seconds on any clock that never goes back.
        """
        try:
            new = self._open(key, data, age_seconds, now)
            self._place(key, new, now)
        except _DeclinedError as declined:
            return Verdict(False, declined.reason, declined.newest_sequence, self._crowded(key))
        return Verdict(True, crowded=self._crowded(key))

    def find(self, key: bytes, now: float) -> Found:
        """What is kept under a key, with ages as of now."""
        alive = [kept for kept in self._under.get(key, {}).values() if kept.expires > now]
        records = tuple((kept.data, max(0.0, kept.record.lifetime_seconds - (kept.expires - now))) for kept in alive)
        return Found(records, len(alive) >= CROWDED_RECORDS)

    def expire(self, now: float) -> None:
        """Drop what has outlived its lifetime. To be called now and then; nothing expired is found meanwhile."""
        self._bury_expired(self._kept, now)
        while self._tombstones and next(iter(self._tombstones.values())).forget <= now:
            self._tombstones.popitem(last=False)

    def _open(self, key: bytes, data: bytes, age_seconds: float, now: float) -> _Kept:
        """The offered record, if it is sound, belongs under the key, lives, and no newer one is known."""
        same = self._by_data.get(data)
        try:
            record = same.record if same is not None else open_record(data)
        except ProtocolViolation as violation:
            raise _DeclinedError(violation.message) from None
        if key not in allowed_keys(record):
            raise _DeclinedError("The key is not one of the record's own.")
        if not 0 <= age_seconds <= limits.MAX_LIFETIME_SECONDS:
            raise _DeclinedError("The age of the record makes no sense.")
        server = record.peer, record.model.name
        expires = now + record.lifetime_seconds - age_seconds
        newest = self._newest(server, now)
        if newest is not None:
            if record.sequence < newest.sequence:
                raise _DeclinedError("A newer record of this server is known.", newest.sequence)
            if record.sequence == newest.sequence:
                kept = self._kept.get(server)
                if kept is not None and kept.data != data:
                    raise _DeclinedError("Another record with this sequence number is known.", newest.sequence)
                expires = min(expires, newest.expires)
        if expires <= now:
            in_the_way = newest is not None and newest.sequence >= record.sequence
            raise _DeclinedError("The record has expired.", record.sequence if in_the_way else None)
        return _Kept(server, record, data, expires, self._distance(key))

    def _newest(self, server: _Server, now: float) -> _Tombstone | None:
        """What is known of a server's newest record, alive or not."""
        kept = self._kept.get(server)
        tombstone = self._tombstones.get(server) if kept is None else _tombstone(kept)
        return tombstone if tombstone is not None and tombstone.forget > now else None

    def _place(self, key: bytes, new: _Kept, now: float) -> None:
        """Keep a record that is sound and newest, in the places of the server's older one and under the key."""
        kept = self._kept.get(new.server)
        if kept is not None:
            del self._by_data[kept.data]
            kept.record, kept.data, kept.expires = new.record, new.data, new.expires
            self._by_data[kept.data] = kept
            for left in kept.keys - allowed_keys(new.record):
                self._remove_from(left, kept)
            if key in kept.keys:
                return
        try:
            self._make_room(key, new, now)
        except _DeclinedError:
            if kept is not None and not kept.keys:
                self._bury(kept)
            raise
        if kept is None:
            kept = new
            self._add(kept)
        kept.keys.add(key)
        self._under.setdefault(key, {})[kept.server] = kept

    def _make_room(self, key: bytes, new: _Kept, now: float) -> None:
        """Room for one more under the key and, for a server not known yet, in the store; or nothing is changed."""
        self._bury_expired(self._under.get(key, {}), now)
        another_server = new.server not in self._kept
        if another_server and (len(self._kept) >= MAX_RECORDS or new.record.peer in self._of_peer):
            self.expire(now)
        loser = self._loser_under(key, new.record)
        if another_server:
            if self._of_peer.get(new.record.peer, 0) >= MAX_RECORDS_PER_PEER:
                raise _DeclinedError(f"The peer has {MAX_RECORDS_PER_PEER} records here already.")
            if len(self._kept) >= MAX_RECORDS and (loser is None or len(loser.keys) > 1):
                farthest, server = self._by_distance[-1]
                if new.distance >= farthest:
                    raise _DeclinedError("The store is full of records that lie nearer.")
                self._bury(self._kept[server])
        if loser is not None and key in loser.keys:
            self._remove_from(key, loser)
            if not loser.keys:
                self._bury(loser)

    def _loser_under(self, key: bytes, new: ServerRecord) -> _Kept | None:
        """Who must leave the key for the newcomer; None when there is a place free."""
        present = list(self._under.get(key, {}).values())
        if key == INDEX_KEY:
            models = Counter(kept.record.model.name for kept in present)
            if models[new.model.name] >= MAX_INDEX_RECORDS_PER_MODEL:
                raise _DeclinedError("The index has enough records of this model.")
            if len(present) < limits.MAX_RECORDS_PER_KEY:
                return None
            doubled = [kept for kept in present if models[kept.record.model.name] > 1]
            if doubled and not models[new.model.name]:
                return doubled[-1]
        else:
            if len(present) < limits.MAX_RECORDS_PER_KEY:
                return None
            index = spared([_covering(kept.record) for kept in present], _covering(new))
            if index is not None:
                return present[index]
        raise _DeclinedError("The key is full of records that cannot be spared.")

    def _crowded(self, key: bytes) -> bool:
        return len(self._under.get(key, ())) >= CROWDED_RECORDS

    def _distance(self, key: bytes) -> int:
        return 0 if self._home is None else distance(self._home, key)

    def _add(self, kept: _Kept) -> None:
        self._kept[kept.server] = self._by_data[kept.data] = kept
        self._of_peer[kept.record.peer] = self._of_peer.get(kept.record.peer, 0) + 1
        self._tombstones.pop(kept.server, None)
        insort(self._by_distance, (kept.distance, kept.server))

    def _remove_from(self, key: bytes, kept: _Kept) -> None:
        kept.keys.discard(key)
        servers = self._under[key]
        del servers[kept.server]
        if not servers:
            del self._under[key]

    def _bury_expired(self, among: dict[_Server, _Kept], now: float) -> None:
        for kept in [kept for kept in among.values() if kept.expires <= now]:
            self._bury(kept)

    def _bury(self, kept: _Kept) -> None:
        """Forget a record but not its sequence."""
        for key in list(kept.keys):
            self._remove_from(key, kept)
        del self._kept[kept.server], self._by_data[kept.data]
        del self._by_distance[bisect_left(self._by_distance, (kept.distance, kept.server))]
        peer = kept.server[0]
        self._of_peer[peer] -= 1
        if not self._of_peer[peer]:
            del self._of_peer[peer]
        self._tombstones[kept.server] = _tombstone(kept)
        if len(self._tombstones) > MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)


def _tombstone(kept: _Kept) -> _Tombstone:
    return _Tombstone(kept.record.sequence, kept.expires, kept.expires + TOMBSTONE_SECONDS)


def _covering(record: ServerRecord) -> Covering:
    return Covering((record.model.digest, record.num_blocks), record.start, record.end)
