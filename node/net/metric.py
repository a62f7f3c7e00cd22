"""Kademlia's metric: how far peers are from a key. Pure."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from functools import lru_cache

import base58

__all__ = ["closest", "distance"]


@lru_cache(maxsize=65536)
def _place(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest(), "big")


@lru_cache(maxsize=65536)
def _place_of(peer: str) -> int:
    return _place(base58.b58decode(peer))


def distance(key: bytes, peer: str) -> int:
    """How far a peer is from a key: XOR of the SHA-256 of the key and of the binary peer id (libp2p specs, kad-dht).

    Raises `ValueError` for what is no peer id.
    """
    return _place(key) ^ _place_of(peer)


def closest(key: bytes, peers: Iterable[str], count: int) -> list[str]:
    """The up to `count` peers nearest to a key, nearest first."""
    return heapq.nsmallest(count, peers, key=lambda peer: distance(key, peer))
