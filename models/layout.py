"""What is where in a stock causal-LM model: its class, its text section, its blocks, and how to call it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, Cache, PretrainedConfig, PreTrainedModel

from swarmnode.errors import FamilyNotCertified

from .quirks import quirks_of

__all__ = [
    "Layout",
    "ancestors",
    "argument_names",
    "causal_class",
    "find_layout",
    "hidden_size",
    "num_blocks",
    "step_arguments",
    "text_config",
]


@dataclass(frozen=True)
class Layout:
    """Where a causal-LM model keeps its blocks (paths as in `named_modules`).

    Attributes:
        decoder: what to call to run the blocks: the outermost module below the head that takes hidden states, because a
            multimodal model may make its masks there.
        text: the innermost such module: what stands beside it serves images and sound.
        blocks: the list of blocks.
    """

    decoder: str
    text: str
    blocks: str


def causal_class(config: PretrainedConfig) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """The stock class for a config, and the config this class takes (perhaps the text section of a multimodal one).

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
    text = text_config(config)
    streams = quirks_of(config.model_type).streams_field
    return int(text.hidden_size) * (int(getattr(text, streams)) if streams else 1)


def find_layout(model: PreTrainedModel) -> Layout:
    """Find decoder and blocks in a whole model. Raises FamilyNotCertified when it has no list of blocks."""
    wanted = num_blocks(model.config)
    paths = {module: path for path, module in model.named_modules()}
    inner = [path for module in model.get_decoder().modules() if (path := paths[module])]
    for path in (*inner, *paths.values()):
        module = model.get_submodule(path)
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            around = [name for name in ancestors(path) if name and _takes_hidden_states(model.get_submodule(name))]
            if around:
                return Layout(decoder=around[-1], text=around[0], blocks=path)
    raise FamilyNotCertified(
        f"The model family {model.config.model_type!r} keeps no plain list of {wanted} blocks.",
        hint="Run `swarmnode models` for the families that can be served.",
    )


def _takes_hidden_states(module: nn.Module) -> bool:
    return "inputs_embeds" in argument_names(module)


def ancestors(path: str) -> Iterator[str]:
    """The paths of the modules around a module, innermost first."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def step_arguments(module: nn.Module, cache: Cache | None, position: int, tokens: torch.Tensor) -> dict[str, Any]:
    """What a stock forward wants to be told about a step beside its input, under the names it uses.

    Args:
        cache: None when nothing is to be remembered of the tokens.
        tokens: the input, `[rows, tokens, …]`, whose first token stands at `position`.
    """
    known = argument_names(module)
    arguments: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        arguments["cache_params" if "cache_params" in known else "past_key_values"] = cache
    if "position_ids" in known:
        places = torch.arange(position, position + tokens.shape[1], device=tokens.device)
        arguments["position_ids"] = places.unsqueeze(0).expand(tokens.shape[0], -1)
    return arguments


def argument_names(module: nn.Module) -> frozenset[str]:
    """What a module's forward can be told by name."""
    return _names_of(type(module).forward)


@functools.cache
def _names_of(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
