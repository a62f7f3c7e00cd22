"""Tensors from files, each read when its turn comes. Knows files and tensors, no model.

Mapped tensors count as the process's memory until the file is unmapped, so a converting load of mapped files peaks at
source and result together (tests/models/test_memory.py measures). Tensors are therefore read into memory of their own,
one at a time, and dropped once converted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from swarmnode.errors import CheckpointBroken

from .pickled import open_pickled
from .progress import Progress, ProgressEvent
from .tensor_file import TensorEntry, read_header

__all__ = ["LazyTensor", "open_tensors"]

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
    """A tensor that is read when it is indexed, as transformers does with a safetensors slice (`tensor[...]`).

    Args:
        reading: the load that it belongs to.
        name: its name in the checkpoint.
        size: its bytes there.
        load: reads it into memory of its own; raises CheckpointBroken.
    """

    def __init__(self, reading: Reading, name: str, size: int, load: Callable[[], torch.Tensor]) -> None:
        self.name = name
        self._reading = reading
        self._size = size
        self._load = load
        reading.expect(size)

    def __getitem__(self, _: object) -> torch.Tensor:
        """The whole tensor. Raises CheckpointBroken."""
        try:
            tensor = self._load()
        except CheckpointBroken as error:
            raise self._reading.fail(error) from None
        self._reading.done(self.name, self._size)
        return tensor


def read_tensor(path: Path, file: int, entry: TensorEntry) -> torch.Tensor:
    """A tensor of a safetensors file, read into memory of its own. Raises CheckpointBroken."""
    raw = torch.empty(entry.size, dtype=torch.uint8)
    rest, offset = raw.numpy().data, entry.offset
    while rest:
        try:
            count = os.preadv(file, [rest], offset)
        except OSError as error:
            raise _unreadable(path, error.strerror) from error
        if count == 0:
            raise _unreadable(path, "it became shorter while it was read")
        rest, offset = rest[count:], offset + count
    return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)


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
                    tensors[name] = LazyTensor(reading, name, mapped[name].nbytes, mapped[name].clone)
                continue
            header = read_header(path)
            _require(path, names, header)
            file = stack.enter_context(path.open("rb", buffering=0)).fileno()
            for name in names:
                load = partial(read_tensor, path, file, header[name])
                tensors[name] = LazyTensor(reading, name, header[name].size, load)
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
