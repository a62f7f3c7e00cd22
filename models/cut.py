"""Cut a stock transformers model into parts: spans of blocks, and the ends around them.

A part is the stock causal-LM class itself, built whole on the meta device inside `from_pretrained`, from which all
that the part does not hold was taken out again: a block elsewhere becomes a `Gate` that lets the hidden state pass, any
other module a weightless `Absent`. What stays keeps its own name, index and config, so weight converters, tied heads,
per-layer lists and per-index constants work as in the whole model, and no family needs code of its own. Knows nothing
of positions and caches.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import local_torch_dtype
from transformers.utils import logging as transformers_logging

from swarmnode.errors import BadRange, CheckpointBroken

from .layout import Layout, ancestors, causal_class, find_layout, hidden_size, num_blocks, step_arguments, text_config
from .quantised import QuantisedLinear, Scheme, quantisable
from .quirks import quirks_of
from .ready_made import method_of
from .stand_ins import Absent, Gate

__all__ = [
    "Layout",
    "Part",
    "build_part",
    "causal_class",
    "find_layout",
    "find_module",
    "hidden_size",
    "num_blocks",
    "part_tensor_name",
    "part_tensor_names",
    "quantised_layers",
    "quiet_transformers",
    "sketch_blocks",
    "step_arguments",
    "text_config",
]

_TRANSFORMERS_LOCK = threading.RLock()

MAX_NAMED_TENSORS = 5
"""So many missing tensors are named in an error; the rest is counted."""


@dataclass(frozen=True)
class Part:
    """What a process holds of a model: the blocks `start:end`, or the ends (all that is not a block).

    Attributes:
        quant: in what the linear layers of the blocks are kept. The weights of those that can be are then no tensors of
            the part: `QuantisedLinear.fill` brings them.
    """

    kind: Literal["span", "ends"]
    start: int = 0
    end: int = 0
    quant: Scheme | None = None


def build_part(
    config: PretrainedConfig,
    part: Part,
    tensors: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> PreTrainedModel:
    """Build a part with its weights, in eval mode.

    Args:
        config: config of the whole model.
        tensors: the checkpoint's tensors of this part under its own names (`part_tensor_names` picks them). A value
            is a tensor, or a lazy safetensors slice that is read only when its turn comes, so that no two copies are
            ever held.

    Raises:
        CheckpointBroken: tensors are missing, have the wrong shape or cannot be converted.
        BadRange: the blocks are outside the model.
    """
    require_range(config, part)
    stock, config = causal_class(config)
    with quiet_transformers():
        try:
            model, report = _part_class(stock, part).from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except RuntimeError as error:
            raise CheckpointBroken(
                f"The weights of {_describe(part)} cannot be converted: {error}.",
                hint="The checkpoint is damaged or of another model: download it again.",
            ) from error
    _require_all(part, report)
    # Parameters keep requires_grad as the stock model has it: torch.matmul picks its kernel by it, autograd or not.
    return cast(PreTrainedModel, model.eval().to(device))


def sketch_blocks(config: PretrainedConfig, dtype: torch.dtype, quant: Scheme | None = None) -> PreTrainedModel:
    """All blocks of a model as a part, in the types that loading would give them, on the meta device: no weights."""
    stock, config = causal_class(copy.deepcopy(config))
    blocks = _part_class(stock, Part("span", 0, num_blocks(config), quant))
    with quiet_transformers(), torch.device("meta"), local_torch_dtype(dtype, stock.__name__):
        model = blocks(config)
    exact = model._get_dtype_plan(dtype)
    if exact:
        pattern, _, _ = build_glob_alternation(list(exact))
        for name, weight in (*model.named_parameters(), *model.named_buffers()):
            if pattern.search(name):
                weight.data = weight.data.float()
    for layer in quantised_layers(model).values():
        parts = {name: torch.empty(shape, dtype=kind, device="meta") for name, (kind, shape) in layer.parts.items()}
        layer.fill(parts, torch.device("meta"))
    return model.eval()


def quantised_layers(model: nn.Module) -> dict[str, QuantisedLinear]:
    """The layers of a part, or of one of its blocks, whose weights have to be brought by `fill`; by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantisedLinear)}


