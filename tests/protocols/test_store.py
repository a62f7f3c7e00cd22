"""What the store keeps, for how long, and whom it turns away; each rule by itself."""

from __future__ import annotations

import math

import pytest

from support.said import MODEL, peer_of, server_key, signed_server
from swarmnode.protocols import limits, store
from swarmnode.protocols.directory import Verdict
from swarmnode.protocols.keys import INDEX_KEY, bucket_keys, distance, home_key, model_key
from swarmnode.protocols.peers import peer_to_bytes
from swarmnode.protocols.records import ModelId, ServerRecord, open_record
from swarmnode.protocols.store import RecordStore

KEY = model_key(MODEL.name)
STORED = Verdict(True)


def model(number: int) -> ModelId:
    return ModelId(f"org/model-{number}", "main", bytes([number % 256]) * 32)


def sequences(kept: RecordStore, key: bytes, now: float) -> list[int]:
    return [open_record(data).sequence for data, _ in kept.find(key, now).records]


def test_a_record_is_found_with_its_age_until_its_lifetime_is_over() -> None:
    kept = RecordStore()
    data = signed_server(1, lifetime_seconds=45.0)
    assert kept.offer(KEY, data, 5, now=100) == STORED
    assert kept.find(KEY, now=100).records == ((data, 5.0),)
    assert kept.find(KEY, now=139.5).records == ((data, 44.5),)
    assert kept.find(KEY, now=140).records == ()
    assert kept.find(INDEX_KEY, now=100).records == ()


def test_a_record_is_kept_under_its_own_keys_only() -> None:
    kept = RecordStore()
    data = signed_server(1, num_blocks=126, start=40, end=60)
    for key in (KEY, INDEX_KEY, *bucket_keys(MODEL.name, 40, 60)):
        assert kept.offer(key, data, 0, now=0) == STORED
    for key in (bytes(32), b"", model_key("other"), *bucket_keys(MODEL.name, 0, 32), *bucket_keys(MODEL.name, 64, 65)):
        assert kept.offer(key, data, 0, now=0).reason == "The key is not one of the record's own."
    assert len(kept) == 1
    assert set(kept.keys()) == {KEY, INDEX_KEY, *bucket_keys(MODEL.name, 40, 60)}


def test_what_is_no_record_is_not_kept() -> None:
    kept = RecordStore()
    data = signed_server(1)
    assert kept.offer(KEY, b"", 0, now=0).reason.startswith("A record must have")
    assert kept.offer(KEY, data[:-1] + b"\x00", 0, now=0).stored is False
    assert kept.offer(KEY, bytes(64) + data[64:], 0, now=0).reason == (
        "A record is not signed by the peer it speaks of."
    )
    assert len(kept) == 0


@pytest.mark.parametrize("age", [-1.0, 60.1, math.nan, math.inf])
def test_an_age_must_make_sense(age: float) -> None:
    assert RecordStore().offer(KEY, signed_server(1), age, now=0).reason == "The age of the record makes no sense."


def test_a_record_is_verified_once_for_all_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[bytes] = []

    def open_and_count(data: bytes) -> ServerRecord:
        verified.append(data)
        return open_record(data)

    monkeypatch.setattr(store, "open_record", open_and_count)
    kept = RecordStore()
    older, newer = (signed_server(1, sequence=sequence) for sequence in (1, 2))
    for data in (older, newer):
        for key in (KEY, INDEX_KEY):
            assert kept.offer(key, data, 0, now=0) == STORED
    assert verified == [older, newer]
    forged = newer[:-1] + bytes([newer[-1] ^ 1])
    assert not kept.offer(KEY, forged, 0, now=0).stored
    assert not kept.offer(KEY, older, 0, now=0).stored  # kept no more: it is looked at again
    assert verified == [older, newer, forged, older]


def test_an_expired_record_is_refused() -> None:
    assert RecordStore().offer(KEY, signed_server(1, lifetime_seconds=30.0), 30, now=0).reason == (
        "The record has expired."
    )


def test_the_newest_sequence_wins_in_whatever_order() -> None:
    kept = RecordStore()
    for sequence in (3, 1, 7, 5):
        kept.offer(KEY, signed_server(1, sequence=sequence), 0, now=0)
    assert sequences(kept, KEY, 0) == [7]
    refused = kept.offer(KEY, signed_server(1, sequence=6), 0, now=1)
    assert refused == Verdict(False, "A newer record of this server is known.", newest_sequence=7)


def test_handing_on_never_lengthens_a_life() -> None:
    kept = RecordStore()
    data = signed_server(1, lifetime_seconds=40.0)
    assert kept.offer(KEY, data, 10, now=0).stored
    assert kept.offer(KEY, data, 0, now=10).stored
    assert kept.offer(INDEX_KEY, data, 0, now=20).stored
    assert kept.find(KEY, now=29.9).records[0][1] == pytest.approx(39.9)
    assert kept.find(KEY, now=30).records == ()
    assert kept.find(INDEX_KEY, now=30).records == ()
    # Nor does a peer that tells the truth later shorten it less.
    other = signed_server(2, lifetime_seconds=40.0)
    kept.offer(KEY, other, 0, now=30)
    kept.offer(KEY, other, 25, now=31)
    assert kept.find(KEY, now=46).records == ()


