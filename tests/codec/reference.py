"""The codec once more, slow and plain, in torch: what the Rust and the device code must equal byte for byte.

Written from docs/PROTOCOL.md, section 13. Knows no speed: one matrix at a time, whole tensors, no in-place tricks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import torch
import zstandard

from swarmnode._native import frame_checksum

__all__ = [
    "DTYPES",
    "E4M3",
    "E5M2",
    "H4",
    "H6",
    "H8",
    "LOSSLESS",
    "RAW",
    "SCHEMES",
    "decode",
    "encode",
    "sections",
]

RAW, LOSSLESS, H8, H6, E4M3, E5M2, H4 = SCHEMES = tuple(range(7))
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
BYTES: Final = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}

HEADER: Final = struct.Struct("<3sBBBBBIIIIII")
ALIGNMENT: Final = 64
GROUP: Final = 64
OUTLIERS: Final = 4
MOST_OUTLIER_COLUMNS: Final = 65_536
LEAST_OUTLIER_COLUMNS: Final = 8
SMALLEST_NORMAL: Final = 2.0**-126

NF4: Final = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


class NotFinite(Exception):
    """A number that no scheme but raw can carry."""


@dataclass
class Header:
    scheme: int
    dtype: torch.dtype
    rows: int
    cols: int
    group: int = 0
    zstd_bytes: int | None = None


# Whole blobs


def encode(values: torch.Tensor, scheme: int, *, group: int = 0, zstd_level: int = 1) -> bytes:
    """The blob of a matrix `[rows, cols]`."""
    rows, cols = values.shape
    header = Header(scheme, values.dtype, rows, cols, group if scheme in (E4M3, E5M2) else 0)
    if rows == 0 or cols == 0:
        header.scheme, header.group = RAW, 0
        return _blob(header, [])
    if scheme in (H6, H4) and not LEAST_OUTLIER_COLUMNS <= cols <= MOST_OUTLIER_COLUMNS:
        header.scheme = H8
    try:
        if header.scheme not in (RAW, LOSSLESS) and not torch.isfinite(values).all():
            raise NotFinite
        parts = _ENCODERS[header.scheme](values, header, zstd_level)
    except NotFinite:
        header = Header(RAW, values.dtype, rows, cols)
        parts = _encode_raw(values, header, zstd_level)
    return _blob(header, parts)


def decode(blob: bytes, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The matrix of a blob, in the sender's dtype or another. Believes the blob: hostile ones are for the Rust."""
    header = read_header(blob)
    if header.rows == 0 or header.cols == 0:
        return torch.empty(header.rows, header.cols, dtype=dtype or header.dtype)
    values = _DECODERS[header.scheme](sections(blob), header)
    return values.to(dtype or header.dtype)


def read_header(blob: bytes) -> Header:
    magic, version, scheme, dtype, flags, zero, rows, cols, group, zstd_bytes, zeros, checksum = HEADER.unpack(
        blob[:32]
    )
    assert (magic, version, zero, zeros) == (b"SWC", 1, 0, 0)
    assert checksum == frame_checksum(blob[:28], blob[32:])
    assert flags in (0, 1)
    return Header(scheme, DTYPES[dtype], rows, cols, group, zstd_bytes if flags else None)


