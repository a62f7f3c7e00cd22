"""Kademlia's metric: how far peers are from a key. Pure."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from functools import lru_cache

from .identity import peer_id_bytes

__all__ = ["closest", "distance", "key_of"]


@lru_cache(maxsize=65536)
def key_of(peer: str) -> int:
    """A peer's place in the key space: the SHA-256 of its binary id. Raises `ValueError` for what is no peer id."""
    return int.from_bytes(hashlib.sha256(peer_id_bytes(peer)).digest(), "big")


def distance(key: bytes, peer: str) -> int:
    """XOR of a 32-byte key and a peer's place (Maymounkov and Mazières, 2002, section 2.1)."""
    return int.from_bytes(key, "big") ^ key_of(peer)


def closest(key: bytes, peers: Iterable[str], count: int) -> list[str]:
    """The up to `count` peers nearest to a 32-byte key, nearest first."""
    return heapq.nsmallest(count, peers, key=lambda peer: distance(key, peer))
