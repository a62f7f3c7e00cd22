"""The codec's speed from Python, and what it does to a model's words, beside hivemind's 8 bits and plain 8-bit floats.

One thread, hidden states of the bundled model between its blocks 14 and 15, laid in rows of 1,280 so that 5 KiB are
2,560 bfloat16 values. Each round takes one sample of every contender of a size, so that a noisy minute hits them all.
The best sample is what one core does when it is left alone, the median what it did here. Encoding makes a new message
each time, as a server does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch

from swarmnode._native import codec_decode_into, codec_encode
from swarmnode.models.bundled import BUNDLED_NAME
from swarmnode.protocols.tensors import DTYPE_NUMBERS

from . import codec_quality, rivals
from .report import spread

__all__ = ["run"]

SIZES_BYTES: Final = (5 * 1024, 64 * 1024, 1024 * 1024, 4 * 1024 * 1024)
SAMPLE_SECONDS: Final = 0.001
"""A sample repeats its call for about so long: well below a time slice of the scheduler."""
SPEED_COLUMNS: Final = 1280
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
    parser.add_argument("--rounds", type=int, default=25, help="samples of each call")
    parser.add_argument("--tokens", type=int, default=10_240, help="of the quality part")
    parser.add_argument("--only", choices=("speed", "quality"))
    asked = parser.parse_args(argv)

    from swarmnode.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(BUNDLED_NAME)
    windows, about = codec_quality.text_ids(checkpoint.tokenizer(), max(asked.tokens, SPEED_WINDOWS))
    model = codec_quality.load_plain(str(checkpoint.folder))
    figures: dict[str, object] = {"model": checkpoint.name, "text": about}
    if asked.only != "quality":
        figures["rival"] = rivals.about()
        figures["speed_gvalues_per_second"] = _speed(_hidden_states(model, windows), asked.rounds)
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
        count = size_bytes // (SPEED_COLUMNS * kind.itemsize) * SPEED_COLUMNS
        flat = states.reshape(-1).repeat(-(-count // states.numel()))
        values = flat[:count].reshape(-1, SPEED_COLUMNS).to(kind)
        made, told = _contenders(values, dtype)
        contenders += made
        sizes |= told
    calls = [_calls(call) for _, _, _, call in contenders]
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for (name, way, count, call), times in zip(contenders, calls, strict=True):
            samples.setdefault((name, way), []).append(count / _seconds(call, times) / 1e9)
    for (name, way), rates in samples.items():
        sizes[name][way] = {"median": round(statistics.median(rates), 3), "best": round(max(rates), 3)}
    return sizes | {"h8_over": _ratios(samples)}


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
        label = f"{dtype} {name}"
        about[label] = {"values": count, "bytes_per_value": round(len(blob) / count, 4)}
        contenders.append((label, "encode", count, partial(codec_encode, *given, None, group)))
        contenders.append((label, "decode", count, partial(codec_decode_into, blob, back, number, rows, cols)))
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


def _calls(call: Callable[[], object]) -> int:
    """How many calls fill a sample. The first one also warms up what it uses."""
    call()
    return max(1, int(SAMPLE_SECONDS / max(_seconds(call, 1), 1e-7)))


def _seconds(call: Callable[[], object], times: int) -> float:
    """What one call takes, as the mean of so many."""
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begun) / times


def _ratios(samples: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, dict[str, float | int]]:
    """How many times as quick h8 of float32 is: round by round, what was measured one after the other."""

    def rates(name: str, way: str) -> list[float]:
        if way != "both_ways":
            return list(samples[name, way])
        pairs = zip(samples[name, "encode"], samples[name, "decode"], strict=True)
        return [1 / (1 / encode + 1 / decode) for encode, decode in pairs]

    return {
        f"{rival}_{way}": spread(
            [ours / theirs for ours, theirs in zip(rates("float32 h8", way), rates(rival, way), strict=True)], 2
        )
        for rival in (RIVAL, LIBRARY)
        if (rival, "encode") in samples
        for way in ("encode", "decode", "both_ways")
    }