def test_an_expired_record_sent_again_is_refused_for_as_long_as_it_is_remembered() -> None:
    kept = RecordStore()
    data = signed_server(1, sequence=5, lifetime_seconds=40.0)
    older = signed_server(1, sequence=4)
    kept.offer(KEY, data, 0, now=0)
    kept.expire(now=40)
    assert len(kept) == 0
    assert kept.keys() == []
    again = kept.offer(KEY, data, 0, now=50)
    assert again == Verdict(False, "The record has expired.", newest_sequence=5)
    assert kept.offer(KEY, older, 0, now=50).newest_sequence == 5
    assert kept.offer(KEY, older, 0, now=40 + store.TOMBSTONE_SECONDS - 1).newest_sequence == 5
    assert kept.offer(KEY, older, 0, now=40 + store.TOMBSTONE_SECONDS) == STORED


def test_an_owner_that_lost_count_can_go_on() -> None:
    kept = RecordStore()
    kept.offer(KEY, signed_server(1, sequence=9_000), 0, now=0)
    verdict = kept.offer(KEY, signed_server(1, sequence=1), 0, now=100)
    assert verdict.newest_sequence is not None
    assert kept.offer(KEY, signed_server(1, sequence=verdict.newest_sequence + 1), 0, now=100) == STORED


def test_two_records_of_one_sequence() -> None:
    kept = RecordStore()
    first, second = (signed_server(1, sequence=5, public_name=name) for name in ("one", "two"))
    assert kept.offer(KEY, first, 0, now=0) == STORED
    assert kept.offer(KEY, second, 0, now=0) == Verdict(
        False, "Another record with this sequence number is known.", newest_sequence=5
    )
    assert kept.find(KEY, now=0).records == ((first, 0.0),)


def test_a_newer_record_replaces_the_older_under_all_its_keys() -> None:
    kept = RecordStore()
    first, second, third = bucket_keys(MODEL.name, 0, 96)
    old = signed_server(1, sequence=1, num_blocks=96, start=0, end=64)
    for key in (KEY, first, second):
        kept.offer(key, old, 0, now=0)
    new = signed_server(1, sequence=2, num_blocks=96, start=32, end=96)
    assert kept.offer(third, new, 0, now=1) == STORED
    for key in (KEY, second, third):
        assert kept.find(key, now=1).records == ((new, 0.0),)
    assert kept.find(first, now=1).records == ()
    assert set(kept.keys()) == {KEY, second, third}


def test_one_peer_has_few_places() -> None:
    kept = RecordStore()
    for number in range(store.MAX_RECORDS_PER_PEER):
        assert kept.offer(model_key(model(number).name), signed_server(1, model=model(number)), 0, now=0) == STORED
    late = model(99)
    verdict = kept.offer(model_key(late.name), signed_server(1, model=late), 0, now=0)
    assert verdict.reason == "The peer has 4 records here already."
    assert kept.offer(model_key(late.name), signed_server(2, model=late), 0, now=0) == STORED
    assert kept.offer(model_key(late.name), signed_server(1, model=late), 0, now=60) == STORED


def test_a_full_key_keeps_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RECORDS_PER_KEY", 4)
    kept = RecordStore()
    for number in range(1, 5):
        assert kept.offer(KEY, signed_server(number), 0, now=0) == STORED
    assert kept.offer(KEY, signed_server(5), 0, now=0).reason == "The key is full of records that cannot be spared."
    assert kept.offer(KEY, signed_server(4, sequence=2_000), 0, now=30) == STORED
    assert kept.offer(KEY, signed_server(5), 0, now=46) == STORED  # three have expired


def test_the_only_server_of_some_blocks_gets_into_a_full_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RECORDS_PER_KEY", 4)
    kept = RecordStore()
    for number in range(1, 5):
        kept.offer(KEY, signed_server(number, start=0, end=10), 0, now=0)
    assert kept.offer(KEY, signed_server(5, start=20, end=30), 0, now=0) == STORED
    peers = [open_record(data).peer for data, _ in kept.find(KEY, now=0).records]
    assert peers == [peer_of(server_key(number)) for number in (1, 2, 3, 5)]
    # The one that went is remembered: the same record cannot come back with a younger age.
    assert len(kept) == 4
    assert kept.offer(INDEX_KEY, signed_server(4), 0, now=45).reason == "The record has expired."


