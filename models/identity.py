"""Which weights a checkpoint holds, told apart from every other fine-tune. Reads slices, never whole files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from swarmnode._native import model_digest
from swarmnode.errors import CheckpointBroken

from .index import WeightsIndex
from .source import ModelFiles
from .tensor_file import read_header

__all__ = ["fingerprint", "identity_digest", "sample"]

SLICES = 8
SLICE_BYTES = 1024
"""Of each tensor: fine-tuning changes a weight matrix everywhere, so eight places are enough to see it."""

PICKLED_SLICES = 4096
"""Of a whole file whose tensors cannot be told apart without reading it."""

REVISION_CHARACTERS = 40
"""As many as a hub's commit has."""

VOLATILE = ("_name_or_path", "transformers_version")
"""Config fields that say who wrote the file, not what the model is."""


def fingerprint(files: ModelFiles, index: WeightsIndex) -> str:
    """The content of local weights as hex, from slices of every tensor: quick even for 100 GB.

    Raises:
        CheckpointBroken: a file is missing or damaged.
    """
    content = hashlib.sha256(b"swarmnode/weights/1\0")
    for name in index.files:
        path = files.fetch(name)
        content.update(name.encode() + b"\0")
        try:
            with path.open("rb", buffering=0) as file:
                if index.pickled:
                    size = os.fstat(file.fileno()).st_size
                    content.update(sample(file.fileno(), 0, size, PICKLED_SLICES))
                    continue
                for tensor, entry in sorted(read_header(path).items()):
                    content.update(f"{tensor}\0{entry.dtype}\0{entry.shape}\0".encode())
                    content.update(sample(file.fileno(), entry.offset, entry.size, SLICES))
        except OSError as error:
            raise CheckpointBroken(
                f"{path} cannot be read: {error.strerror}.", hint="Check the file's permissions and the disk."
            ) from error
    return content.hexdigest()[:REVISION_CHARACTERS]


def sample(file: int, offset: int, size: int, slices: int) -> bytes:
    """The length of a run of bytes and evenly spaced slices of it, its first and last byte among them."""
    parts = [size.to_bytes(8, "little")]
    if size <= slices * SLICE_BYTES:
        parts.append(os.pread(file, size, offset))
    else:
        last = size - SLICE_BYTES
        parts += [os.pread(file, SLICE_BYTES, offset + last * number // (slices - 1)) for number in range(slices)]
    return b"".join(parts)


def identity_digest(config: Mapping[str, object], index: WeightsIndex, revision: str, *, local: bool) -> bytes:
    """The 32 bytes that peers compare.

    Args:
        config: the content of `config.json`.
        index: the weights index.
        revision: the weights' fingerprint, which counts where there is no hub to vouch for the weights.
        local: the weights come from this machine.
    """
    stable = {key: value for key, value in config.items() if key not in VOLATILE}
    weights = json.loads(index.to_json())
    if local:
        weights["fingerprint"] = revision
    return model_digest(json.dumps(stable).encode(), json.dumps(weights).encode())


def file_fingerprint(path: Path) -> str:
    """A single file's content as hex, from slices of it. Raises CheckpointBroken."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            content = sample(file.fileno(), 0, size, PICKLED_SLICES)
    except OSError as error:
        raise CheckpointBroken(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    return hashlib.sha256(content).hexdigest()[:REVISION_CHARACTERS]
