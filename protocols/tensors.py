"""What a frame's body is: dtype, shape and codec of one tensor. Knows no torch; the node makes tensors of the bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from typing_extensions import Buffer

from swarmnode._native import codec_inspect
from swarmnode.errors import ProtocolViolation

from . import limits
from .wire import Fields

__all__ = [
    "CODEC_E4M3",
    "CODEC_E5M2",
    "CODEC_H4",
    "CODEC_H6",
    "CODEC_H8",
    "CODEC_LOSSLESS",
    "CODEC_RAW",
    "DTYPE_BYTES",
    "DTYPE_NUMBERS",
    "EXACT_CODECS",
    "KNOWN_CODECS",
    "TensorHeader",
    "check_body",
    "common_codecs",
    "read_codecs",
]

CODEC_RAW: Final = 0
"""The elements as they lie in memory: row-major, little-endian. All others are blobs with a header of their own."""
CODEC_LOSSLESS: Final = 1
CODEC_H8: Final = 2
CODEC_H6: Final = 3
CODEC_E4M3: Final = 4
CODEC_E5M2: Final = 5
CODEC_H4: Final = 6

KNOWN_CODECS: Final = (CODEC_RAW, CODEC_LOSSLESS, CODEC_H8, CODEC_H6, CODEC_E4M3, CODEC_E5M2, CODEC_H4)
EXACT_CODECS: Final = (CODEC_RAW, CODEC_LOSSLESS)

DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
DTYPE_NUMBERS: Final = {"float32": 0, "float16": 1, "bfloat16": 2}
"""What a blob's own header calls them."""

_FALLS_BACK_TO_H8: Final = (CODEC_H6, CODEC_H4)
_DIMENSIONS = 3


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Hidden states of some tokens.

    Attributes:
        dtype: a key of `DTYPE_BYTES`.
        shape: `(rows, tokens, hidden_size)`; `tokens` is 0 only in an output that acknowledges a step with `keep` 0.
        codec: how the body's bytes were made of the elements.
    """

    dtype: str
    shape: tuple[int, int, int]
    codec: int = CODEC_RAW

    @property
    def tokens(self) -> int:
        return self.shape[1]

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def raw_bytes(self) -> int:
        """How long the body is in the raw codec; in any other it must be shorter."""
        return self.values * DTYPE_BYTES[self.dtype]

    def to_map(self) -> dict[str, object]:
        return {"dtype": self.dtype, "shape": self.shape, "codec": self.codec}

    def has_length(self, body_bytes: int) -> bool:
        """Whether a body of so many bytes can be this tensor."""
        return body_bytes == self.raw_bytes if self.codec == CODEC_RAW else 0 < body_bytes < self.raw_bytes


def read_tensor(fields: Fields, body_bytes: int, *, least_tokens: int) -> TensorHeader:
    """The `tensor` field of a message whose body has `body_bytes` bytes. Raises `ProtocolViolation`."""
    tensor = fields.map("tensor")
    dtype = tensor.text("dtype", limits.MAX_WORD_CHARS)
    if dtype not in DTYPE_BYTES:
        raise tensor.wrong(f"dtype must be one of {', '.join(DTYPE_BYTES)}.")
    codec = tensor.integer("codec", limits.MAX_CODEC_ID)
    if codec not in KNOWN_CODECS:
        raise tensor.wrong(f"codec {codec} was not agreed on; 0 to {KNOWN_CODECS[-1]} are known here.")
    shape = tensor.integers("shape", _DIMENSIONS, limits.MAX_HIDDEN_SIZE)
    if len(shape) != _DIMENSIONS:
        raise tensor.wrong(f"shape must have {_DIMENSIONS} dimensions, not {len(shape)}.")
    rows, tokens, hidden_size = shape
    if not 0 < rows <= limits.MAX_ROWS:
        raise tensor.wrong(f"shape must have 1 to {limits.MAX_ROWS} rows, not {rows}.")
    if not least_tokens <= tokens <= limits.MAX_STEP_TOKENS:
        raise tensor.wrong(f"shape must have {least_tokens} to {limits.MAX_STEP_TOKENS} tokens, not {tokens}.")
    if hidden_size == 0:
        raise tensor.wrong("shape must have a hidden size above 0.")
    header = TensorHeader(dtype, (rows, tokens, hidden_size), codec)
    if not header.has_length(body_bytes):
        takes = f"{header.raw_bytes} bytes" if codec == CODEC_RAW else f"fewer than {header.raw_bytes} bytes and some"
        raise tensor.wrong(f"{dtype} of shape {list(shape)} takes {takes}, but the body has {body_bytes}.")
    if header.raw_bytes > limits.MAX_BODY_BYTES:
        raise tensor.wrong(f"{dtype} of shape {list(shape)} is more than {limits.MAX_BODY_BYTES} bytes when decoded.")
    return header


def check_body(tensor: TensorHeader, body: Buffer) -> None:
    """See that a coded body begins with the header that its message announces. Raises `ProtocolViolation`.

    What follows that header is checked when it is decoded, away from the event loop.
    """
    if tensor.codec == CODEC_RAW:
        return
    try:
        codec, dtype, rows, cols = codec_inspect(body)
    except ValueError as error:
        raise ProtocolViolation(f"tensor: the body is no coded tensor: {error}.") from None
    announced = tensor.codec, DTYPE_NUMBERS[tensor.dtype], tensor.shape[0] * tensor.shape[1], tensor.shape[2]
    if (codec, dtype, rows, cols) != announced:
        raise ProtocolViolation("tensor: the body's own header says something else than the message.")


def read_codecs(fields: Fields) -> tuple[int, ...]:
    """The `codecs` field; ids that nobody knows yet are kept. Raises `ProtocolViolation`."""
    codecs = fields.integers("codecs", limits.MAX_CODECS, limits.MAX_CODEC_ID)
    if CODEC_RAW not in codecs:
        raise fields.wrong("codecs must hold 0, the raw codec.")
    if CODEC_H8 not in codecs and any(codec in codecs for codec in _FALLS_BACK_TO_H8):
        raise fields.wrong("codecs must hold 2 where it holds 3 or 6, which fall back to it.")
    return codecs


def common_codecs(liked: Iterable[int], *others: Iterable[int]) -> tuple[int, ...]:
    """Of the codecs liked, in their order, those that all others read too."""
    known = [set(other) for other in others]
    common = [codec for codec in liked if all(codec in other for other in known)]
    if CODEC_H8 not in common:
        common = [codec for codec in common if codec not in _FALLS_BACK_TO_H8]
    return tuple(common)
