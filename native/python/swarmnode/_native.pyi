"""The types of the Rust extension; `scripts/check` compares them with the binary."""

from typing_extensions import Buffer

__all__ = ["frame_checksum", "model_digest"]

def frame_checksum(*parts: Buffer) -> int:
    """CRC-32C of the parts as if they were one run of bytes."""

def model_digest(config: bytes, index: bytes) -> bytes:
    """SHA-256 of a model's config and weights index, both JSON objects."""
