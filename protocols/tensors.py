"""What a frame's body is: dtype, shape and codec of one tensor. Knows no torch; the node makes tensors of the bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import limits
from .wire import Fields

__all__ = ["CODEC_RAW", "DTYPE_BYTES", "KNOWN_CODECS", "TensorHeader"]

CODEC_RAW = 0
"""The elements as they lie in memory: row-major, little-endian."""

KNOWN_CODECS = (CODEC_RAW,)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

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
    def body_bytes(self) -> int:
        """How long the body must be; for the raw codec, the only one known, it follows from dtype and shape."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def to_map(self) -> dict[str, object]:
        return {"dtype": self.dtype, "shape": self.shape, "codec": self.codec}


def read_tensor(fields: Fields, body_bytes: int, *, least_tokens: int) -> TensorHeader:
    """The `tensor` field of a message whose body has `body_bytes` bytes. Raises `ProtocolViolation`."""
    tensor = fields.map("tensor")
    dtype = tensor.text("dtype", limits.MAX_WORD_CHARS)
    if dtype not in DTYPE_BYTES:
        raise tensor.wrong(f"dtype must be one of {', '.join(DTYPE_BYTES)}.")
    codec = tensor.integer("codec", limits.MAX_CODEC_ID)
    if codec not in KNOWN_CODECS:
        raise tensor.wrong(f"codec {codec} was not agreed on; codec {CODEC_RAW} is the only one known here.")
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
    if header.body_bytes != body_bytes:
        raise tensor.wrong(
            f"{dtype} of shape {list(shape)} takes {header.body_bytes} bytes, but the body has {body_bytes}."
        )
    return header
