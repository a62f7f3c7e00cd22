"""Writes tests/codec/golden: values and their blobs as the slow reference makes them, which Rust has to equal.

    PYTHONPATH=tests .venv/bin/python tests/codec/write_golden.py

`cases.bin` holds one case behind the other, each as four parts with their length in front (u32, little end first): the
name ("bf16 3x100 e4m3 64": dtype, shape, scheme, group), the values, the blob, and what the blob gives back. Where the
name ends in "zstd" another zstd may compress otherwise, so the blob is decoded only. Golden bytes are a promise to
other implementations: write them again only when the format has a new version, or a new example.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from codec.reference import DTYPES, decode, encode

FILE: Final = Path(__file__).parent / "golden" / "cases.bin"
NAMES: Final = ("f32", "f16", "bf16")
SCHEMES: Final = ("raw", "lossless", "h8", "h6", "e4m3", "e5m2", "h4")
# A tail of 36 (as 64 points) behind one full group; whole groups; a row shorter than a group.
SHAPES: Final = ((3, 100), (2, 128), (1, 11))


def values(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Nearly normal numbers with one large column, one row of tiny ones, and ties: made of whole numbers alone."""
    count = torch.arange(rows * cols, dtype=torch.int64)
    parts = [(count * step + start) % 65_521 for step, start in ((40_503, 7), (30_011, 99), (51_787, 1_234))]
    matrix = (sum(parts, torch.zeros_like(count)) - 98_280).to(torch.float32).reshape(rows, cols) / 32_768
    matrix[:, 5] *= 64
    matrix[:, 7] = matrix[:, 5]
    if rows > 1:
        matrix[1] /= 2.0**14
    return matrix.to(dtype)


def data(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def cases() -> Iterator[tuple[str, bytes, bytes, bytes]]:
    for dtype, name in zip(DTYPES, NAMES, strict=True):
        for rows, cols in SHAPES:
            matrix = values(rows, cols, dtype)
            for scheme, spoken in enumerate(SCHEMES):
                for group in (0, 64) if spoken in ("e4m3", "e5m2") else (0,):
                    blob = encode(matrix, scheme, group=group, zstd_level=0)
                    yield f"{name} {rows}x{cols} {spoken} {group}", data(matrix), blob, data(decode(blob, dtype))
        matrix = values(16, 100, dtype)
        for scheme in (1, 4):
            blob = encode(matrix, scheme, zstd_level=3)
            yield f"{name} 16x100 {SCHEMES[scheme]} 0 zstd", data(matrix), blob, data(decode(blob, dtype))


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("wb") as file:
        for name, *parts in cases():
            for part in (name.encode(), *parts):
                file.write(struct.pack("<I", len(part)) + part)


if __name__ == "__main__":
    main()
