"""What an adapter's `adapter_config.json` asks for, and whether it can be served. Reads no tensor, knows no PEFT."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from swarmnode.errors import BadInput, CheckpointBroken

__all__ = ["AdapterSettings", "read_settings"]

MAX_PATTERNS = 4096
MAX_PATTERN_CHARACTERS = 256
MAX_PATTERN_REPEATS, MAX_PATTERN_GROUPS = 3, 2
"""Repeats and groups in a pattern for layers' names: with more of them a match can take for ever."""

MAX_ALPHA = 1e6

_INITIAL = {True, False, None, "gaussian", "eva", "orthogonal"}
"""Ways to begin training that leave the model's own weights as they are."""

_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),  # the tensors say which layers
    *("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "runtime_config"),  # the layers and tensors say it
    *("corda_config", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config", "qalora_group_size"),  # training
    "megatron_core",
}

_WORDS = {
    "use_dora": "is a DoRA adapter",
    "modules_to_save": "brings whole modules of its own (modules_to_save)",
    "target_parameters": "adapts parameters that are no layers, such as experts (target_parameters)",
    "trainable_token_indices": "brings token embeddings of its own (trainable_token_indices)",
    "layer_replication": "repeats blocks of its model (layer_replication)",
    "alora_invocation_tokens": "is an activated LoRA, which begins at certain tokens (alora_invocation_tokens)",
}


@dataclass(frozen=True)
class AdapterSettings:
    """The part of the settings that makes a difference when the adapter runs.

    Attributes:
        base_model: the model that it says it is for; may be empty.
    """

    base_model: str
    _rank: int
    _alpha: float
    _rank_stabilised: bool
    _ranks: Mapping[str, float]
    _alphas: Mapping[str, float]

    def rank(self, path: str) -> int:
        """Of the layer at this path, as the adapter's tensors call it."""
        return int(_matching(self._ranks, path, self._rank))

    def scaling(self, path: str) -> float:
        """What the layer's product counts with: PEFT's `alpha / r`, or `alpha / √r` (arXiv 2312.03732)."""
        rank = self.rank(path)
        return _matching(self._alphas, path, self._alpha) / (math.sqrt(rank) if self._rank_stabilised else rank)


def read_settings(name: str, given: Mapping[str, object]) -> AdapterSettings:
    """The settings of an adapter.

    Raises:
        BadInput: it is of a kind that cannot be served.
        CheckpointBroken: the settings make no sense.
    """
    kind = given.get("peft_type")
    if kind != "LORA":
        raise BadInput(f"Adapter {name} is of type {_shown(kind)}, not LORA.", hint="Only LoRA adapters can be served.")
    start = given.get("init_lora_weights", True)
    if not isinstance(start, str | bool | None) or start not in _INITIAL:
        raise BadInput(
            f"Adapter {name} is for a model that its training changed, too (init_lora_weights {_shown(start)}).",
            hint="Save it as a plain one: PEFT's save_pretrained takes path_initial_model_for_weight_conversion.",
        )
    for field, value in given.items():
        if field in _READ or field in _WITHOUT_EFFECT or not value or (field, value) == ("bias", "none"):
            continue
        what = _WORDS.get(field, f"uses {_shown(field)}")
        raise BadInput(f"Adapter {name} {what}, which cannot be served.", hint="Use a plain LoRA adapter.")
    base = given.get("base_model_name_or_path")
    return AdapterSettings(
        base_model=base[:200] if isinstance(base, str) and base.isprintable() else "",
        _rank=int(_number(name, "r", given.get("r", 8), least=1.0)),
        _alpha=_number(name, "lora_alpha", given.get("lora_alpha", 8)),
        _rank_stabilised=given.get("use_rslora") is True,
        _ranks=_patterns(name, "rank_pattern", given.get("rank_pattern"), least=1.0),
        _alphas=_patterns(name, "alpha_pattern", given.get("alpha_pattern")),
    )


def _number(name: str, field: str, value: object, *, least: float = -MAX_ALPHA) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= MAX_ALPHA:
        raise _broken(name, f"{field} is {_shown(value)}")
    return float(value)


def _patterns(name: str, field: str, given: object, *, least: float = -MAX_ALPHA) -> dict[str, float]:
    """Numbers by pattern of layers' names: the name itself, its end from a dot on, or a regular expression."""
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > MAX_PATTERNS:
        raise _broken(name, f"{field} is no table of up to {MAX_PATTERNS} patterns")
    for pattern in given:
        if len(pattern) > MAX_PATTERN_CHARACTERS or _is_intricate(pattern):
            raise _broken(name, f"a pattern of {field} is too intricate")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            raise _broken(name, f"{_shown(pattern)} in {field} is no pattern") from None
    return {pattern: _number(name, field, value, least=least) for pattern, value in given.items()}


def _is_intricate(pattern: str) -> bool:
    repeats, groups = len(re.findall(r"[*+?{]", pattern)), pattern.count("(")
    return repeats > MAX_PATTERN_REPEATS or groups > MAX_PATTERN_GROUPS or re.search(r"\)[*+?{]", pattern) is not None


def _matching(patterns: Mapping[str, float], path: str, otherwise: float) -> float:
    """The number of the first pattern that matches a path, as PEFT decides it."""
    for pattern, value in patterns.items():
        if path == pattern or path.endswith(f".{pattern}") or re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return otherwise


def _broken(name: str, what: str) -> CheckpointBroken:
    return CheckpointBroken(f"The settings of adapter {name} make no sense: {what}.", hint="Fetch the adapter anew.")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:59] + "…"
