"""A private swarm's key: how its file reads, and the proof of holding it. Knows no file, no connection, no message.

A proof is good for one connection, one direction and two peers only: it is made over both ends' fresh nonces and a
value that nobody but the two ends of this very connection can know or bring about twice (RFC 5705, RFC 9266: channel
binding). So one that was overheard, sent back to its maker or carried to another connection proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final, Literal

from . import limits
from .peers import peer_to_bytes

__all__ = [
    "EXPORTER_CONTEXT",
    "EXPORTER_LABEL",
    "Binding",
    "Side",
    "SwarmKey",
    "exporter_from_handshake",
    "is_proof",
    "key_file",
    "prove",
    "read_key_file",
]

EXPORTER_LABEL: Final = b"EXPERIMENTAL swarmnode gate 1"
EXPORTER_CONTEXT: Final = b""

_HEADER: Final = "swarmnode swarm key 1"
_PURPOSE: Final = b"swarmnode/gate/1\x00"

Side = Literal["dialler", "listener"]


@dataclass(frozen=True, slots=True, eq=False)
class SwarmKey:
    """What all members of a private swarm hold, and nobody else: 32 random bytes."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != limits.SWARM_KEY_BYTES:
            raise ValueError(f"a swarm key has {limits.SWARM_KEY_BYTES} bytes, not {len(self.secret)}")


def key_file(key: SwarmKey) -> bytes:
    """What the file of a key holds."""
    return f"{_HEADER}\n{key.secret.hex()}\n".encode()


def read_key_file(data: bytes) -> SwarmKey:
    """The key that a file holds. Raises `ValueError` saying what is wrong with it, as the end of a sentence."""
    if len(data) > limits.MAX_KEY_FILE_BYTES:
        raise ValueError("it is too long for a key")
    try:
        lines = [line.strip() for line in data.decode("ascii").strip().splitlines()]
    except UnicodeDecodeError:
        raise ValueError("it is not plain text") from None
    if not lines:
        raise ValueError("it is empty")
    if lines[0].startswith("/key/swarm/psk/"):
        raise ValueError("it is the key of another libp2p program's private network, which works in another way")
    if lines[0] != _HEADER:
        raise ValueError(f"its first line is not {_HEADER!r}")
    if len(lines) != 2:
        raise ValueError(f"it has {len(lines)} lines and not two")
    if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * limits.SWARM_KEY_BYTES}}}", lines[1]):
        raise ValueError(f"its second line is not {2 * limits.SWARM_KEY_BYTES} hexadecimal digits")
    return SwarmKey(bytes.fromhex(lines[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The one connection that a proof is about.

    Attributes:
        dialler, listener: the peer ids of its ends, as proved by their keys.
        dialler_nonce, listener_nonce: what each end made up for it, 32 bytes.
        exported: what the connection's encryption exports under `EXPORTER_LABEL`, 32 bytes, the same at both ends.
    """

    dialler: str
    listener: str
    dialler_nonce: bytes
    listener_nonce: bytes
    exported: bytes


def prove(key: SwarmKey, binding: Binding, side: Side) -> bytes:
    """The proof that this side of the connection holds the key: 32 bytes."""
    parts = (
        peer_to_bytes(binding.dialler),
        peer_to_bytes(binding.listener),
        binding.dialler_nonce,
        binding.listener_nonce,
        binding.exported,
    )
    # every part has a length of its own that never varies, so no two bindings give the same bytes
    for part, length in zip(parts[2:], (limits.NONCE_BYTES, limits.NONCE_BYTES, limits.EXPORTED_BYTES), strict=True):
        if len(part) != length:
            raise ValueError(f"a part of a proof has {length} bytes, not {len(part)}")
    role = b"\x00" if side == "dialler" else b"\x01"
    return hmac.digest(key.secret, _PURPOSE + role + b"".join(parts), "sha256")


def is_proof(key: SwarmKey, binding: Binding, side: Side, given: bytes) -> bool:
    """Whether `given` proves that this side holds the key. Takes as long whatever was given."""
    return hmac.compare_digest(prove(key, binding, side), given)


def exporter_from_handshake(handshake_hash: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """What a Noise connection exports: HKDF-SHA-256 (RFC 5869) of its handshake hash, without salt.

    TLS has an exporter of its own; Noise names its handshake hash as the channel's binding (Noise specification 11.2).
    """
    if not 0 < length <= 255 * 32:
        raise ValueError(f"an exporter gives 1 to {255 * 32} bytes, not {length}")
    pseudorandom = hmac.digest(bytes(32), handshake_hash, hashlib.sha256)
    info = label + b"\x00" + context
    out = block = b""
    while len(out) < length:
        block = hmac.digest(pseudorandom, block + info + bytes([len(out) // 32 + 1]), hashlib.sha256)
        out += block
    return out[:length]