def part_tensor_names(config: PretrainedConfig, part: Part, names: Iterable[str]) -> list[str]:
    """Those of a checkpoint's tensor names that the part needs, in the given order."""
    require_range(config, part)
    whole = _names_of(config)
    entering = whole.enter(names)
    if method_of(config) is not None:
        return [name for name in names if whole.is_inside(part, entering[name])]
    held = whole.held(part)
    return [name for name in names if entering[name] in held]


def part_tensor_name(config: PretrainedConfig, part: Part, name: str) -> str | None:
    """The name under which a checkpoint's tensor enters the part (its own), or None when the part does not need it."""
    return name if part_tensor_names(config, part, [name]) else None


def find_module(config: PretrainedConfig, path: str) -> tuple[str, int | None, nn.Module] | None:
    """A module with a weight, by the path that it has in some checkpoint of a model.

    Returns:
        Its path in the stock model of the installed transformers, the block that it is in (None outside the blocks) and
        the module itself, on the meta device; None when there is no such module.
    """
    return _names_of(config).find_module(path)


class _Names:
    """Tells a part's tensors by the renamings that transformers itself applies when it loads."""

    def __init__(self, config: PretrainedConfig) -> None:
        stock, config = causal_class(config)
        with quiet_transformers(), torch.device("meta"):
            model = stock(config)
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._model = model
        self._state = model.state_dict()
        self._layout = find_layout(model)

    def enter(self, names: Iterable[str]) -> dict[str, str]:
        """Checkpoint name → name in the whole model (or a name that the model does not have)."""
        return {name: self._enter(name) for name in sorted(names, key=dot_natural_key)}

    def _enter(self, name: str) -> str:
        prefix = self._model.base_model_prefix
        renamed, _ = rename_source_key(name, self._renamings, self._converters, prefix, self._state)
        if renamed in self._state:
            return str(renamed)
        return str(rename_source_key(name, [], [], prefix, self._state)[0])

    def find_module(self, path: str) -> tuple[str, int | None, nn.Module] | None:
        name = self._enter(f"{path}.weight")
        if name not in self._state or not name.endswith(".weight"):
            return None
        path, block = name.removesuffix(".weight"), None
        if path.startswith(f"{self._layout.blocks}."):
            block = int(path.removeprefix(f"{self._layout.blocks}.").partition(".")[0])
        return path, block, self._model.get_submodule(path)

    def is_inside(self, part: Part, name: str) -> bool:
        """Whether a name, which the whole model need not know, belongs to a module that the part holds."""
        return name.startswith(tuple(f"{child}." for child, _ in self._model.named_children())) and not name.startswith(
            self._outside(part)
        )

    def _outside(self, part: Part) -> tuple[str, ...]:
        blocks = self._layout.blocks
        count = len(cast(nn.ModuleList, self._model.get_submodule(blocks)))
        elsewhere = [f"{blocks}.{index}." for index in range(count) if not holds(part, index)]
        return (*elsewhere, *(f"{path}." for path in dispensable(self._model, self._layout, part)))

    def held(self, part: Part) -> frozenset[str]:
        """Names in the whole model of what the part holds."""
        outside = self._outside(part)
        brought = {f"{path}.weight" for path in to_quantise(self._model, self._layout, part)}
        return frozenset(name for name in self._state if not name.startswith(outside) and name not in brought)


def _names_of(config: PretrainedConfig) -> _Names:
    return _cached_names(config.to_json_string(use_diff=False), _Uncompared(config))


@functools.lru_cache(maxsize=2)
def _cached_names(_config_json: str, config: _Uncompared) -> _Names:
    return _Names(config.config)


