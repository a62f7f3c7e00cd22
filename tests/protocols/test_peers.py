"""Peer ids are those of libp2p, and each peer has one name."""

from __future__ import annotations

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID

from support.said import peer_of, server_key
from swarmnode.errors import ProtocolViolation
from swarmnode.protocols.peers import (
    check_peer,
    peer_from_bytes,
    peer_from_public_key,
    peer_to_bytes,
    public_key_of,
)

PEER = peer_of(server_key(1))


@given(st.integers(0, 2**256 - 1))
def test_libp2p_makes_the_same_peer_ids(seed: int) -> None:
    public_key = bytes(server_key(seed).verify_key)
    theirs = ID.from_pubkey(Ed25519PublicKey.from_bytes(public_key))
    peer = peer_from_public_key(public_key)
    assert peer == theirs.to_base58()
    assert peer_to_bytes(peer) == theirs.to_bytes()
    assert peer_from_bytes(theirs.to_bytes()) == peer
    assert public_key_of(peer) == public_key
    assert check_peer(peer) == peer


@pytest.mark.parametrize(
    "peer",
    [
        "",
        "1",
        "nobody?",
        "12D3KooW",
        PEER + " ",
        " " + PEER,
        "1" + PEER,
        PEER[:-1],
        PEER.lower(),
        "ä" * 52,
        "x" * 10_000,
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA key's
        base58.b58encode(bytes([0, 0x25, 8, 2, 18, 33]) + bytes(33)).decode(),  # a secp256k1 key's
        "\ud800" * 52,
    ],
)
def test_what_is_not_the_one_name_of_an_ed25519_peer_is_refused(peer: str) -> None:
    with pytest.raises(ProtocolViolation, match="A peer id"):
        peer_to_bytes(peer)


@given(st.text(max_size=70) | st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", max_size=64))
def test_any_text_is_a_peer_id_or_refused(text: str) -> None:
    try:
        data = peer_to_bytes(text)
    except ProtocolViolation:
        return
    assert peer_from_bytes(data) == text


def test_a_public_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        peer_from_public_key(bytes(31))
