"""A LoRA adapter in PEFT's form, opened and checked against the model that it is for. Runs nothing; `lora.py` does.

All that can be wrong with an adapter is refused here, in words, on every server alike: whatever blocks it holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from swarmnode.errors import BadInput, CheckpointBroken, ModelNotFound

from .adapter_config import AdapterSettings, read_settings
from .cut import find_module
from .progress import Progress
from .source import HUB_ID, FolderFiles, ModelFiles, read_json
from .weights import LazyTensor, Reading, open_tensors

__all__ = ["AdaptedLayer", "Adapter", "open_adapter", "open_adapter_tensors"]

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

MAX_CONFIG_BYTES = 1 << 20
MAX_ADAPTER_BYTES = 8 << 30
"""As large as a small model; what is beyond is no low-rank adapter."""

MAX_RANK = 1024
DIGEST_BYTES = 16

_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<part>A|B)\.(?:default\.)?(?P<kind>weight|bias)")


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """One linear layer that an adapter adapts.

    Attributes:
        path: of the layer in the stock model.
        block: the block that it is in.
        rank: rows of its matrix A, columns of B.
        scaling: what the product counts with.
        a, b, bias: names of its tensors in the adapter.
        is_transposed: the layer keeps its weight as `[in, out]`, as GPT-2 does.
        numbers: of all its tensors together.
    """

    path: str
    block: int
    rank: int
    scaling: float
    a: str
    b: str
    bias: str | None
    is_transposed: bool
    numbers: int

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all its tensors."""
        return (self.a, self.b) if self.bias is None else (self.a, self.b, self.bias)


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits its model.

    Attributes:
        name: what its owner calls it.
        digest: 16 bytes over all that makes a difference in it.
        layers: what it adapts.
        path: its file.
    """

    name: str
    digest: bytes
    layers: tuple[AdaptedLayer, ...]
    path: Path

    @property
    def key(self) -> str:
        """What it is called inside a model: the same adapter under two names is there once."""
        return self.digest.hex()

    def block_bytes(self, num_blocks: int, dtype: torch.dtype) -> list[int]:
        """What it takes in each block of the model."""
        taken = [0] * num_blocks
        for layer in self.layers:
            taken[layer.block] += layer.numbers * dtype.itemsize
        return taken


def open_adapter(name: str, where: str, config: PretrainedConfig, *, progress: Progress | None = None) -> Adapter:
    """Open an adapter and download it where needed.

    Args:
        name: what to call it.
        where: its folder, or its hub id.
        config: of the whole model that it is for.

    Raises:
        BadInput: it is of a kind that cannot be served, or is for another model.
        CheckpointBroken: its files are damaged, incomplete or beyond bounds.
        ModelNotFound, ModelGated, HubUnreachable, DiskFull: it cannot be fetched.
    """
    files = _find_files(where, progress)
    settings = read_settings(name, _read_config(files))
    pickled = not files.has(SAFETENSORS) and files.has(PICKLED)
    if not pickled and not files.has(SAFETENSORS):
        raise CheckpointBroken(f"{files.where} has no {SAFETENSORS}.", hint="The adapter is incomplete: fetch it anew.")
    path = files.fetch(PICKLED if pickled else SAFETENSORS)
    if path.stat().st_size > MAX_ADAPTER_BYTES:
        raise CheckpointBroken(
            f"{path} has {path.stat().st_size:,} bytes; an adapter may have {MAX_ADAPTER_BYTES:,}.",
            hint="Serve a model of this size as a model.",
        )
    shapes = _shapes(path, pickled)
    layers = tuple(_Checked(name, config, settings, shapes).layers())
    with open_tensors({path: shapes}, f"adapter {name}", progress) as (tensors, _):
        digest = _digest(layers, tensors)
    return Adapter(name, digest, layers, path)


def open_adapter_tensors(
    adapter: Adapter, blocks: range, progress: Progress | None = None
) -> AbstractContextManager[tuple[dict[str, LazyTensor], Reading]]:
    """As `weights.open_tensors`, what an adapter has for some blocks."""
    names = [name for layer in adapter.layers if layer.block in blocks for name in layer.tensors]
    return open_tensors({adapter.path: names}, f"adapter {adapter.name}", progress)


def _find_files(where: str, progress: Progress | None) -> ModelFiles:
    path = Path(where).expanduser()
    try:
        is_folder = bool(where) and path.is_dir()
    except OSError:  # no name that a folder can have
        is_folder = False
    if is_folder:
        return FolderFiles(path.resolve(), path.resolve().name)
    if not HUB_ID.fullmatch(where):
        raise ModelNotFound(
            f"There is no adapter {where[:200]!r}: no such folder, and it is no hub id.",
            hint=f"Name a folder with {CONFIG} and {SAFETENSORS}, or a hub id like org/name.",
        )
    from .hub import HubFiles

    return HubFiles(where, progress=progress, marker=CONFIG)


def _read_config(files: ModelFiles) -> dict[str, object]:
    if not files.has(CONFIG):
        raise CheckpointBroken(f"{files.where} has no {CONFIG}.", hint="Name an adapter in PEFT's form.")
    path = files.fetch(CONFIG)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise CheckpointBroken(f"{path} is too large for an adapter's settings.", hint="Do not use this adapter.")
    return read_json(path)


def _shapes(path: Path, pickled: bool) -> dict[str, tuple[int, ...]]:
    if pickled:
        from .pickled import open_pickled

        return {name: tuple(tensor.shape) for name, tensor in open_pickled(path).items()}
    from .tensor_file import read_header

    return {name: entry.shape for name, entry in read_header(path).items()}


@dataclass(frozen=True)
class _Checked:
    """An adapter while its layers are checked against those that they are for."""

    name: str
    config: PretrainedConfig
    settings: AdapterSettings
    shapes: Mapping[str, tuple[int, ...]]

    def layers(self) -> Iterator[AdaptedLayer]:
        parts: dict[str, dict[str, str]] = {}
        for tensor in sorted(self.shapes):
            found = _TENSOR.fullmatch(tensor)
            if found is None or (found["part"], found["kind"]) == ("A", "bias"):
                raise BadInput(
                    f"Adapter {self.name} holds {_shown(tensor)}, which is no LoRA matrix of a linear layer.",
                    hint="Adapters of embeddings, of the head and of whole modules cannot be served.",
                )
            parts.setdefault(found["path"], {})[found["part"] + found["kind"]] = tensor
        if not parts:
            raise CheckpointBroken(f"Adapter {self.name} holds no tensors.", hint="Fetch it anew.")
        for path, tensors in parts.items():
            if not {"Aweight", "Bweight"} <= tensors.keys():
                raise CheckpointBroken(
                    f"Adapter {self.name} has half of a layer: {_shown(path)}.", hint="Fetch it anew."
                )
            yield self._layer(path, tensors)

    def _layer(self, path: str, tensors: Mapping[str, str]) -> AdaptedLayer:
        own_path, block, module = self._place(path)
        is_transposed = isinstance(module, Conv1D)
        weight = tuple(module.weight.shape)
        outputs, inputs = reversed(weight) if is_transposed else weight
        a, b, bias = self.shapes[tensors["Aweight"]], self.shapes[tensors["Bweight"]], tensors.get("Bbias")
        rank = a[0] if a else 0
        if not 1 <= rank <= MAX_RANK:
            raise BadInput(
                f"Adapter {self.name} has rank {rank}; 1 to {MAX_RANK} can be served.", hint="Train it anew."
            )
        if a != (rank, inputs) or b != (outputs, rank) or (bias is not None and self.shapes[bias] != (outputs,)):
            raise BadInput(
                f"Adapter {self.name} is for another model: its matrices for {_shown(own_path)} are {_times(a)} and "
                f"{_times(b)}, and the layer here takes {inputs} values and gives {outputs}.",
                hint=f"It says that it is for {self.settings.base_model}." if self.settings.base_model else "",
            )
        if rank != self.settings.rank(path):
            raise CheckpointBroken(
                f"Adapter {self.name} says rank {self.settings.rank(path)} for {_shown(path)}, but its matrices have "
                f"{rank}.",
                hint=f"Its {CONFIG} and its weights do not belong together: fetch it anew.",
            )
        return AdaptedLayer(
            path=own_path,
            block=block,
            rank=rank,
            scaling=self.settings.scaling(path),
            a=tensors["Aweight"],
            b=tensors["Bweight"],
            bias=bias,
            is_transposed=is_transposed,
            numbers=rank * (inputs + outputs) + (outputs if bias is not None else 0),
        )

    def _place(self, path: str) -> tuple[str, int, Any]:
        """The layer's path in the stock model, its block, and the layer."""
        found = find_module(self.config, path)
        if found is None:
            raise BadInput(
                f"Adapter {self.name} adapts {_shown(path)}, which is no layer of this {self.config.model_type} model.",
                hint="It is for another model, or for experts that the installed transformers keeps in one tensor.",
            )
        own_path, block, module = found
        what = f"Adapter {self.name} adapts {_shown(own_path)}"
        if block is None:
            raise BadInput(
                f"{what}, which is outside the blocks that servers hold.",
                hint="Train it on layers of the blocks only, such as target_modules='all-linear'.",
            )
        if not isinstance(module, nn.Linear | Conv1D):
            raise BadInput(f"{what}, which is no linear layer.", hint="Train it on linear layers only.")
        if re.search(r"\.\d+\.", own_path.partition(f".{block}.")[2]):
            raise BadInput(
                f"{what}, one of several experts, which see only some of the tokens.",
                hint="Train it on layers that see all tokens, such as those of the attention.",
            )
        return own_path, block, module


def _digest(layers: Iterable[AdaptedLayer], tensors: Mapping[str, LazyTensor]) -> bytes:
    """The content of an adapter: two files of the same adapter, written by different programs, give the same."""
    content = hashlib.sha256(b"swarmnode/adapter/1\0")
    for layer in sorted(layers, key=lambda each: each.path):
        content.update(json.dumps([layer.path, layer.rank, layer.scaling]).encode())
        for name in layer.tensors:
            tensor = tensors[name].to()
            content.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
            content.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return content.digest()[:DIGEST_BYTES]


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a number"


def _shown(path: str) -> str:
    return path if len(path) <= 120 else path[:119] + "…"