def test_the_index_holds_few_of_a_model_and_room_for_many_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RECORDS_PER_KEY", 5)
    kept = RecordStore()
    verdicts = [kept.offer(INDEX_KEY, signed_server(number), 0, now=0) for number in range(1, 5)]
    assert [verdict.stored for verdict in verdicts] == [True, True, True, False]
    assert verdicts[-1].reason == "The index has enough records of this model."
    for number in range(5, 9):
        assert kept.offer(INDEX_KEY, signed_server(number, model=model(number)), 0, now=0) == STORED
    names = [open_record(data).model.name for data, _ in kept.find(INDEX_KEY, now=0).records]
    assert sorted(names) == [MODEL.name, *(model(number).name for number in range(5, 9))]
    verdict = kept.offer(INDEX_KEY, signed_server(9, model=model(9)), 0, now=0)
    assert verdict.reason == "The key is full of records that cannot be spared."


def test_a_full_store_keeps_what_is_nearest_to_its_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_RECORDS", 6)
    home = home_key(peer_to_bytes(peer_of(server_key(77))))
    by_distance = sorted(range(20), key=lambda number: distance(home, model_key(model(number).name)))
    kept = RecordStore(home)
    for number in range(20):
        kept.offer(model_key(model(number).name), signed_server(number + 1, model=model(number)), 0, now=0)
    assert len(kept) == 6
    assert set(kept.keys()) == {model_key(model(number).name) for number in by_distance[:6]}


def test_a_full_store_without_a_home_takes_nobody_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_RECORDS", 2)
    kept = RecordStore()
    for number in (1, 2):
        assert kept.offer(KEY, signed_server(number), 0, now=0) == STORED
    assert kept.offer(KEY, signed_server(3), 0, now=0).reason == "The store is full of records that lie nearer."
    assert kept.offer(KEY, signed_server(3), 0, now=60) == STORED


def test_a_place_made_under_the_key_is_a_place_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_RECORDS", 4)
    monkeypatch.setattr(limits, "MAX_RECORDS_PER_KEY", 4)
    kept = RecordStore()
    for number in range(1, 5):
        kept.offer(KEY, signed_server(number, start=0, end=10), 0, now=0)
    assert kept.offer(KEY, signed_server(5, start=20, end=30), 0, now=0) == STORED
    assert len(kept) == 4


def test_memory_of_the_past_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_TOMBSTONES", 3)
    kept = RecordStore()
    for number in range(1, 6):
        kept.offer(KEY, signed_server(number), 0, now=number)
    kept.expire(now=100)
    verdicts = [kept.offer(KEY, signed_server(number), 0, now=100).stored for number in range(1, 6)]
    assert verdicts == [True, True, False, False, False]


def test_a_crowd_is_announced_before_the_key_is_full() -> None:
    kept = RecordStore()
    verdicts = [kept.offer(KEY, signed_server(number), 0, now=0) for number in range(1, store.CROWDED_RECORDS + 1)]
    assert [verdict.crowded for verdict in verdicts] == [False] * (store.CROWDED_RECORDS - 1) + [True]
    assert kept.find(KEY, now=0).crowded
    assert not kept.find(KEY, now=60).crowded


def test_the_first_of_a_model_keeps_its_place_in_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RECORDS_PER_KEY", 4)
    kept = RecordStore()
    for number in (1, 2, 3):
        kept.offer(INDEX_KEY, signed_server(number), 0, now=0)
    for number in (4, 5, 6):
        assert kept.offer(INDEX_KEY, signed_server(number, model=model(number)), 0, now=0) == STORED
    peers = [open_record(data).peer for data, _ in kept.find(INDEX_KEY, now=0).records]
    assert peers == [peer_of(server_key(number)) for number in (1, 4, 5, 6)]


def test_a_server_that_moved_away_and_found_no_room_is_remembered_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RECORDS_PER_KEY", 2)
    kept = RecordStore()
    first, second = bucket_keys(MODEL.name, 0, 64)
    for number in (1, 2):
        kept.offer(second, signed_server(number, num_blocks=64, start=32, end=64), 0, now=0)
    assert kept.offer(first, signed_server(3, sequence=1, num_blocks=64, start=0, end=32), 0, now=0) == STORED
    moved = signed_server(3, sequence=2, num_blocks=64, start=32, end=64)
    assert kept.offer(second, moved, 0, now=0).reason == "The key is full of records that cannot be spared."
    assert len(kept) == 2
    assert kept.find(first, now=0).records == ()
    older = kept.offer(first, signed_server(3, sequence=1, num_blocks=64, start=0, end=32), 0, now=0)
    assert older.newest_sequence == 2


def test_nothing_is_left_when_all_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RECORDS_PER_KEY", 3)
    kept = RecordStore(bytes(32))
    for number in range(1, 10):
        for key in (KEY, INDEX_KEY, bytes(32)):
            kept.offer(key, signed_server(number), 0, now=0)
    kept.expire(now=60)
    kept.expire(now=60 + store.TOMBSTONE_SECONDS)
    held = {name: value for name, value in vars(kept).items() if isinstance(value, dict | list)}
    assert len(held) == 6
    assert not any(held.values())
