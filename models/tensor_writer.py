"""Writing a safetensors file whose tensors come in any order, one at a time. Knows no model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch

from swarmnode.errors import CheckpointBroken

__all__ = ["TensorWriter"]

ALIGNMENT_BYTES = 64
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}


class TensorWriter:
    """A safetensors file in the making. Used as a context manager; the tensors not written make leaving it an error.

    Args:
        path: the file, which must not exist.
        tensors: type and shape of each tensor that will be written.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._path = path
        self._tensors = tensors
        self._offsets: dict[str, int] = {}
        self._unwritten = set(tensors)
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in sorted(tensors.items()):
            size = dtype.itemsize * math.prod(shape)
            entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            self._offsets[name] = end
            end += size
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT_BYTES)
        self._data_start = 8 + len(header)
        self._file = path.open("xb")
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.truncate(self._data_start + end)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor, converted to its announced type. Raises CheckpointBroken for another shape or name."""
        if name not in self._tensors:
            raise CheckpointBroken(f"{name} is no tensor of this model.", hint="The file is of another model.")
        dtype, shape = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointBroken(
                f"{name} has shape {list(tensor.shape)} where the model's config says {list(shape)}.",
                hint="The file's metadata and weights are of different models: download it again.",
            )
        content = tensor.to(dtype).contiguous().flatten().view(torch.uint8)
        self._file.seek(self._data_start + self._offsets[name])
        self._file.write(content.numpy().data)
        self._unwritten.discard(name)

    def __enter__(self) -> TensorWriter:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file. Raises CheckpointBroken when announced tensors were never written."""
        self._file.close()
        if kind is None and self._unwritten:
            raise CheckpointBroken(
                f"{self._path} came out without {min(self._unwritten)} and {len(self._unwritten) - 1} more tensors.",
                hint="The file is incomplete or of another model: download it again.",
            )
