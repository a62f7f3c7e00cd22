"""The header of a safetensors file: which tensors it holds and where. Reads no tensor, knows no torch.

Format: 8 bytes little-endian header length, the header in JSON, the tensors' bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swarmnode.errors import CheckpointBroken

__all__ = ["ITEM_BYTES", "TensorEntry", "parse_header", "read_header"]

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

LENGTH_BYTES = 8

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Bytes of one number, by the format's name for its type."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        dtype: the format's name for its type, such as `BF16`.
        shape: its shape.
        offset: its first byte, counted from the beginning of the file.
        size: its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file, by name.

    Raises:
        CheckpointBroken: the file cannot be read, is no safetensors file, or is shorter or longer than it says.
    """
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if file_bytes < LENGTH_BYTES or not 0 < length <= min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
                raise _broken(path, "its header is cut off or damaged")
            header = file.read(length)
    except OSError as error:
        raise CheckpointBroken(
            f"{path} cannot be read: {error.strerror}.", hint="Check the file's permissions and the disk."
        ) from error
    entries = parse_header(header, path)
    end = max((entry.offset + entry.size for entry in entries.values()), default=LENGTH_BYTES + length)
    if file_bytes < end:
        raise _broken(path, f"it has {file_bytes:,} bytes of {end:,}")
    if file_bytes > end:
        raise _broken(path, f"it has {file_bytes:,} bytes where it should end after {end:,}")
    return entries


def parse_header(header: bytes, path: Path | str) -> dict[str, TensorEntry]:
    """The tensors that a header speaks of; `path` is named in errors. Raises CheckpointBroken."""
    try:
        content = json.loads(header)
        return {
            name: _entry(fields, LENGTH_BYTES + len(header))
            for name, fields in content.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _broken(path, "its header makes no sense") from error


def _entry(fields: Mapping[str, object], data_start: int) -> TensorEntry:
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or dtype not in ITEM_BYTES:
        raise ValueError(f"unknown dtype {dtype!r} or malformed entry")
    start, end = offsets
    if not all(isinstance(number, int) and number >= 0 for number in (start, end, *shape)):
        raise ValueError("not a count")
    if end - start != ITEM_BYTES[str(dtype)] * math.prod(shape):
        raise ValueError("shape and length do not agree")
    return TensorEntry(str(dtype), tuple(shape), data_start + start, end - start)


def _broken(path: Path | str, reason: str) -> CheckpointBroken:
    return CheckpointBroken(f"{path} is damaged: {reason}.", hint="Delete the file, then copy or download it again.")
