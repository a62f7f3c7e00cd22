"""The codec's binding: golden bytes, the slow reference, buffers of every kind, refusals with a reason."""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codec import reference
from swarmnode._native import codec_decode_into, codec_encode, codec_encode_into, codec_inspect, codec_size

GOLDEN = Path(__file__).parent / "golden" / "cases.bin"
NAMES = {"f32": 0, "f16": 1, "bf16": 2}
SCHEMES = ("raw", "lossless", "h8", "h6", "e4m3", "e5m2", "h4")
WIDTHS = (4, 2, 2)


def golden_cases() -> list[tuple[str, bytes, bytes, bytes]]:
    rest = GOLDEN.read_bytes()
    parts: list[bytes] = []
    while rest:
        (length,) = struct.unpack_from("<I", rest)
        parts.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    return [(parts[at].decode(), parts[at + 1], parts[at + 2], parts[at + 3]) for at in range(0, len(parts), 4)]


@pytest.mark.parametrize(("name", "values", "blob", "decoded"), golden_cases(), ids=lambda part: str(part)[:24])
def test_golden(name: str, values: bytes, blob: bytes, decoded: bytes) -> None:
    dtype, shape, scheme, group, *zstd = name.split()
    rows, cols = map(int, shape.split("x"))
    assert codec_inspect(blob) == (SCHEMES.index(scheme), NAMES[dtype], rows, cols)
    out = bytearray(len(values))
    codec_decode_into(blob, out, out_dtype=NAMES[dtype], rows=rows, cols=cols)
    assert out == decoded
    if not zstd:
        ours = codec_encode(SCHEMES.index(scheme), NAMES[dtype], rows, cols, values, group=int(group), zstd_level=0)
        assert ours == blob


def data(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@given(
    scheme=st.sampled_from(range(7)),
    dtype=st.sampled_from(range(3)),
    rows=st.integers(1, 4),
    cols=st.integers(1, 200),
    exponent=st.sampled_from([0, -5, -38, 3]),
    seed=st.integers(0, 2**32),
    group=st.sampled_from([0, 64]),
)
def test_equals_the_reference(  # noqa: PLR0917 – hypothesis draws them by name
    scheme: int, dtype: int, rows: int, cols: int, exponent: int, seed: int, group: int
) -> None:
    group = group if SCHEMES[scheme] in ("e4m3", "e5m2") else 0
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, cols, generator=generator) * 10.0**exponent
    values[:, cols // 2] *= 50
    values = values.to(reference.DTYPES[dtype]).nan_to_num()
    blob = codec_encode(scheme, dtype, rows, cols, data(values), group=group, zstd_level=0)
    assert bytes(blob) == reference.encode(values, scheme, group=group, zstd_level=0)
    squeezed = codec_encode(scheme, dtype, rows, cols, data(values), group=group)
    for wanted, torch_dtype in enumerate(reference.DTYPES):
        expected = data(reference.decode(bytes(blob), torch_dtype))
        for coded in (blob, squeezed):
            out = bytearray(rows * cols * WIDTHS[wanted])
            codec_decode_into(coded, out, out_dtype=wanted, rows=rows, cols=cols)
            assert out == expected


@pytest.mark.parametrize("scheme", range(7))
@pytest.mark.parametrize("dtype", range(3))
def test_what_is_not_finite_travels_exactly(scheme: int, dtype: int) -> None:
    values = torch.randn(2, 100, generator=torch.Generator().manual_seed(1)).to(reference.DTYPES[dtype])
    values[1, 7], values[0, 99] = torch.nan, -torch.inf
    blob = codec_encode(scheme, dtype, 2, 100, data(values), zstd_level=0)
    assert bytes(blob) == reference.encode(values, scheme, zstd_level=0)
    out = bytearray(len(data(values)))
    codec_decode_into(blob, out, out_dtype=dtype, rows=2, cols=100)
    assert out == data(values)


def test_compresses_exponents() -> None:
    values = torch.randn(64, 576, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    blob = codec_encode(1, 2, 64, 576, data(values))
    assert len(blob) / values.numel() < 1.37
    assert torch.equal(reference.decode(bytes(blob)), values)


def test_takes_buffers_of_every_kind() -> None:
    values = array("f", range(100))
    blob = codec_encode(2, 0, 10, 10, values)
    assert blob == codec_encode(2, 0, 10, 10, memoryview(values)) == codec_encode(2, 0, 10, 10, bytes(values))
    wide = np.arange(200, dtype=np.float32).reshape(10, 20)
    strided = codec_encode(2, 0, 10, 10, wide.reshape(-1)[:190].data, row_stride_bytes=80)
    assert strided == codec_encode(2, 0, 10, 10, np.ascontiguousarray(wide[:, :10]).data)
    room = bytearray(codec_size(2, 0, 10, 10) + 5)
    length = codec_encode_into(2, 0, 10, 10, values, room)
    assert room[:length] == blob
    out = np.zeros((10, 10), dtype=np.float32)
    codec_decode_into(blob, out.data, out_dtype=0, rows=10, cols=10)
    assert abs(out - np.arange(100, dtype=np.float32).reshape(10, 10)).max() < 6


def test_a_blob_is_exactly_as_long_as_it_has_to_be() -> None:
    for scheme in range(7):
        for values in (b"", bytes(100), b"\xff" * 100):  # the last are NaN, so they travel exactly
            rows = len(values) // 20
            blob = codec_encode(scheme, 2, rows, 10, values)
            assert len(blob) <= codec_size(scheme, 2, rows, 10)
            out = bytearray(len(values))
            codec_decode_into(blob, out, out_dtype=2, rows=rows, cols=10)
            assert out == values
            blob.extend(b"more")  # nothing holds on to it
    assert len(codec_encode(2, 2, 0, 10, b"")) == 32


def test_refusals_say_why() -> None:
    values = bytes(400)
    blob = codec_encode(2, 0, 10, 10, values)
    out = bytearray(400)
    with pytest.raises(ValueError, match="no scheme has the number 7"):
        codec_size(7, 0, 1, 1)
    with pytest.raises(ValueError, match="reaches over 400 bytes of values, 399 were given"):
        codec_encode(2, 0, 10, 10, values[1:])
    with pytest.raises(ValueError, match="h8 takes no scale per 64 values"):
        codec_encode(2, 0, 10, 10, values, group=64)
    with pytest.raises(ValueError, match="the zstd level is 0 to 19, not 20"):
        codec_encode(2, 0, 10, 10, values, zstd_level=20)
    with pytest.raises(ValueError, match="the output takes 464 bytes, 463 were given"):
        codec_encode_into(2, 0, 10, 10, values, bytearray(463))
    with pytest.raises(ValueError, match="5 bytes are too few for a header"):
        codec_inspect(blob[:5])
    with pytest.raises(ValueError, match="the header makes"):
        codec_inspect(blob[:-1])
    with pytest.raises(ValueError, match="10 x 10 values came where 100 x 1 were expected"):
        codec_decode_into(blob, out, out_dtype=0, rows=100, cols=1)
    with pytest.raises(ValueError, match="the output takes 200 bytes, 400 were given"):
        codec_decode_into(blob, out, out_dtype=2, rows=10, cols=10)
    blob[-1] ^= 1
    with pytest.raises(ValueError, match="the checksum does not fit"):
        codec_decode_into(blob, out, out_dtype=0, rows=10, cols=10)
    with pytest.raises(BufferError):
        codec_decode_into(blob, bytes(400), out_dtype=0, rows=10, cols=10)
    with pytest.raises((BufferError, ValueError)):
        codec_encode(2, 0, 5, 10, memoryview(values)[::2])
