"""Tensors from files, each read when its turn comes. Knows files and tensors, no model.

Mapped tensors count as the process's memory until the file is unmapped: 360 MiB of bfloat16 taken as float32 (720 MiB)
peaked at 1,082 MiB through safetensors' mapped slices, and peaks at 750 read this way, in pieces that are converted on
the way into memory of their own. tests/models/test_memory.py holds it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from swarmnode.errors import CheckpointBroken

from .pickled import open_pickled
from .progress import Progress, ProgressEvent
from .tensor_file import TensorEntry, read_header

__all__ = ["LazyTensor", "open_tensors"]

PIECE_BYTES = 1 << 20
"""Read and converted at once; a multiple of every number's size. Small, as the C library keeps what is freed in each of
transformers' four reading threads: with pieces of 8 MiB that came to 100 MiB.
"""

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}


class Reading:
    """One load: which files are open, how far it has come, what went wrong.

    transformers reads from several threads and keeps a failed tensor's error to itself, so the error stands here too.
    """

    def __init__(self, what: str, progress: Progress | None) -> None:
        self.failure: CheckpointBroken | None = None
        self.read: list[str] = []
        self._what = what
        self._progress = progress
        self._done_bytes = 0
        self._total_bytes = 0
        self._lock = threading.Lock()

    def expect(self, size: int) -> None:
        """So many bytes more will be read."""
        self._total_bytes += size

    def start(self) -> None:
        """All is known that will be read."""
        self._report()

    def done(self, name: str, size: int) -> None:
        """A tensor was read."""
        with self._lock:
            self.read.append(name)
            self._done_bytes += size
            self._report()

    def fail(self, error: CheckpointBroken) -> CheckpointBroken:
        """Remember an error, and give it back to be raised."""
        self.failure = self.failure or error
        return error

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(ProgressEvent("load", self._what, self._done_bytes, self._total_bytes, "bytes"))


class LazyTensor:
    """A tensor of a file that is read when transformers says in which type and where it is wanted.

    transformers takes a lazy tensor as `tensor[...].to(device=…, dtype=…)`. Read in small pieces straight into the
    result, it never exists in two types at once.

    Args:
        reading: the load that it belongs to.
        name: its name in the checkpoint.
        source: where its numbers come from.
    """

    def __init__(self, reading: Reading, name: str, source: Source) -> None:
        self.name = name
        self._reading = reading
        self._source = source
        reading.expect(source.size)

    def get_dtype(self) -> str:
        """Its stored type by safetensors' name, which transformers' quantizers ask for."""
        return next(name for name, dtype in DTYPES.items() if dtype is self._source.dtype)

    def __getitem__(self, _: object) -> LazyTensor:
        """All of it; nothing is read yet."""
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole tensor, in memory of its own. Raises CheckpointBroken."""
        source = self._source
        out = torch.empty(source.shape, dtype=dtype or source.dtype, device=device or "cpu")
        flat = out.view(-1)
        try:
            source.read_into(flat)
        except CheckpointBroken as error:
            raise self._reading.fail(error) from None
        self._reading.done(self.name, source.size)
        return out


class Source(Protocol):
    """Numbers in a file: their stored type, shape and bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    size: int

    def read_into(self, flat: torch.Tensor) -> None:
        """Fill a one-dimensional tensor of any type and device. Raises CheckpointBroken."""


class StoredSource:
    """A tensor in a safetensors file."""

    def __init__(self, path: Path, file: int, entry: TensorEntry) -> None:
        self.dtype = DTYPES[entry.dtype]
        self.shape = entry.shape
        self.size = entry.size
        self._path = path
        self._file = file
        self._offset = entry.offset

    def read_into(self, flat: torch.Tensor) -> None:
        """See Source."""
        if flat.dtype == self.dtype and flat.device.type == "cpu":
            self._read(flat.view(torch.uint8), self._offset)
            return
        buffer = torch.empty(min(PIECE_BYTES, self.size), dtype=torch.uint8)
        for start in range(0, self.size, PIECE_BYTES):
            piece = buffer[: self.size - start]
            self._read(piece, self._offset + start)
            numbers = piece.view(self.dtype)
            first = start // self.dtype.itemsize
            flat[first : first + numbers.numel()].copy_(numbers)

    def _read(self, raw: torch.Tensor, offset: int) -> None:
        rest = raw.numpy().data
        while rest:
            try:
                count = os.preadv(self._file, [rest], offset)
            except OSError as error:
                raise _unreadable(self._path, error.strerror) from error
            if count == 0:
                raise _unreadable(self._path, "it became shorter while it was read")
            rest, offset = rest[count:], offset + count


class MappedSource:
    """A tensor in a file that `torch.save` wrote, mapped into memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.shape = tuple(tensor.shape)
        self.size = tensor.nbytes
        self._tensor = tensor

    def read_into(self, flat: torch.Tensor) -> None:
        """See Source."""
        flat.view(self.shape).copy_(self._tensor)


@contextmanager
def open_tensors(
    files: Mapping[Path, Iterable[str]], what: str, progress: Progress | None = None
) -> Iterator[tuple[dict[str, LazyTensor], Reading]]:
    """The named tensors of the given files, to be read inside the `with` block.

    Args:
        files: for each file, the tensors wanted of it.
        what: what is loaded, for progress.
        progress: told the bytes read.

    Raises:
        CheckpointBroken: a file is damaged or lacks a tensor; raised anew on leaving when transformers swallowed it.
    """
    reading = Reading(what, progress)
    tensors: dict[str, LazyTensor] = {}
    with ExitStack() as stack:
        for path, names in files.items():
            if path.suffix == ".bin":
                mapped = open_pickled(path)
                _require(path, names, mapped)
                for name in names:
                    tensors[name] = LazyTensor(reading, name, MappedSource(mapped[name]))
                continue
            header = read_header(path)
            _require(path, names, header)
            file = stack.enter_context(path.open("rb", buffering=0)).fileno()
            for name in names:
                tensors[name] = LazyTensor(reading, name, StoredSource(path, file, header[name]))
        reading.start()
        try:
            yield tensors, reading
        finally:
            if reading.failure is not None:
                raise reading.failure


def _require(path: Path, names: Iterable[str], held: Mapping[str, object]) -> None:
    missing = sorted(set(names) - held.keys())
    if missing:
        raise CheckpointBroken(
            f"{path} lacks {missing[0]} and {len(missing) - 1} more tensors that the index promises.",
            hint="The files are of different models, or incomplete: copy or download them again.",
        )


def _unreadable(path: Path, reason: str | None) -> CheckpointBroken:
    return CheckpointBroken(f"{path} cannot be read: {reason}.", hint="Check the disk, or download the file again.")
