"""Bringing a part its quantised layers, block by block: made by optimum's quanto the first time, then from a file.

Knows how codes are made and where they are kept, not how layers multiply with them (`quantised.py`). quanto's own
layers are not used: they cannot run in torch's inference mode, and have groups of sizes that no kernel takes.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedModel

from swarmnode.errors import BadInput, CheckpointBroken, DiskFull

from .cache_folder import cache_folder, require_room
from .cut import quantised_layers
from .devices import Placement
from .progress import Progress, ProgressEvent
from .quantised import GROUP_COLUMNS, QuantisedLinear, Scheme
from .tensor_file import read_header
from .tensor_writer import TensorWriter
from .weights import open_tensors

__all__ = ["BlockFiles", "fill_blocks", "quantise"]

FORMAT: Final = 1
"""Of the files. To be counted up when what is in them changes."""

PIECE_BYTES: Final = 2 << 20
"""Of a weight is quantised at once: quanto copies it several times, and not all memory of large copies comes back."""

Parts = dict[str, torch.Tensor]
Loader = Callable[[int, torch.dtype], PreTrainedModel]
"""Loads one block, not quantised, in the machine's memory."""

_log = logging.getLogger("swarmnode.quantising")


def fill_blocks(
    model: PreTrainedModel, placement: Placement, files: BlockFiles, load: Loader, progress: Progress | None = None
) -> None:
    """Bring all blocks of a part that was built with `Part.quant` the weights of their quantised layers.

    Of the blocks that are not in `files`, one at a time is in memory as it is stored.

    Args:
        placement: where the blocks go. If that is one device, the part is there; else `settle` brings them later.
        files: the quantised blocks on this disk; more are added.
        progress: told the bytes brought, block by block.

    Raises:
        BadInput: no block has any layer that can be quantised.
        CheckpointBroken: the checkpoint is damaged.
    """
    blocks = {index: _layers(model, index) for index in range(model.part.start, model.part.end)}
    sizes = {index: sum(_size(layer) for layer in layers.values()) for index, layers in blocks.items()}
    if not any(sizes.values()):
        raise BadInput(
            f"The blocks of {model.config.model_type} have no linear layers of a size that {files.scheme} can hold.",
            hint="Leave --quant out, or give int8.",
        )
    done, total = 0, sum(sizes.values())
    what = f"blocks {model.part.start}:{model.part.end} in {files.scheme}"
    for (index, layers), device in zip(blocks.items(), placement.devices, strict=True):
        if progress is not None:
            progress(ProgressEvent("load", what, done, total, "bytes"))
        held = _block_parts(index, layers, files, load)
        for path, layer in layers.items():
            layer.fill({part: held.pop(f"{path}.{part}") for part in layer.parts}, device)
            if placement.is_plain:
                layer.to(device)
        done += sizes[index]
    if progress is not None:
        progress(ProgressEvent("load", what, done, total, "bytes"))