class _Uncompared:
    """Carries a config past a cache's key: the JSON beside it is what tells configs apart."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uncompared)


def holds(part: Part, block: int) -> bool:
    """Whether a block is in a part."""
    return part.kind == "span" and part.start <= block < part.end


def to_quantise(model: PreTrainedModel, layout: Layout, part: Part) -> dict[str, nn.Linear]:
    """The layers of a whole model, by path, that the part keeps in few bits."""
    if part.quant is None:
        return {}
    wide = list(model._get_dtype_plan(torch.float16))  # what a family wants in float32 where the rest is float16
    exact = build_glob_alternation(wide)[0].search if wide else None
    found: dict[str, nn.Linear] = {}
    for index in range(part.start, part.end):
        path = f"{layout.blocks}.{index}"
        for name, layer in quantisable(model.get_submodule(path), part.quant).items():
            if exact is None or not exact(f"{path}.{name}.weight"):
                found[f"{path}.{name}"] = layer
    return found


def _part_class(stock: type[PreTrainedModel], part: Part) -> type[PreTrainedModel]:
    """A subclass of the stock class that builds itself whole and then keeps the part.

    It bears the stock class's name and module because transformers looks weight converters up by them.
    """

    def __init__(self: PreTrainedModel, config: PretrainedConfig, *args: object, **kwargs: object) -> None:  # noqa: N807
        stock.__init__(self, config, *args, **kwargs)
        _keep(self, part)

    body = {"__init__": __init__, "__module__": stock.__module__, "__qualname__": stock.__qualname__, "part": part}
    return type(stock.__name__, (stock,), body)


def _keep(model: PreTrainedModel, part: Part) -> None:
    """Take everything out of a whole model that the part does not hold."""
    layout = find_layout(model)
    for path, layer in to_quantise(model, layout, part).items():
        model.set_submodule(path, QuantisedLinear(layer, cast(Scheme, part.quant)))
    quirks = quirks_of(model.config.model_type)
    blocks = cast(nn.ModuleList, model.get_submodule(layout.blocks))
    for index in range(len(blocks)):
        if not holds(part, index):
            blocks[index] = Gate(blocks[index], quirks.block_returns)
    for path in list(dispensable(model, layout, part)):
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, Absent(getattr(owner, name)))
    held = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.all_tied_weights_keys = {
        target: source for target, source in model.all_tied_weights_keys.items() if target in held and source in held
    }
    model.swarmnode_layout = layout


def dispensable(model: PreTrainedModel, layout: Layout, part: Part) -> Iterator[str]:
    """Paths of the modules outside the blocks that the part does without.

    The ends drop what stands beside the text model (vision and audio towers). A span drops, beyond that, every
    other module with trained weights (what is not trained is tables that blocks look things up in).
    """
    for owner in ancestors(layout.blocks):
        beside = owner != "" and layout.text.startswith(owner + ".")
        for name, child in model.get_submodule(owner).named_children():
            path = f"{owner}.{name}" if owner else name
            if layout.blocks == path or layout.blocks.startswith(path + "."):
                continue
            if part.kind == "span":
                if any(weight.requires_grad for weight in child.parameters()):
                    yield path
            elif beside:
                yield path


def require_range(config: PretrainedConfig, part: Part) -> None:
    total = num_blocks(config)
    if part.kind == "span" and not 0 <= part.start < part.end <= total:
        raise BadRange(
            f"Blocks {part.start}:{part.end} are not in this model, which has 0:{total}.",
            hint=f"Name a range within 0:{total}; the end is not included.",
        )


def _require_all(part: Part, report: Mapping[str, Any]) -> None:
    """Raise CheckpointBroken when transformers reports tensors missing or of another shape."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointBroken(
            f"The checkpoint lacks {len(missing)} tensors of {_describe(part)}: {_listed(missing)}.",
            hint="The checkpoint is incomplete or of another model: download it again.",
        )
    mismatched = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if mismatched:
        raise CheckpointBroken(
            f"{len(mismatched)} tensors of {_describe(part)} have another shape than the config says: "
            f"{_listed(mismatched)}.",
            hint="The weights and the config belong to different models: download both again.",
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED_TENSORS])
    return shown if len(names) <= MAX_NAMED_TENSORS else f"{shown} and {len(names) - MAX_NAMED_TENSORS} more"


def _describe(part: Part) -> str:
    return f"blocks {part.start}:{part.end}" if part.kind == "span" else "the model's ends"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load report, no progress bar: what matters in them is raised as an error. One thread at a time.

    While it builds a model transformers patches what all threads share (how weights are tied, the default dtype); two
    at once leave it broken for the rest of the process.
    """
    with _TRANSFORMERS_LOCK:
        verbosity = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
