"""The Rust extension against slow references in Python."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode._native import frame_checksum, model_digest

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
JSON_OBJECTS = st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=5)


def slow_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def slow_digest(*parts: object) -> bytes:
    digest = hashlib.sha256(b"swarmnode/model-identity/1\0")
    for part in parts:
        # Rust sorts keys by their UTF-8 bytes, which is the order of code points, as Python's.
        canonical = json.dumps(part, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        digest.update(len(canonical).to_bytes(8, "little") + canonical)
    return digest.digest()


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_checksum(parts: list[bytes]) -> None:
    assert frame_checksum(*parts) == slow_crc32c(b"".join(parts))
    views = [memoryview(part) for part in parts]
    assert frame_checksum(*views) == frame_checksum(*map(bytearray, parts))


def test_checksum_refuses_a_strided_buffer() -> None:
    with pytest.raises(BufferError, match="contiguous"):
        frame_checksum(memoryview(bytes(8))[::2])


@given(JSON_OBJECTS, JSON_OBJECTS)
def test_digest(config: dict[str, object], index: dict[str, object]) -> None:
    assert model_digest(json.dumps(config, indent=1).encode(), json.dumps(index).encode()) == slow_digest(config, index)


def test_digest_says_what_is_broken() -> None:
    with pytest.raises(ValueError, match="the config is not a JSON object"):
        model_digest(b"nonsense", b"{}")
