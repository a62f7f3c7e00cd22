"""Under which Kademlia keys a server's record belongs: its model, its buckets of blocks, the index of models."""

from __future__ import annotations

import hashlib

from .records import ServerRecord

__all__ = ["BUCKET_BLOCKS", "INDEX_KEY", "allowed_keys", "bucket_keys", "distance", "home_key", "model_key"]

BUCKET_BLOCKS = 32
"""Blocks to a bucket: a route through the deepest models in use takes four look-ups."""

INDEX_KEY = hashlib.sha256(b"swarmnode/index/1").digest()
"""Where a few servers of every model are found, so that a swarm can be listed."""


def model_key(name: str) -> bytes:
    """The key of all servers of a model, whatever its revision: 32 bytes."""
    return hashlib.sha256(b"swarmnode/model/1\x00" + name.encode()).digest()


def bucket_keys(name: str, start: int, end: int) -> list[bytes]:
    """The keys of the buckets that the blocks `start:end` touch, first bucket first; none for an empty span."""
    if start >= end:
        return []
    first, last = start // BUCKET_BLOCKS, (end - 1) // BUCKET_BLOCKS
    return [_bucket_key(name, bucket) for bucket in range(first, last + 1)]


def _bucket_key(name: str, bucket: int) -> bytes:
    return hashlib.sha256(b"swarmnode/bucket/1\x00" + bucket.to_bytes(4, "little") + name.encode()).digest()


def allowed_keys(record: ServerRecord) -> set[bytes]:
    """Every key the record may be kept under; under any other it is refused."""
    name = record.model.name
    return {model_key(name), INDEX_KEY, *bucket_keys(name, record.start, record.end)}


def home_key(peer_bytes: bytes) -> bytes:
    """A peer's place in Kademlia's space, from the 38 bytes of its id."""
    return hashlib.sha256(peer_bytes).digest()


def distance(home: bytes, key: bytes) -> int:
    """How far a key lies from a peer's home. Kademlia hashes keys too, once more (libp2p specs, kad-dht)."""
    return int.from_bytes(home, "big") ^ int.from_bytes(hashlib.sha256(key).digest(), "big")