def quantise(weight: torch.Tensor, scheme: Scheme) -> Parts:
    """A weight as the parts that `QuantisedLinear.fill` wants, made by quanto.

    Args:
        weight: `[rows, columns]`; in int4 the columns are a multiple of `GROUP_COLUMNS`.
    """
    pieces = weight.tensor_split(-(-weight.nbytes // PIECE_BYTES))
    made = [_quantise_piece(piece, scheme) for piece in pieces]
    return {name: torch.cat([each[name] for each in made]) for name in made[0]}


def _quantise_piece(weight: torch.Tensor, scheme: Scheme) -> Parts:
    from optimum.quanto import AbsmaxOptimizer, HqqOptimizer, qint4, qint8

    _compile_nothing()
    rows, columns = weight.shape
    if scheme == "int8":
        scale = _not_zero(AbsmaxOptimizer()(weight, qtype=qint8, axis=0))
        codes = torch.ops.quanto.quantize_symmetric(weight, dtype=torch.int8, axis=0, scale=scale)
        return {"codes": codes, "scale": scale.view(rows)}
    groups = columns // GROUP_COLUMNS
    # Slower than to take the largest and smallest of a group as its bounds, but it is done once, and int4 needs it.
    scale, shift = HqqOptimizer()(weight, qtype=qint4, axis=0, group_size=GROUP_COLUMNS)
    scale = _not_zero(scale)
    codes = torch.ops.quanto.quantize_affine(
        weight, bits=4, axis=0, group_size=GROUP_COLUMNS, scale=scale, shift=shift
    ).view(rows, columns)
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    return {"codes": packed, "scale": scale.view(rows, groups), "shift": shift.view(rows, groups)}


def _compile_nothing() -> None:
    """Have quanto take codes apart by torch's operations.

    By itself it would compile an extension into its own folder the first time: a minute that nobody is told about, for
    which a C++ compiler must be there, and for ever where another process has died over it.
    """
    from optimum.quanto.library.extensions.extension import get_extension

    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes of bytes in quanto's order: those in the lowest bits of all, then those in the next."""
    return torch.cat([(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)])


def _not_zero(scale: torch.Tensor) -> torch.Tensor:
    """With 1 for the scale of weights that are all the same: quanto would divide by it."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _layers(model: PreTrainedModel, index: int) -> dict[str, QuantisedLinear]:
    return quantised_layers(_block(model, index))


def _block(model: PreTrainedModel, index: int) -> nn.Module:
    block: nn.Module = model.get_submodule(f"{model.swarmnode_layout.blocks}.{index}")
    return block


def _size(layer: QuantisedLinear) -> int:
    return sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in layer.parts.values())


def _block_parts(index: int, layers: Mapping[str, QuantisedLinear], files: BlockFiles, load: Loader) -> Parts:
    """The parts of a block's layers, from its file or made now and kept."""
    announced = {f"{path}.{part}": what for path, layer in layers.items() for part, what in layer.parts.items()}
    held = files.read(index, announced)
    if held is not None:
        return held
    held = {}
    exact = _block(load(index, files.dtype), index)
    for path in layers:
        linear = exact.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        held |= {f"{path}.{part}": made for part, made in quantise(linear.weight.detach(), files.scheme).items()}
        linear.register_parameter("weight", None)  # its memory is wanted
        _give_back()
    files.write(index, held)
    return held


def _give_back() -> None:
    """Have the C library return what was freed to the system: quantising frees much in pieces that it would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class BlockFiles:
    """Quantised blocks of one model on this disk: they only save time, so what is damaged counts as absent.

    Args:
        model: the digest of its config and weights.
        dtype: what it was loaded in when it was quantised.
        folder: None is the one in the cache folder.
    """

    def __init__(self, model: bytes, scheme: Scheme, dtype: torch.dtype, folder: Path | None = None) -> None:
        self.scheme = scheme
        self.dtype = dtype
        kind = f"{scheme}-{str(dtype).removeprefix('torch.')}-quanto{version('optimum-quanto')}-{FORMAT}"
        self._folder = (folder or cache_folder() / "quantised") / f"{model.hex()}-{kind}"

    def read(self, index: int, announced: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Parts | None:
        """The tensors of a block, None when they are not here as announced."""
        path = self._path(index)
        if not path.exists():
            return None
        try:
            with open_tensors({path: announced}, f"block {index}") as (tensors, _):
                if set(read_header(path)) != set(announced):
                    raise CheckpointBroken(f"{path} holds other tensors than it should.")
                held = {name: tensor.to() for name, tensor in tensors.items()}
            wrong = [name for name, tensor in held.items() if (tensor.dtype, tuple(tensor.shape)) != announced[name]]
            if wrong:
                raise CheckpointBroken(f"{path} holds {wrong[0]} in another shape or type.")
        except (CheckpointBroken, OSError) as error:
            _log.warning("block %d is quantised again: %s", index, error)
            with suppress(OSError):
                path.unlink()
            return None
        return held

    def write(self, index: int, held: Mapping[str, torch.Tensor]) -> None:
        """Keep a block, whole or not at all; what cannot be written is done without."""
        path = self._path(index)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            require_room(self._folder, sum(tensor.nbytes for tensor in held.values()), "Keeping a quantised block")
            self._folder.mkdir(parents=True, exist_ok=True)
            with TensorWriter(draft, {name: (each.dtype, tuple(each.shape)) for name, each in held.items()}) as file:
                for name, tensor in held.items():
                    file.write(name, tensor)
            with draft.open("rb") as written:
                os.fsync(written.fileno())  # else a power cut may leave the name on a file of zeros
            draft.replace(path)
        except (DiskFull, OSError) as error:
            _log.warning("block %d is not kept for the next start: %s", index, error)
            with suppress(OSError):
                draft.unlink()

    def _path(self, index: int) -> Path:
        return self._folder / f"block-{index:04}.safetensors"
