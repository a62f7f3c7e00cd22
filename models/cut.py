"""Cut a stock transformers model into parts: spans of blocks, and the ends around them.

A part is the stock causal-LM class itself, built whole on the meta device inside `from_pretrained`, from which all that the part
does not hold was taken out again: a block elsewhere becomes a `Gate` that lets the hidden state pass, any other module a
weightless `Absent`. What stays keeps its own name, index and config, so weight converters, tied heads, per-layer lists and per-index
constants work as in the whole model, and no family needs code of its own. Knows nothing of positions and caches.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, Cache, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils import logging as transformers_logging

from swarmnode.errors import BadRange, CheckpointBroken, FamilyNotCertified

from .quirks import quirks_of

__all__ = [
    "Absent",
    "Gate",
    "Layout",
    "Part",
    "build_part",
    "causal_class",
    "find_layout",
    "hidden_size",
    "num_blocks",
    "part_tensor_name",
    "part_tensor_names",
    "quiet_transformers",
    "step_arguments",
    "text_config",
]

MAX_NAMED_TENSORS = 5
"""So many missing tensors are named in an error; the rest is counted."""


@dataclass(frozen=True)
class Part:
    """What a process holds of a model: the blocks `start:end`, or the ends (all that is not a block)."""

    kind: Literal["span", "ends"]
    start: int = 0
    end: int = 0


class _StandIn(nn.Module):
    """Stands for a module that is not held: has no weights, but answers for its attributes (some models ask for them)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        vars(self)["stands_for"] = module  # past nn.Module's registration: its meta tensors are no part of the model

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["stands_for"], name)


class Gate(_StandIn):
    """Stands for a block that is elsewhere: remembers the hidden state it sees and passes on `incoming`, or what it saw.

    Args:
        block: the block it stands for.
        returns_tuple: the family's blocks return tuples, hidden state first.
    """

    def __init__(self, block: nn.Module, returns_tuple: bool) -> None:
        super().__init__(block)
        self.returns_tuple = returns_tuple
        self.incoming: torch.Tensor | None = None
        self.seen: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> object:
        """Pass the hidden state on, ignoring everything else a block is given."""
        self.seen = hidden_states
        out = hidden_states if self.incoming is None else self.incoming
        return (out,) if self.returns_tuple else out


class Absent(_StandIn):
    """Stands for a module the part does not need: a norm or projection gives back what it is given, an embedding zero."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._embeds = isinstance(module, nn.Embedding)

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The first float tensor given, or a zero that adds to anything."""
        for value in (*args, *kwargs.values()):
            if not self._embeds and isinstance(value, torch.Tensor) and value.is_floating_point():
                return value
        return torch.zeros(())


@dataclass(frozen=True)
class Layout:
    """Where a causal-LM model keeps its decoder and its blocks (paths as in `named_modules`)."""

    decoder: str
    blocks: str


def causal_class(config: PretrainedConfig) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """The stock class for a config, and the config that this class takes (of a multimodal model perhaps the text section).

    Raises:
        FamilyNotCertified: transformers has no such class.
    """
    stock = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if stock is None:
        raise FamilyNotCertified(
            f"The model family {config.model_type!r} is no causal language model of the installed transformers.",
            hint="Run `swarmnode models` for the families that can be served.",
        )
    if isinstance(stock, tuple):
        named = [each for each in stock if each.__name__ in (config.architectures or ())]
        stock = (named or stock)[0]
    text_class = config.sub_configs.get("text_config")
    if text_class is not None and stock.config_class == text_class:
        config = config.get_text_config()
    return stock, config


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The decoder's own config: the config itself, or the text section of a multimodal one."""
    return config.get_text_config(decoder=True)


def num_blocks(config: PretrainedConfig) -> int:
    """How many blocks the whole model has."""
    text = text_config(config)
    return int(getattr(text, quirks_of(config.model_type).num_blocks_field))


def hidden_size(config: PretrainedConfig) -> int:
    """Width of the hidden state between blocks."""
    return int(text_config(config).hidden_size)


def find_layout(model: PreTrainedModel) -> Layout:
    """Find decoder and blocks in a whole model. Raises FamilyNotCertified when it has no list of blocks."""
    wanted = num_blocks(model.config)
    paths = {module: path for path, module in model.named_modules()}
    inner = [path for module in model.get_decoder().modules() if (path := paths[module])]
    for path in (*inner, *paths.values()):
        module = model.get_submodule(path)
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            for decoder in _ancestors(path):
                if "inputs_embeds" in inspect.signature(model.get_submodule(decoder).forward).parameters:
                    return Layout(decoder=decoder, blocks=path)
    raise FamilyNotCertified(
        f"The model family {model.config.model_type!r} keeps no plain list of {wanted} blocks.",
        hint="Run `swarmnode models` for the families that can be served.",
    )


