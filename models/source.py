"""Where a model's files come from: what every source offers, and the plain folder. Knows no torch and no hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from swarmnode.errors import CheckpointBroken

from .tensor_file import TensorEntry, read_header

__all__ = ["HUB_ID", "FolderFiles", "ModelFiles", "read_json"]

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._\-]{0,95}")

MAX_JSON_BYTES = 256 << 20
"""An index of a 400B model with 128 experts is about 20 MB."""


class ModelFiles(Protocol):
    """The files of one model, wherever they are.

    Attributes:
        name: the model's name, as peers know it.
        where: where the files are, for people.
        commit: the hub's commit; None where only the weights themselves can say which they are.
    """

    name: str
    where: str
    commit: str | None

    def has(self, name: str) -> bool:
        """Whether there is such a file, fetched or not."""

    def fetch(self, name: str) -> Path:
        """A file on this disk, downloaded when needed.

        Raises CheckpointBroken when there is no such file, and what a download raises.
        """

    def fetch_all(self, names: Sequence[str]) -> list[Path]:
        """Several files; the room for all of them is checked first. Raises like `fetch`, and DiskFull."""

    def tensors_of(self, name: str) -> dict[str, TensorEntry]:
        """The header of a safetensors file, without fetching the whole file where that can be avoided."""


class FolderFiles:
    """A model in a folder of this machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.where = str(folder)
        self.commit: str | None = None
        self.folder = folder

    def has(self, name: str) -> bool:
        """See ModelFiles."""
        return (self.folder / name).is_file()

    def fetch(self, name: str) -> Path:
        """See ModelFiles."""
        path = self.folder / name
        if not path.is_file():
            raise CheckpointBroken(
                f"{path} is missing.", hint="The model folder is incomplete: copy or download it again."
            )
        return path

    def fetch_all(self, names: Sequence[str]) -> list[Path]:
        """See ModelFiles."""
        return [self.fetch(name) for name in names]

    def tensors_of(self, name: str) -> dict[str, TensorEntry]:
        """See ModelFiles."""
        return read_header(self.fetch(name))


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file. Raises CheckpointBroken, naming the file."""
    hint = "The file is damaged: copy or download the model again."
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointBroken(f"{path} is too large for a JSON file of a model.", hint=hint)
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointBroken(f"{path} cannot be read: {error.strerror}.", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointBroken(f"{path} is not valid JSON: {error}.", hint=hint) from error
    if not isinstance(value, dict):
        raise CheckpointBroken(f"{path} holds no JSON object.", hint=hint)
    return value
