"""Which file of a checkpoint holds which tensor. Reads no tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from swarmnode.errors import CheckpointBroken

from .source import ModelFiles, read_json

__all__ = ["WeightsIndex", "read_index"]

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-]*\.(safetensors|bin)")
"""An index comes from strangers: a file that it names lies beside it, never elsewhere on the disk."""


@dataclass(frozen=True)
class WeightsIndex:
    """The file of every tensor.

    Attributes:
        file_of: tensor name to file name.
        pickled: the files are of the old kind that `torch.save` writes.
    """

    file_of: Mapping[str, str]
    pickled: bool = False

    @property
    def files(self) -> list[str]:
        """All weights files, sorted."""
        return sorted(set(self.file_of.values()))

    def files_of(self, tensors: Iterable[str]) -> dict[str, list[str]]:
        """The given tensors grouped by file, both sorted."""
        grouped: dict[str, list[str]] = {}
        for tensor in sorted(tensors):
            grouped.setdefault(self.file_of[tensor], []).append(tensor)
        return dict(sorted(grouped.items()))

    def to_json(self) -> bytes:
        """The index in the form that the model's digest is taken of."""
        return json.dumps({"weight_map": dict(self.file_of)}, sort_keys=True).encode()


def read_index(files: ModelFiles) -> WeightsIndex:
    """The index of a checkpoint, in the order in which transformers looks for one.

    Raises:
        CheckpointBroken: there are no weights, or the index makes no sense.
    """
    if files.has(SAFETENSORS):
        return WeightsIndex(dict.fromkeys(files.tensors_of(SAFETENSORS), SAFETENSORS))
    if files.has(SAFETENSORS_INDEX):
        return WeightsIndex(_weight_map(files.fetch(SAFETENSORS_INDEX)))
    if files.has(PICKLED):
        from .pickled import tensors_in

        return WeightsIndex(dict.fromkeys(tensors_in(files.fetch(PICKLED)), PICKLED), pickled=True)
    if files.has(PICKLED_INDEX):
        return WeightsIndex(_weight_map(files.fetch(PICKLED_INDEX)), pickled=True)
    raise CheckpointBroken(
        f"{files.where} holds no weights: neither {SAFETENSORS} nor {SAFETENSORS_INDEX}.",
        hint="Name a model in the transformers layout, or a .gguf file.",
    )


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointBroken(f"{path} has no weight_map.", hint="Copy or download the model again.")
    for file in set(map(str, weight_map.values())):
        if not _PLAIN_NAME.fullmatch(file):
            raise CheckpointBroken(
                f"{path} names a file {file!r}, which is no weights file beside it.",
                hint="Do not use this model: its index is damaged or malicious.",
            )
    return weight_map
