"""Checkpoints that come quantised: in what, and whether transformers can load them here.

Its own quantizers do that, as a part is built by `from_pretrained`. Knows neither files nor parts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

from transformers import PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from swarmnode.errors import BadInput, SwarmnodeError

__all__ = ["method_of", "quantizer_faults_named", "require_loadable", "without_quantisation"]

MAX_METHOD_CHARACTERS: Final = 32
"""Of a method's name: servers announce it."""

PACKAGES: Final[Mapping[str, tuple[str, str]]] = {
    "aqlm": ("aqlm", "aqlm[cpu]"),
    "auto-round": ("auto_round", "auto-round"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "eetq": ("kernels", "kernels"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "hqq": ("hqq", "hqq"),
    "quark": ("quark", "amd-quark"),
    "spqr": ("spqr_quant", "spqr_quant[gpu]"),
    "vptq": ("vptq", "vptq"),
}
"""What transformers' quantizers need beside it: the module to be imported, and what to install for it."""


NOT_IN_PARTS: Final[Mapping[str, str]] = {
    "compressed-tensors": "it is unpacked when the whole model is called, which no server does",
    "torchao": "how, the headers of its files say, which transformers does not see when a model is loaded in parts",
}
"""What works in transformers, but not for parts: tried."""


def method_of(config: PretrainedConfig) -> str | None:
    """In what the weights come, as the config calls it (`fp8`, `bitsandbytes`, `gptq`, …); None: as plain numbers."""
    settings = _settings(config)
    if not settings:
        return None
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    return str(method or "unknown")[:MAX_METHOD_CHARACTERS]


def without_quantisation(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the same model with plain weights."""
    plain = copy.deepcopy(config)
    for each in (plain, plain.get_text_config(decoder=True)):
        vars(each).pop("quantization_config", None)
    return plain


def require_loadable(config: PretrainedConfig, name: str) -> None:
    """Raise BadInput where transformers cannot load what comes like this, saying why and what is missing."""
    method = method_of(config)
    if method is None:
        return
    if method in NOT_IN_PARTS:
        raise BadInput(
            f"The weights of {name} are quantised ({method}) and cannot be served in parts: {NOT_IN_PARTS[method]}.",
            hint="Use the model's original weights, in bfloat16, float16 or float32.",
        )
    module, package = PACKAGES.get(method, ("", ""))
    if module and find_spec(module) is None:
        raise BadInput(
            f"The weights of {name} are quantised ({method}), and {module}, which reads them, is not installed.",
            hint=f"Run `pip install '{package}'` in this environment, or use the model's original weights.",
        )
    with quantizer_faults_named(config, name):
        settings = copy.deepcopy(_settings(config))
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment(device_map=None)


@contextmanager
def quantizer_faults_named(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Turns whatever a quantizer raises into BadInput."""
    try:
        yield
    except SwarmnodeError:
        raise
    except Exception as error:
        if method_of(config) is None:
            raise
        words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BadInput(
            f"The weights of {name} are quantised ({method_of(config)}), and cannot be loaded here: {words}.",
            hint="Use the model's original weights, in bfloat16, float16 or float32.",
        ) from error


def _settings(config: PretrainedConfig) -> dict[str, Any]:
    for each in (config, config.get_text_config(decoder=True)):
        settings = getattr(each, "quantization_config", None)
        if settings:
            return settings if isinstance(settings, dict) else dict(settings.to_dict())
    return {}
