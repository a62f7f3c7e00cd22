"""The types of the Rust extension; `scripts/check` compares them with the binary."""

from typing_extensions import Buffer

__all__ = [
    "codec_decode_into",
    "codec_encode",
    "codec_encode_into",
    "codec_inspect",
    "codec_size",
    "frame_checksum",
    "model_digest",
]

# The codec (docs/PROTOCOL.md). Schemes: 0 raw, 1 lossless, 2 h8, 3 h6, 4 e4m3, 5 e5m2, 6 h4. Dtypes: 0 float32,
# 1 float16, 2 bfloat16. Buffers are contiguous bytes whatever their format says. All raise ValueError with a reason.

def codec_size(scheme: int, dtype: int, rows: int, cols: int, group: int = 0) -> int:
    """The most bytes that the blob of such a tensor may have, whatever its values are."""

def codec_encode(
    scheme: int,
    dtype: int,
    rows: int,
    cols: int,
    values: Buffer,
    *,
    row_stride_bytes: int | None = None,
    group: int = 0,
    zstd_level: int = 1,
) -> bytearray:
    """A blob that holds `rows` x `cols` values, exactly as long as it has to be; raw if they are not all finite.

    `values` reach from the first row's first byte to the last row's last. `zstd_level` 0 leaves zstd out.
    """

def codec_encode_into(
    scheme: int,
    dtype: int,
    rows: int,
    cols: int,
    values: Buffer,
    out: Buffer,
    *,
    row_stride_bytes: int | None = None,
    group: int = 0,
    zstd_level: int = 1,
) -> int:
    """The same into the start of `out`, which has room for `codec_size` bytes; says how many it took."""

def codec_inspect(blob: Buffer) -> tuple[int, int, int, int]:
    """Scheme, dtype, rows and columns of a blob, from its header alone, which has to make sense."""

def codec_decode_into(blob: Buffer, out: Buffer, *, out_dtype: int, rows: int, cols: int) -> None:
    """Decodes a blob into `out`, which has exactly the bytes of `rows` x `cols` values of `out_dtype`.

    After an error the content of `out` is anything.
    """

def frame_checksum(*parts: Buffer) -> int:
    """CRC-32C of the parts as if they were one run of bytes."""

def model_digest(config: bytes, index: bytes) -> bytes:
    """SHA-256 of a model's config and weights index, both JSON objects."""
