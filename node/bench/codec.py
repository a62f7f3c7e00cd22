"""The codec's speed from Python, and what it does to a model's words, beside hivemind's 8 bits and plain 8-bit floats.

One thread, hidden states of the bundled model between its blocks 14 and 15. Each round takes one sample of every
contender of a size, so that a noisy minute hits them all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch

from swarmnode._native import codec_decode_into, codec_encode, codec_encode_into, codec_size
from swarmnode.models.bundled import BUNDLED_NAME
from swarmnode.node.cli.libraries import set_up_libraries
from swarmnode.protocols.tensors import DTYPE_NUMBERS

from . import codec_quality, rivals
from .report import spread

__all__ = ["run"]

SIZES_BYTES: Final = (5 * 1024, 64 * 1024, 1024 * 1024, 4 * 1024 * 1024)
SAMPLE_SECONDS: Final = 0.004
"""A sample repeats its call for about so long."""
SPEED_WINDOWS: Final = 8
SPEED_BLOCK: Final = 15

SCHEMES: Final = {
    "raw": (0, 0),
    "lossless": (1, 0),
    "h8": (2, 0),
    "h6": (3, 0),
    "e4m3_row": (4, 0),
    "e4m3_group_64": (4, 64),
    "e5m2_row": (5, 0),
    "h4": (6, 0),
}
RIVAL: Final = "hivemind_8_bit"
LIBRARY: Final = "hivemind_8_bit_by_bitsandbytes"

Contender = tuple[str, str, int, Callable[[], object]]
"""dtype and name, "encode" or "decode", values, the call."""


def run(argv: Sequence[str]) -> dict[str, object]:
    """Measure and return the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench codec")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each call")
    parser.add_argument("--tokens", type=int, default=10_240, help="of the quality part")
    parser.add_argument("--only", choices=("speed", "quality"))
    asked = parser.parse_args(argv)
    set_up_libraries(debug=False)

    from swarmnode.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(BUNDLED_NAME)
    windows, about = codec_quality.text_ids(checkpoint.tokenizer(), max(asked.tokens, SPEED_WINDOWS))
    model = codec_quality.load_plain(str(checkpoint.folder))
    figures: dict[str, object] = {"model": checkpoint.name, "text": about}
    if asked.only != "quality":
        figures["speed"] = _speed(_hidden_states(model, windows), asked.rounds)
    if asked.only != "speed":
        figures["quality"] = codec_quality.measure(model, windows, _told)
    return figures


