"""What compressing hidden states does to a model's words: the bundled one, on English text that Python brings along."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from swarmnode._native import codec_decode_into, codec_encode
from swarmnode.node.tensors import tensor_from_bytes, tensor_to_bytes
from swarmnode.protocols.tensors import (
    CODEC_E4M3,
    CODEC_E5M2,
    CODEC_H4,
    CODEC_H6,
    CODEC_H8,
    CODEC_LOSSLESS,
)

from . import rivals

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BOUNDARIES", "WINDOW_TOKENS", "load_plain", "measure", "text_ids"]

BOUNDARIES: Final = 8
WINDOW_TOKENS: Final = 512

Through = Callable[[torch.Tensor], tuple[torch.Tensor, int]]
"""Hidden states `[1, tokens, hidden_size]` in float32 → what the other end has, and how many bytes it took."""


@dataclass
class Tally:
    """Sums over all tokens of one scheme."""

    divergence: float = 0.0
    loss: float = 0.0
    agreed: int = 0
    coded_bytes: int = 0
    values: int = 0


def text_ids(tokenizer: Any, tokens: int) -> tuple[torch.Tensor, dict[str, object]]:
    """Ids `[windows, WINDOW_TOKENS]` from places spread evenly over the topics of `help()`; and what text that is."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer(text)["input_ids"]
    windows = -(-tokens // WINDOW_TOKENS)
    apart = (len(ids) - WINDOW_TOKENS) // windows
    chosen = [ids[number * apart : number * apart + WINDOW_TOKENS] for number in range(windows)]
    about: dict[str, object] = {
        "text": "pydoc_data.topics of this Python, in order of their names",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "windows": windows,
        "window_tokens": WINDOW_TOKENS,
        "tokens": windows * WINDOW_TOKENS,
    }
    return torch.tensor(chosen), about


def load_plain(folder: str) -> PreTrainedModel:
    """The stock model in float32."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def measure(model: PreTrainedModel, windows: torch.Tensor, told: Callable[[str], None]) -> dict[str, object]:
    """KL divergence, perplexity and agreement of each scheme, with every one of the boundaries compressed."""
    layers = model.model.layers
    edges = [round(len(layers) * part / (BOUNDARIES + 1)) for part in range(1, BOUNDARIES + 1)]
    schemes = _schemes()
    tallies = {name: Tally() for name in schemes}
    base = Tally()
    for number, ids in enumerate(windows):
        with torch.inference_mode():
            plain = _log_probabilities(model, ids)
            _count(base, plain, plain, ids)
            for name, through in schemes.items():
                with _compressed([layers[edge - 1] for edge in edges], through, tallies[name]):
                    _count(tallies[name], plain, _log_probabilities(model, ids), ids)
        told(f"window {number + 1} of {len(windows)}")
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    table = {name: _row(tally, base, windows.numel(), predicted) for name, tally in tallies.items()}
    return {
        "boundaries_after_block": edges,
        "perplexity": round(float(torch.tensor(base.loss / predicted).exp()), 4),
        "schemes": table,
        "hivemind_8_bit_kl_over": {
            name: round(tallies["hivemind_8_bit"].divergence / tallies[name].divergence, 2) for name in ("h8", "h6")
        },
    }


def _schemes() -> Mapping[str, Through]:
    coded = {
        "lossless_bf16": ("bfloat16", CODEC_LOSSLESS),
        "h8": ("float32", CODEC_H8),
        "h6": ("float32", CODEC_H6),
        "h4": ("float32", CODEC_H4),
    }
    schemes: dict[str, Through] = {"raw_bf16": lambda hidden: _through_codec(hidden, "bfloat16", 0)}
    for name, (dtype, codec) in coded.items():
        schemes[name] = lambda hidden, dtype=dtype, codec=codec: _through_codec(hidden, dtype, codec)  # type: ignore[misc]
    for kind, codec in (("e4m3", CODEC_E4M3), ("e5m2", CODEC_E5M2)):
        for named, group in (("row", 0), ("group_64", 64)):
            schemes[f"{kind}_{named}"] = lambda hidden, codec=codec, group=group: _through_float8(hidden, codec, group)  # type: ignore[misc]
    schemes["hivemind_8_bit"] = _through_blockwise
    schemes["e4m3_cast"] = lambda hidden: (rivals.plain_float8(hidden, "e4m3").to(torch.float32), hidden.numel())
    schemes["e5m2_cast"] = lambda hidden: (rivals.plain_float8(hidden, "e5m2").to(torch.float32), hidden.numel())
    return schemes


def _through_codec(hidden: torch.Tensor, dtype: str, codec: int) -> tuple[torch.Tensor, int]:
    """As a message of the swarm carries it."""
    header, body = tensor_to_bytes(hidden, dtype, codec)
    assert header.codec == codec, "the scheme was not used"
    return tensor_from_bytes(header, body).to(torch.float32), memoryview(body).nbytes


def _through_float8(hidden: torch.Tensor, codec: int, group: int) -> tuple[torch.Tensor, int]:
    rows, cols = hidden.shape[0] * hidden.shape[1], hidden.shape[2]
    blob = codec_encode(codec, 0, rows, cols, hidden.contiguous().numpy().data.cast("B"), group=group)
    back = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    codec_decode_into(blob, back.numpy().data.cast("B"), out_dtype=0, rows=rows, cols=cols)
    return back, len(blob)


def _through_blockwise(hidden: torch.Tensor) -> tuple[torch.Tensor, int]:
    coded = rivals.blockwise(hidden)
    return rivals.unblockwise(coded, hidden.shape), coded.message_bytes


class _compressed:  # noqa: N801 - used as a statement
    """While it holds, what these layers give goes through a scheme."""

    def __init__(self, layers: list[Any], through: Through, tally: Tally) -> None:
        self._layers = layers
        self._through = through
        self._tally = tally
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        self._hooks = [layer.register_forward_hook(self._replace) for layer in self._layers]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _replace(self, _layer: object, _given: object, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        seen, coded_bytes = self._through(hidden)
        self._tally.coded_bytes += coded_bytes
        self._tally.values += hidden.numel()
        return (seen, *output[1:]) if isinstance(output, tuple) else seen


def _log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids.unsqueeze(0), use_cache=False).logits[0]
    return logits.log_softmax(dim=-1)


def _count(tally: Tally, plain: torch.Tensor, changed: torch.Tensor, ids: torch.Tensor) -> None:
    tally.divergence += float((plain.exp() * (plain - changed)).sum(dim=-1).double().sum())
    tally.loss -= float(changed[:-1].gather(1, ids[1:].unsqueeze(1)).double().sum())
    tally.agreed += int((plain.argmax(dim=-1) == changed.argmax(dim=-1)).sum())


def _row(tally: Tally, base: Tally, tokens: int, predicted: int) -> dict[str, float | str]:
    return {
        "bytes_per_value": round(tally.coded_bytes / tally.values, 4),
        "kl_nats_per_token": f"{tally.divergence / tokens:.2e}",
        "perplexity_change_percent": round(
            100 * (float(torch.tensor((tally.loss - base.loss) / predicted, dtype=torch.float64).exp()) - 1), 3
        ),
        "top_1_agreement_percent": round(100 * tally.agreed / tokens, 2),
    }