def _ancestors(path: str) -> Iterator[str]:
    """The paths of the modules around a module, innermost first."""
    while path:
        path = path.rpartition(".")[0]
        yield path


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
        tensors: the checkpoint's tensors of this part under the checkpoint's own names (`part_tensor_names` picks them). A value is a
            tensor, or a lazy safetensors slice that is read only when its turn comes, so that no two copies are ever held.

    Raises:
        CheckpointBroken: tensors are missing, have the wrong shape or cannot be converted.
        BadRange: the blocks are outside the model.
    """
    _require_range(config, part)
    stock, config = causal_class(config)
    with quiet_transformers():
        try:
            model, report = _part_class(stock, part).from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=dtype,
                device_map={"": device} if torch.device(device).type != "cpu" else None,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except RuntimeError as error:
            raise CheckpointBroken(
                f"The weights of {_describe(part)} cannot be converted: {error}.",
                hint="The checkpoint is damaged or of another model: download it again.",
            ) from error
    _require_all(part, report)
    # Parameters keep requires_grad as the stock model has it: torch.matmul picks its kernel by it, even in inference mode.
    return cast(PreTrainedModel, model.eval())


def part_tensor_names(config: PretrainedConfig, part: Part, names: Iterable[str]) -> list[str]:
    """Those of a checkpoint's tensor names that the part needs, in the given order."""
    match = _name_matcher(config, part)
    wanted = {name for name in sorted(names, key=dot_natural_key) if match(name)}
    return [name for name in names if name in wanted]


def part_tensor_name(config: PretrainedConfig, part: Part, name: str) -> str | None:
    """The name under which a checkpoint's tensor enters the part (its own name), or None when the part does not need it."""
    return name if _name_matcher(config, part)(name) else None


class _NameMatcher:
    """Tells a part's tensors by the renamings that transformers itself applies when it loads."""

    def __init__(self, config: PretrainedConfig, part: Part) -> None:
        _require_range(config, part)
        stock, config = causal_class(config)
        with quiet_transformers(), torch.device("meta"):
            model = _part_class(stock, part)(config)
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._held = model.state_dict()

    def __call__(self, name: str) -> bool:
        renamed, _ = rename_source_key(name, self._renamings, self._converters, self._prefix, self._held)
        if renamed in self._held:
            return True
        plain, _ = rename_source_key(name, [], [], self._prefix, self._held)
        return plain in self._held


@functools.lru_cache(maxsize=8)
def _cached_matcher(config_json: str, config: _ConfigKey, part: Part) -> _NameMatcher:
    return _NameMatcher(config.config, part)


@dataclass(frozen=True, eq=False)
class _ConfigKey:
    """Carries a config past the cache's key: the JSON beside it is what counts."""

    config: PretrainedConfig

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ConfigKey)


def _name_matcher(config: PretrainedConfig, part: Part) -> _NameMatcher:
    return _cached_matcher(config.to_json_string(use_diff=False), _ConfigKey(config), part)


@functools.lru_cache(maxsize=64)
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
    quirks = quirks_of(model.config.model_type)
    blocks = cast(nn.ModuleList, model.get_submodule(layout.blocks))
    for index in range(len(blocks)):
        if not (part.kind == "span" and part.start <= index < part.end):
            blocks[index] = Gate(blocks[index], quirks.tuple_blocks)
    for path in list(_dispensable(model, layout, part)):
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, Absent(getattr(owner, name)))
    held = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.all_tied_weights_keys = {
        target: source for target, source in model.all_tied_weights_keys.items() if target in held and source in held
    }
    model.swarmnode_layout = layout


def _dispensable(model: PreTrainedModel, layout: Layout, part: Part) -> Iterator[str]:
    """Paths of the modules outside the blocks that the part does without.

    The ends drop what stands beside the path from the model to its decoder (vision and audio towers). A span drops, beyond that, every
    other module with weights of its own, unless the blocks call it.
    """
    shared = quirks_of(model.config.model_type).shared_modules
    for owner in _ancestors(layout.blocks):
        beside = owner != "" and layout.decoder.startswith(owner + ".")
        for name, child in model.get_submodule(owner).named_children():
            path = f"{owner}.{name}" if owner else name
            if layout.blocks == path or layout.blocks.startswith(path + "."):
                continue
            if part.kind == "span":
                if name not in shared and any(True for _ in child.parameters()):
                    yield path
            elif beside:
                yield path


def _require_range(config: PretrainedConfig, part: Part) -> None:
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
            f"{len(mismatched)} tensors of {_describe(part)} have another shape than the config says: {_listed(mismatched)}.",
            hint="The weights and the config belong to different models: download both again.",
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED_TENSORS])
    return shown if len(names) <= MAX_NAMED_TENSORS else f"{shown} and {len(names) - MAX_NAMED_TENSORS} more"


def _describe(part: Part) -> str:
    return f"blocks {part.start}:{part.end}" if part.kind == "span" else "the model's ends"


def step_arguments(
    function: Any, position: int, rows: int, tokens: int, cache: Cache, device: torch.device
) -> dict[str, Any]:
    """What a stock forward wants to be told about a step beside its input, under the names it uses."""
    known = inspect.signature(function).parameters
    arguments: dict[str, Any] = {"use_cache": True}
    arguments["cache_params" if "cache_params" in known else "past_key_values"] = cache
    if "position_ids" in known:
        places = torch.arange(position, position + tokens, device=device)
        arguments["position_ids"] = places.unsqueeze(0).expand(rows, -1)
    return arguments


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load report, no progress bar: what matters in them is raised as an error."""
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