def _told(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


@torch.inference_mode()
def _hidden_states(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Real hidden states `[rows, hidden_size]`, float32, enough for the largest size."""
    found = [
        model.model(ids.unsqueeze(0), output_hidden_states=True, use_cache=False).hidden_states[SPEED_BLOCK][0]
        for ids in windows[:SPEED_WINDOWS]
    ]
    return torch.cat(found)


def _speed(states: torch.Tensor, rounds: int) -> dict[str, object]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {str(size): _speed_at(states, size, rounds) for size in SIZES_BYTES}
    finally:
        torch.set_num_threads(threads)


def _speed_at(states: torch.Tensor, size_bytes: int, rounds: int) -> dict[str, object]:
    contenders: list[Contender] = []
    sizes: dict[str, dict[str, object]] = {}
    for dtype in ("float32", "bfloat16"):
        kind: torch.dtype = getattr(torch, dtype)
        rows = max(1, size_bytes // (states.shape[1] * kind.itemsize))
        values = states.repeat(-(-rows // len(states)), 1)[:rows].to(kind).contiguous()
        made, told = _contenders(values, dtype)
        contenders += made
        sizes |= told
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, way, count, call in contenders:
            samples.setdefault((name, way), []).append(count / _seconds(call) / 1e9)
    for (name, way), rates in samples.items():
        sizes[name][f"{way}_gvalues_per_second"] = spread(rates)
    return sizes | {"ratios": _ratios(samples)}


def _contenders(values: torch.Tensor, dtype: str) -> tuple[list[Contender], dict[str, dict[str, object]]]:
    """Every call to time on these values, and what each scheme makes of them."""
    rows, cols = values.shape
    number, count = DTYPE_NUMBERS[dtype], values.numel()
    memory = values.view(torch.uint8).numpy().data.cast("B")
    back = bytearray(memory.nbytes)
    contenders: list[Contender] = [(f"{dtype} memcpy", "copy", count, partial(_copy, back, memory))]
    about: dict[str, dict[str, object]] = {f"{dtype} memcpy": {"values": count}}
    for name, (scheme, group) in SCHEMES.items():
        given = (scheme, number, rows, cols, memory)
        blob = codec_encode(*given, group=group)
        room = bytearray(codec_size(scheme, number, rows, cols, group))
        label = f"{dtype} {name}"
        about[label] = {"values": count, "bytes_per_value": round(len(blob) / count, 4)}
        contenders.append((label, "encode", count, partial(codec_encode_into, *given, room, group=group)))
        decode = partial(codec_decode_into, blob, back, out_dtype=number, rows=rows, cols=cols)
        contenders.append((label, "decode", count, decode))
    if dtype == "float32":
        coded = rivals.blockwise(values)
        about[RIVAL] = {"values": count, "bytes_per_value": round(coded.message_bytes / count, 4)}
        contenders.append((RIVAL, "encode", count, partial(rivals.blockwise, values)))
        contenders.append((RIVAL, "decode", count, partial(rivals.unblockwise, coded, values.shape)))
        if (library := rivals.bitsandbytes()) is not None:
            codes, state = library.quantize_blockwise(values, blocksize=rivals.BLOCK, nested=False)
            about[LIBRARY] = {"values": count, "bytes_per_value": about[RIVAL]["bytes_per_value"]}
            encode = partial(library.quantize_blockwise, values, blocksize=rivals.BLOCK, nested=False)
            contenders.append((LIBRARY, "encode", count, encode))
            contenders.append((LIBRARY, "decode", count, partial(library.dequantize_blockwise, codes, state)))
        cast = rivals.plain_float8(values, "e4m3")
        about["e4m3_cast"] = {"values": count, "bytes_per_value": 1.0}
        contenders.append(("e4m3_cast", "encode", count, partial(rivals.plain_float8, values, "e4m3")))
        contenders.append(("e4m3_cast", "decode", count, partial(cast.to, torch.float32)))
    return contenders, about


def _copy(out: bytearray, memory: memoryview) -> None:
    out[:] = memory


def _seconds(call: Callable[[], object]) -> float:
    """What one call takes, as the mean of as many as fill a sample."""
    begun = time.perf_counter()
    call()
    once = max(time.perf_counter() - begun, 1e-7)
    calls = max(1, int(SAMPLE_SECONDS / once))
    begun = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begun) / calls


def _ratios(samples: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, dict[str, float | int]]:
    """Round by round, what was measured one after the other."""

    def over(one: tuple[str, str], other: tuple[str, str]) -> dict[str, float | int]:
        return spread([a / b for a, b in zip(samples[one], samples[other], strict=True)], 2)

    def both(name: str) -> list[float]:
        pairs = zip(samples[name, "encode"], samples[name, "decode"], strict=True)
        return [1 / (1 / encode + 1 / decode) for encode, decode in pairs]

    figures = {}
    for rival in (RIVAL, LIBRARY):
        if (rival, "encode") not in samples:
            continue
        for way in ("encode", "decode"):
            figures[f"h8_over_{rival}_{way}"] = over(("float32 h8", way), (rival, way))
        together = [ours / theirs for ours, theirs in zip(both("float32 h8"), both(rival), strict=True)]
        figures[f"h8_over_{rival}_both_ways"] = spread(together, 2)
    for way in ("encode", "decode"):
        figures[f"h8_{way}_over_memcpy"] = over(("float32 h8", way), ("float32 memcpy", "copy"))
    return figures
