"""Whatever is offered in whatever order, the store's promises hold."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.said import peer_of, server_key, signed_server
from swarmnode.protocols import limits, store
from swarmnode.protocols.keys import INDEX_KEY, allowed_keys, bucket_keys, home_key, model_key
from swarmnode.protocols.peers import peer_to_bytes
from swarmnode.protocols.records import ModelId, ServerRecord, open_record
from swarmnode.protocols.store import RecordStore

NAMES = ("org/a", "org/b")
SPANS = ((0, 32), (0, 64), (32, 64), (10, 20))
SERVERS = 8
KEYS = [INDEX_KEY, *(model_key(name) for name in NAMES), *(key for name in NAMES for key in bucket_keys(name, 0, 64))]


@cache
def offered(number: int, name: str, sequence: int, span: tuple[int, int]) -> bytes:
    return signed_server(
        number,
        model=ModelId(name, "main", bytes(32)),
        sequence=sequence,
        num_blocks=64,
        start=span[0],
        end=span[1],
        lifetime_seconds=40.0,
    )


@cache
def opened(data: bytes) -> ServerRecord:
    return open_record(data)


class StoreMachine(RuleBasedStateMachine):
    """Offers, handing on, refreshing and time, against a record of what was accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(limits, "MAX_RECORDS_PER_KEY", 3)
        self.patch.setattr(store, "MAX_RECORDS", 6)
        self.patch.setattr(store, "MAX_RECORDS_PER_PEER", 1)
        self.patch.setattr(store, "MAX_INDEX_RECORDS_PER_MODEL", 2)
        self.now = 0.0
        self.accepted: dict[tuple[str, str], tuple[int, float]] = {}  # newest sequence, when it must be gone

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(at_home=st.booleans())
    def open(self, at_home: bool) -> None:
        self.store = RecordStore(home_key(peer_to_bytes(peer_of(server_key(99)))) if at_home else None)

    def _offer(self, key: bytes, data: bytes, age: float) -> bool:
        record = opened(data)
        server = record.peer, record.model.name
        known = self.accepted.get(server)
        if known is not None and self.now >= known[1] + store.TOMBSTONE_SECONDS:
            known = None
        verdict = self.store.offer(key, data, age, self.now)
        if verdict.newest_sequence is not None:
            assert known is not None
            assert verdict.newest_sequence == known[0] >= record.sequence
        if not verdict.stored:
            assert verdict.reason
            # A newer record counts as soon as it is heard where the older one lies, room under this key or not.
            if known is None or record.sequence <= known[0] or not self._holds(data):
                return False
        assert key in allowed_keys(record) or not verdict.stored
        expires = self.now + record.lifetime_seconds - age
        if known is not None:
            assert record.sequence >= known[0], "an older record came after a newer one"
            if record.sequence == known[0]:
                expires = min(expires, known[1])
        assert expires > self.now
        self.accepted[server] = record.sequence, expires
        return verdict.stored

    def _holds(self, data: bytes) -> bool:
        return any(data == found for key in KEYS for found, _ in self.store.find(key, self.now).records)

    @rule(
        data=st.builds(
            offered,
            number=st.integers(1, SERVERS),
            name=st.sampled_from(NAMES),
            sequence=st.integers(1, 6),
            span=st.sampled_from(SPANS),
        ),
        key=st.sampled_from(KEYS),
        age=st.sampled_from([0.0, 0.0, 1.0, 39.0, 40.0]),
    )
    def offer(self, data: bytes, key: bytes, age: float) -> None:
        self._offer(key, data, age)

    @rule(key=st.sampled_from(KEYS), other=st.sampled_from(KEYS), liar=st.booleans())
    def hand_on(self, key: bytes, other: bytes, liar: bool) -> None:
        for data, age in self.store.find(key, self.now).records:
            self._offer(other, data, 0.0 if liar else age)

    @rule(key=st.sampled_from(KEYS))
    def refresh(self, key: bytes) -> None:
        """Whoever is in may stay, however full it is."""
        for data, _ in self.store.find(key, self.now).records:
            record = opened(data)
            number = next(n for n in range(1, SERVERS + 1) if peer_of(server_key(n)) == record.peer)
            newer = offered(number, record.model.name, record.sequence + 1, (record.start, record.end))
            assert self._offer(key, newer, 0.0)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0, 40.0, store.TOMBSTONE_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.store.expire(self.now)
        keys = self.store.keys()
        assert all(self.store.find(key, self.now).records for key in keys)

    @invariant()
    def promises(self) -> None:
        servers = set()
        for key in KEYS:
            found = self.store.find(key, self.now).records
            assert len(found) <= 3
            records = [opened(data) for data, _ in found]
            assert len({(record.peer, record.model.name) for record in records}) == len(records)
            for (_, age), record in zip(found, records, strict=True):
                assert key in allowed_keys(record)
                sequence, expires = self.accepted[record.peer, record.model.name]
                assert record.sequence == sequence
                assert self.now + (record.lifetime_seconds - age) <= expires + 1e-6
                assert 0 <= age < record.lifetime_seconds
                servers.add((record.peer, record.model.name))
            if key == INDEX_KEY:
                assert all(sum(r.model.name == name for r in records) <= 2 for name in NAMES)
        assert len(servers) <= len(self.store) <= 6
        assert len({peer for peer, _ in servers}) == len(servers)


StoreMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStoreMachine = StoreMachine.TestCase
