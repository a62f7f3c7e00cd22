"""Peer ids: text, bytes and Ed25519 keys. A peer id of ours holds its public key, so a signature needs no other lookup.

libp2p's peer id is a multihash of the protobuf-encoded public key; for keys as short as Ed25519's it is the identity
multihash, the key itself behind six fixed bytes (libp2p specs, peer-ids). Other key types are not spoken here.
"""

from __future__ import annotations

import base58

from swarmnode.errors import ProtocolViolation

from . import limits

__all__ = ["check_peer", "peer_from_bytes", "peer_from_public_key", "peer_to_bytes", "public_key_of"]

_PUBLIC_KEY_BYTES = 32
# multihash identity (0x00) of 36 bytes; protobuf field 1 (key type) = 1, Ed25519; field 2 (data), 32 bytes
_ED25519_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


def peer_to_bytes(peer: str) -> bytes:
    """The 38 bytes of a peer id's multihash. Raises `ProtocolViolation` when it is not an Ed25519 peer id."""
    if len(peer) > limits.MAX_PEER_CHARS:
        raise ProtocolViolation(f"A peer id has at most {limits.MAX_PEER_CHARS} characters, not {len(peer)}.")
    try:
        data = base58.b58decode(peer.encode("ascii"))
    except ValueError:
        raise ProtocolViolation("A peer id is not base58 text.") from None
    if len(data) != len(_ED25519_PREFIX) + _PUBLIC_KEY_BYTES or not data.startswith(_ED25519_PREFIX):
        raise ProtocolViolation("A peer id is not that of an Ed25519 key.")
    if peer_from_bytes(data) != peer:  # the decoder forgives white space; one peer must have one name
        raise ProtocolViolation("A peer id is not in its only form.")
    return data


def peer_from_bytes(data: bytes) -> str:
    """The text form (`12D3Koo…`) of a multihash."""
    return base58.b58encode(data).decode("ascii")


def peer_from_public_key(public_key: bytes) -> str:
    """The peer id of a 32-byte Ed25519 public key."""
    if len(public_key) != _PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {_PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    return peer_from_bytes(_ED25519_PREFIX + public_key)


def public_key_of(peer: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id. Raises `ProtocolViolation`."""
    return peer_to_bytes(peer)[len(_ED25519_PREFIX) :]


def check_peer(peer: str) -> str:
    """The peer id itself once it is known to be one. Raises `ProtocolViolation`."""
    peer_to_bytes(peer)
    return peer