def sections(blob: bytes) -> list[bytes]:
    """A blob's sections, without the padding between them; all of it must be zero and nothing may be left over."""
    header = read_header(blob)
    if header.rows == 0 or header.cols == 0:
        assert len(blob) == HEADER.size
        return []
    at, end, found = 0, HEADER.size, []
    for length in _section_bytes(header):
        at = -(-end // ALIGNMENT) * ALIGNMENT
        assert not any(blob[end:at])
        found.append(blob[at : at + length])
        end = at + length
    assert end == len(blob)
    return found


def _blob(header: Header, parts: list[bytes]) -> bytes:
    fields = (
        b"SWC",
        1,
        header.scheme,
        DTYPES.index(header.dtype),
        header.zstd_bytes is not None,
        0,
        header.rows,
        header.cols,
        header.group,
        header.zstd_bytes or 0,
        0,
    )
    blob = bytearray(HEADER.pack(*fields, 0))
    for part in parts:
        blob += bytes(-len(blob) % ALIGNMENT) + part
    blob[28:32] = frame_checksum(blob[:28], blob[32:]).to_bytes(4, "little")
    return bytes(blob)


def _section_bytes(header: Header) -> list[int]:
    """How long each section is, by the header alone."""
    rows, cols, width = header.rows, header.cols, BYTES[header.dtype]
    values, groups, codes = rows * cols, rows * len(_runs(cols)), _codes_of(cols)
    match header.scheme:
        case 0:
            return [values * width]
        case 1:
            return [values if header.zstd_bytes is None else header.zstd_bytes, values * (width - 1)]
        case 2:
            return [2 * groups, rows * codes]
        case 3:
            return [2 * groups, 2 * rows * OUTLIERS, 2 * rows * OUTLIERS, rows * -(-6 * codes // 8)]
        case 6:
            return [2 * groups, 2 * rows * OUTLIERS, 2 * rows * OUTLIERS, rows * -(-codes // 2)]
        case _:
            scales = rows if header.group == 0 else rows * -(-cols // header.group)
            return [2 * scales, values if header.zstd_bytes is None else header.zstd_bytes]


# Bits


def _bytes_of(values: torch.Tensor) -> bytes:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor_of(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype)


def _squeezed(plane: bytes, header: Header, zstd_level: int) -> bytes:
    """The plane through zstd when that makes it smaller."""
    if zstd_level:
        packed = zstandard.ZstdCompressor(level=zstd_level).compress(plane)
        if len(packed) < len(plane):
            header.zstd_bytes = len(packed)
            return packed
    return plane


def _opened(section: bytes, header: Header) -> bytes:
    values = header.rows * header.cols
    if header.zstd_bytes is None:
        return section
    plane = zstandard.ZstdDecompressor().decompress(section, max_output_size=values)
    assert len(plane) == values
    return plane


# Raw and lossless


def _encode_raw(values: torch.Tensor, header: Header, zstd_level: int) -> list[bytes]:
    return [_bytes_of(values)]


def _decode_raw(parts: list[bytes], header: Header) -> torch.Tensor:
    return _tensor_of(parts[0], header.dtype).reshape(header.rows, header.cols)


def _encode_lossless(values: torch.Tensor, header: Header, zstd_level: int) -> list[bytes]:
    if header.dtype == torch.float32:
        bits = values.reshape(-1).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        exponents, sign, mantissa = bits >> 23 & 0xFF, bits >> 31, bits & 0x7FFFFF
        rest = [mantissa & 0xFF, mantissa >> 8 & 0xFF, sign << 7 | mantissa >> 16]
    else:
        bits = values.reshape(-1).view(torch.int16).to(torch.int64) & 0xFFFF
        if header.dtype == torch.bfloat16:
            exponents, rest = bits >> 7 & 0xFF, [bits >> 15 << 7 | bits & 0x7F]
        else:
            exponents, rest = bits >> 8, [bits & 0xFF]
    plane = _bytes_of(exponents.to(torch.uint8))
    return [_squeezed(plane, header, zstd_level), b"".join(_bytes_of(plane.to(torch.uint8)) for plane in rest)]


def _decode_lossless(parts: list[bytes], header: Header) -> torch.Tensor:
    exponents = _tensor_of(_opened(parts[0], header), torch.uint8).to(torch.int64)
    rest = _tensor_of(parts[1], torch.uint8).to(torch.int64).reshape(-1, len(exponents))
    if header.dtype == torch.float32:
        low, middle, high = rest
        bits = high >> 7 << 31 | exponents << 23 | (high & 0x7F) << 16 | middle << 8 | low
        signed = (bits ^ 1 << 31) - (1 << 31)
        floats: torch.Tensor = signed.to(torch.int32).view(torch.float32)
        return floats.reshape(header.rows, header.cols)
    if header.dtype == torch.bfloat16:
        bits = rest[0] >> 7 << 15 | exponents << 7 | rest[0] & 0x7F
    else:
        bits = exponents << 8 | rest[0]
    signed = (bits ^ 1 << 15) - (1 << 15)
    halves: torch.Tensor = signed.to(torch.int16).view(header.dtype)
    return halves.reshape(header.rows, header.cols)


# The rotation


def _runs(cols: int) -> list[tuple[int, int, int]]:
    """`(first column, columns, points)` of each group of a row."""
    runs = [(start, GROUP, GROUP) for start in range(0, cols - GROUP + 1, GROUP)]
    if tail := cols % GROUP:
        runs.append((cols - tail, tail, 1 << (tail - 1).bit_length()))
    return runs


def _codes_of(cols: int) -> int:
    """Codes in a row."""
    return sum(points for _, _, points in _runs(cols))


def _butterfly(values: torch.Tensor) -> torch.Tensor:
    """Walsh-Hadamard along the last dimension, natural order, not normalised."""
    points = values.shape[-1]
    half = 1
    while half < points:
        pairs = values.reshape(*values.shape[:-1], points // (2 * half), 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        values = torch.stack((a + b, a - b), dim=-2).reshape(values.shape)
        half *= 2
    return values


def _scale(amax: torch.Tensor, most: float) -> torch.Tensor:
    """The scale as it is stored, in float32."""
    scale = (amax / torch.full_like(amax, most)).to(torch.bfloat16).to(torch.float32)
    if not torch.isfinite(scale).all():
        raise NotFinite
    return torch.where(scale < SMALLEST_NORMAL, torch.zeros_like(scale), scale)


def _over(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`values * (1 / scale)`, and 0 where the scale is."""
    inverse = torch.ones_like(scale) / scale
    return torch.where(scale == 0, torch.zeros_like(values), values * inverse)


def _rotated(values: torch.Tensor, most: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales `[rows, groups]`, and the rotated values over their scale `[rows, codes]`."""
    scales, scaled = [], []
    for start, columns, points in _runs(values.shape[1]):
        padded = torch.zeros(values.shape[0], points)
        padded[:, :columns] = values[:, start : start + columns]
        turned = _butterfly(padded)
        amax = turned.abs().amax(dim=1, keepdim=True)
        if not torch.isfinite(amax).all():
            raise NotFinite
        scale = _scale(amax, most)
        scales.append(scale)
        scaled.append(_over(turned, scale))
    return torch.cat(scales, dim=1), torch.cat(scaled, dim=1)


def _unrotated(scales: torch.Tensor, codes: torch.Tensor, cols: int) -> torch.Tensor:
    """The other way round; `codes` in units of their scale."""
    pieces, at = [], 0
    for index, (_, columns, points) in enumerate(_runs(cols)):
        # Divided by the points (a power of two, so exactly) first: afterwards the sums could overflow.
        turned = codes[:, at : at + points] * (scales[:, index : index + 1] * (1.0 / points))
        pieces.append(_butterfly(turned)[:, :columns])
        at += points
    return torch.cat(pieces, dim=1)


def _scales_in(section: bytes, header: Header) -> torch.Tensor:
    return _tensor_of(section, torch.bfloat16).to(torch.float32).reshape(header.rows, -1)


# h8


def _encode_h8(values: torch.Tensor, header: Header, zstd_level: int) -> list[bytes]:
    scales, scaled = _rotated(values.to(torch.float32), 127.0)
    codes = scaled.round().clamp(-127, 127).to(torch.int8)
    return [_bytes_of(scales.to(torch.bfloat16)), _bytes_of(codes)]


def _decode_h8(parts: list[bytes], header: Header) -> torch.Tensor:
    codes = _tensor_of(parts[1], torch.int8).to(torch.float32).reshape(header.rows, -1)
    return _unrotated(_scales_in(parts[0], header), codes, header.cols)


# h6 and h4: outliers apart


def _without_outliers(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns and values of each row's outliers, and the row with zeros in their place."""
    order = values.abs().sort(dim=1, descending=True, stable=True).indices
    columns = order[:, :OUTLIERS].sort(dim=1).values
    outliers = values.gather(1, columns).to(torch.bfloat16)
    if not torch.isfinite(outliers).all():
        raise NotFinite
    return columns, outliers, values.scatter(1, columns, 0.0)


def _outlier_sections(columns: torch.Tensor, outliers: torch.Tensor) -> list[bytes]:
    return [_bytes_of(outliers), _bytes_of(columns.to(torch.int32).to(torch.uint16))]


def _with_outliers(rest: torch.Tensor, parts: list[bytes], header: Header) -> torch.Tensor:
    outliers = _tensor_of(parts[1], torch.bfloat16).to(torch.float32).reshape(header.rows, OUTLIERS)
    columns = _tensor_of(parts[2], torch.uint16).to(torch.int64).reshape(header.rows, OUTLIERS)
    return rest.scatter(1, columns, outliers)


def _pack(codes: torch.Tensor, bits: int) -> bytes:
    """Codes `[rows, n]`, the first in the lowest bits; every row begins with a byte of its own."""
    packed = bytearray()
    for row in codes.tolist():
        whole = sum(code << bits * index for index, code in enumerate(row))
        packed += whole.to_bytes(-(-bits * len(row) // 8), "little")
    return bytes(packed)


def _unpack(data: bytes, bits: int, header: Header) -> torch.Tensor:
    count = _codes_of(header.cols)
    length = -(-bits * count // 8)
    rows = []
    for start in range(0, len(data), length):
        whole = int.from_bytes(data[start : start + length], "little")
        rows.append([whole >> bits * index & (1 << bits) - 1 for index in range(count)])
        assert whole >> bits * count == 0
    return torch.tensor(rows, dtype=torch.int64)


def _encode_h6(values: torch.Tensor, header: Header, zstd_level: int) -> list[bytes]:
    columns, outliers, rest = _without_outliers(values.to(torch.float32))
    scales, scaled = _rotated(rest, 31.0)
    codes = scaled.round().clamp(-31, 31).to(torch.int64) + 32
    return [_bytes_of(scales.to(torch.bfloat16)), *_outlier_sections(columns, outliers), _pack(codes, 6)]


def _decode_h6(parts: list[bytes], header: Header) -> torch.Tensor:
    codes = (_unpack(parts[3], 6, header) - 32).to(torch.float32)
    return _with_outliers(_unrotated(_scales_in(parts[0], header), codes, header.cols), parts, header)


def _encode_h4(values: torch.Tensor, header: Header, zstd_level: int) -> list[bytes]:
    columns, outliers, rest = _without_outliers(values.to(torch.float32))
    scales, scaled = _rotated(rest, 1.0)
    between = (NF4[1:] + NF4[:-1]) * 0.5
    codes = (scaled.unsqueeze(-1) > between).sum(dim=-1)
    return [_bytes_of(scales.to(torch.bfloat16)), *_outlier_sections(columns, outliers), _pack(codes, 4)]


def _decode_h4(parts: list[bytes], header: Header) -> torch.Tensor:
    turned = NF4[_unpack(parts[3], 4, header)]
    return _with_outliers(_unrotated(_scales_in(parts[0], header), turned, header.cols), parts, header)


# fp8

_FP8: Final = {E4M3: (torch.float8_e4m3fn, 448.0), E5M2: (torch.float8_e5m2, 57_344.0)}


def _encode_fp8(values: torch.Tensor, header: Header, zstd_level: int) -> list[bytes]:
    kind, most = _FP8[header.scheme]
    scales, codes = [], []
    for piece in torch.split(values.to(torch.float32), header.group or header.cols, dim=1):
        scale = _scale(piece.abs().amax(dim=1, keepdim=True), most)
        scales.append(scale)
        codes.append(_over(piece, scale).clamp(-most, most).to(kind).view(torch.uint8))
    plane = _bytes_of(torch.cat(codes, dim=1))
    return [_bytes_of(torch.cat(scales, dim=1).to(torch.bfloat16)), _squeezed(plane, header, zstd_level)]


def _decode_fp8(parts: list[bytes], header: Header) -> torch.Tensor:
    kind, _ = _FP8[header.scheme]
    codes = _tensor_of(_opened(parts[1], header), torch.uint8).view(kind).to(torch.float32)
    scales = _scales_in(parts[0], header).repeat_interleave(header.group or header.cols, dim=1)[:, : header.cols]
    return codes.reshape(header.rows, header.cols) * scales


_ENCODERS = {
    RAW: _encode_raw,
    LOSSLESS: _encode_lossless,
    H8: _encode_h8,
    H6: _encode_h6,
    E4M3: _encode_fp8,
    E5M2: _encode_fp8,
    H4: _encode_h4,
}
_DECODERS = {
    RAW: _decode_raw,
    LOSSLESS: _decode_lossless,
    H8: _decode_h8,
    H6: _decode_h6,
    E4M3: _decode_fp8,
    E5M2: _decode_fp8,
    H4: _decode_h4,
}
