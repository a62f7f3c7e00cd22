"""A tiny random model as a checkpoint on disk, whole by transformers and in parts by us: what is compared."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from . import cut
from .ends import Ends
from .span import Span

__all__ = ["TinyCheckpoint", "tiny_checkpoint"]

SEED = 20
NOISE = 0.05
"""Added to every weight, so that nothing a family initialises to zero or one hides a mistake."""


@dataclass(frozen=True)
class TinyCheckpoint:
    """A model folder, with the stock model loaded from it in float32."""

    folder: Path
    config: PretrainedConfig
    whole: PreTrainedModel

    def part(self, part: cut.Part, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Build a part from the folder as any node would."""
        with ExitStack() as files:
            slices: dict[str, Any] = {}
            for path in sorted(self.folder.glob("*.safetensors")):
                opened = files.enter_context(safe_open(path, framework="pt"))
                slices |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            tensors = {name: slices[name] for name in cut.part_tensor_names(self.config, part, slices)}
            return cut.build_part(self.config, part, tensors, dtype=dtype, device="cpu")

    def span(self, start: int, end: int, dtype: torch.dtype = torch.float32) -> Span:
        """The blocks `start:end`."""
        return Span(self.part(cut.Part("span", start, end), dtype))

    def ends(self, dtype: torch.dtype = torch.float32) -> Ends:
        """The ends."""
        return Ends(self.part(cut.Part("ends"), dtype))


@contextmanager
def tiny_checkpoint(config: PretrainedConfig, seed: int = SEED) -> Iterator[TinyCheckpoint]:
    """Save a random model of a config in its checkpoint format (experts apart, old names), for a while."""
    stock, own_config = cut.causal_class(config)
    with cut.quiet_transformers(), tempfile.TemporaryDirectory() as name:
        torch.manual_seed(seed)
        model = stock(copy.deepcopy(own_config))  # saving writes into its config
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * NOISE)
        model.save_pretrained(name)
        whole = stock.from_pretrained(name, config=own_config, dtype=torch.float32).eval()
        yield TinyCheckpoint(Path(name), config, whole)
