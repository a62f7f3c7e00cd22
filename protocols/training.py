"""The messages of a pass without a cache, for training: train, ready, prompts, rows, gradients.

What a pass is, and in which order these come, is not known here; tensors are the frames' bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from . import limits
from .common import model_to_map, read_model, read_span
from .ids import ModelId
from .tensors import TensorHeader, read_codecs, read_tensor
from .wire import Fields

__all__ = ["Gradients", "Prompts", "Ready", "Rows", "Train"]


@dataclass(frozen=True, slots=True)
class Train:
    """client → server: run whole rows through blocks `start:end`, or take gradients back through them.

    Attributes:
        backward: whether gradients are wanted, of what goes in; else what comes out.
        dtype: of all tensors of the pass.
        codecs: as in `Open`.
        rows: how many there will be.
        tokens: of each.
        prompt_tokens: of the prompt of each block; 0 when there are no prompts.
    """

    type: ClassVar[str] = "train"
    model: ModelId
    start: int
    end: int
    backward: bool
    dtype: str
    codecs: tuple[int, ...]
    rows: int
    tokens: int
    prompt_tokens: int

    def to_map(self) -> dict[str, object]:
        return {
            "model": model_to_map(self.model),
            "start": self.start,
            "end": self.end,
            "backward": self.backward,
            "dtype": self.dtype,
            "codecs": self.codecs,
            "rows": self.rows,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
        }

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Train:
        start, end = read_span(fields)
        tokens = fields.integer("tokens", limits.MAX_STEP_TOKENS, least=1)
        return Train(
            model=read_model(fields),
            start=start,
            end=end,
            backward=fields.flag("backward"),
            dtype=fields.text("dtype", limits.MAX_WORD_CHARS, least_chars=1),
            codecs=read_codecs(fields),
            rows=fields.integer("rows", limits.MAX_TRAINING_ROWS, least=1),
            tokens=tokens,
            prompt_tokens=fields.integer("prompt_tokens", tokens),
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """server → client: send them, so many rows at a time, and so many such groups ahead of their answers."""

    type: ClassVar[str] = "ready"
    group_rows: int
    max_in_flight: int

    def to_map(self) -> dict[str, object]:
        return {"group_rows": self.group_rows, "max_in_flight": self.max_in_flight}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Ready:
        return Ready(
            group_rows=fields.integer("group_rows", limits.MAX_ROWS, least=1),
            max_in_flight=fields.integer("max_in_flight", limits.MAX_IN_FLIGHT, least=1),
        )


@dataclass(frozen=True, slots=True)
class Prompts:
    """client → server: prompts of some blocks; server → client: their gradients, summed over all rows.

    Attributes:
        block: the first of these.
        tensor: `(blocks, prompt_tokens, hidden_size)`.
    """

    type: ClassVar[str] = "prompts"
    block: int
    tensor: TensorHeader

    def to_map(self) -> dict[str, object]:
        return {"block": self.block, "tensor": self.tensor.to_map()}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Prompts:
        tensor = read_tensor(fields, body_bytes, least_tokens=1)
        return Prompts(fields.integer("block", limits.MAX_BLOCKS), tensor)


@dataclass(frozen=True, slots=True)
class Rows:
    """client → server: what enters the first block; server → client: what leaves the last one.

    Attributes:
        row: the first of these rows in the pass.
    """

    type: ClassVar[str] = "rows"
    row: int
    tensor: TensorHeader

    def to_map(self) -> dict[str, object]:
        return {"row": self.row, "tensor": self.tensor.to_map()}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Rows:
        tensor = read_tensor(fields, body_bytes, least_tokens=1)
        return Rows(fields.integer("row", limits.MAX_TRAINING_ROWS), tensor)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of a loss. client → server: of what leaves the last block, directly behind the rows they belong to;
    server → client: of what entered the first one.

    Attributes:
        row: the first of these rows in the pass.
    """

    type: ClassVar[str] = "gradients"
    row: int
    tensor: TensorHeader

    def to_map(self) -> dict[str, object]:
        return {"row": self.row, "tensor": self.tensor.to_map()}

    @staticmethod
    def read(fields: Fields, body_bytes: int) -> Gradients:
        tensor = read_tensor(fields, body_bytes, least_tokens=1)
        return Gradients(fields.integer("row", limits.MAX_TRAINING_ROWS), tensor)
