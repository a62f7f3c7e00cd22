"""Random adapters of tiny models, made and run by PEFT itself: what ours are compared with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

__all__ = ["SCALE", "peft_model", "save_adapter"]

SCALE = 0.3
"""Of the random weights: so large that an adapter is not to be overlooked."""


def save_adapter(
    whole: PreTrainedModel, folder: Path, targets: Sequence[str] | str, *, seed: int = 1, **settings: Any
) -> Path:
    """Make a random adapter for a model, with both its matrices filled, and save it. The model stays as it is."""
    config = LoraConfig(target_modules=targets if isinstance(targets, str) else [*targets], **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by names that are to go, and speaks of GPT-2's layers
        adapted = get_peft_model(copy.deepcopy(whole), config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator).to(weight.dtype) * SCALE
    adapted.save_pretrained(str(folder))
    return folder


def peft_model(whole: PreTrainedModel, folder: Path) -> PeftModel:
    """A copy of the whole model with the adapter, as PEFT loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(whole), folder).eval()
