"""A record belongs under its own keys and no others."""

from __future__ import annotations

import pytest
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID

from support.said import MODEL, server_record
from swarmnode.protocols.keys import INDEX_KEY, allowed_keys, bucket_keys, distance, home_key, model_key
from swarmnode.protocols.peers import peer_to_bytes
from swarmnode.protocols.records import ModelId

NAME = MODEL.name


@pytest.mark.parametrize(
    ("start", "end", "buckets"),
    [
        (0, 1, [0]),
        (0, 32, [0]),
        (31, 33, [0, 1]),
        (32, 64, [1]),
        (0, 126, [0, 1, 2, 3]),
        (95, 97, [2, 3]),
        (992, 1024, [31]),
        (5, 5, []),
    ],
)
def test_the_buckets_of_a_span(start: int, end: int, buckets: list[int]) -> None:
    every = bucket_keys(NAME, 0, 1024)
    assert bucket_keys(NAME, start, end) == [every[bucket] for bucket in buckets]


def test_keys_are_32_bytes_and_differ() -> None:
    other = NAME + "-v2"
    keys = [INDEX_KEY, model_key(NAME), model_key(other), *bucket_keys(NAME, 0, 1024), *bucket_keys(other, 0, 1024)]
    assert {len(key) for key in keys} == {32}
    assert len(set(keys)) == len(keys)


def test_a_record_belongs_to_its_model_its_buckets_and_the_index() -> None:
    record = server_record(1, num_blocks=126, start=20, end=40)
    assert allowed_keys(record) == {INDEX_KEY, model_key(NAME), *bucket_keys(NAME, 0, 64)}


def test_the_revision_does_not_change_the_keys() -> None:
    other = server_record(1, model=ModelId(NAME, "another", bytes(32)))
    assert allowed_keys(other) == allowed_keys(server_record(1))


def test_distances_are_those_of_libp2ps_kademlia() -> None:
    peers = [server_record(number).peer for number in range(1, 30)]
    key = model_key(NAME)
    theirs = sort_peer_ids_by_distance(key, [ID.from_base58(peer) for peer in peers])
    ours = sorted(peers, key=lambda peer: distance(home_key(peer_to_bytes(peer)), key))
    assert ours == [peer.to_base58() for peer in theirs]
