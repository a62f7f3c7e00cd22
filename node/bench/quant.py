"""Exact and quantised weights of one model on one CPU: tokens per second, memory, time to load, perplexity.

All contenders are in this process and take turns within each round, so that a noisy minute hits them all. Speed is by
the thread's own CPU time, on one thread; load time is by the clock.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from swarmnode.models.bundled import BUNDLED_NAME
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.models.ends import Ends
from swarmnode.models.span import Span

from .codec_quality import WINDOW_TOKENS, text_ids
from .report import spread
from .tokens import load_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmnode.models.quantised import Scheme

__all__ = ["run"]

SEEN_TOKENS: Final = 32
"""Of a session before its decoding is measured."""
PREFILL_TOKENS: Final = 256


def run(argv: Sequence[str]) -> dict[str, object]:
    """Measure and return the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench quant")
    parser.add_argument("--model", default=BUNDLED_NAME)
    parser.add_argument("--tokens", type=int, default=16, help="to decode in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text-tokens", type=int, default=8 * WINDOW_TOKENS, help="to take the perplexity of")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(asked.model)
    windows, about = text_ids(checkpoint.tokenizer(), asked.text_tokens)
    contenders: dict[str, tuple[torch.dtype, Scheme | None]] = {
        "float32": (torch.float32, None),
        "bfloat16": (torch.bfloat16, None),
        "int8": (torch.bfloat16, "int8"),
        "int4": (torch.bfloat16, "int4"),
    }
    spans: dict[str, Span] = {}
    loads: dict[str, list[float]] = {}
    with _own_cache():
        for name, (dtype, quant) in contenders.items():
            loads[name] = []
            for _ in range(2):
                begun = time.perf_counter()
                spans[name] = checkpoint.load_span(0, checkpoint.num_blocks, dtype=dtype, quant=quant)
                loads[name].append(round(time.perf_counter() - begun, 2))
            _say(f"{name} loaded")
    ends = checkpoint.load_ends(dtype=torch.float32)
    ids = windows[0]
    plain = load_plain(checkpoint.folder)
    names = ("transformers", *spans)
    decode: dict[str, list[float]] = {name: [] for name in names}
    prefill: dict[str, list[float]] = {name: [] for name in names}
    for number in range(asked.rounds + 1):  # the first is to warm up
        for name in names:
            times = (
                _plain_seconds(plain, ids, asked.tokens)
                if name == "transformers"
                else _seconds(spans[name], ends, ids, asked.tokens)
            )
            if number:
                prefill[name].append(PREFILL_TOKENS / times[0])
                decode[name].append(asked.tokens / times[1])
        _say(f"round {number} of {asked.rounds}")
    figures: dict[str, object] = {}
    exact = _losses(spans["float32"], ends, windows)
    for name in names:
        row: dict[str, object] = {
            "decode_tokens_per_cpu_second": spread(decode[name], 2),
            "decode_ratio_to_transformers": _ratio(decode[name], decode["transformers"]),
            "prefill_tokens_per_cpu_second": spread(prefill[name], 1),
            "prefill_ratio_to_transformers": _ratio(prefill[name], prefill["transformers"]),
        }
        if name in spans:
            losses = exact if name == "float32" else _losses(spans[name], ends, windows)
            row |= {
                "block_weights_mib": round(spans[name].weight_bytes / 2**20, 1),
                "load_seconds_first_and_second": loads[name],
                "perplexity": round(float(losses.exp()), 4),
                "perplexity_change_percent": round(100 * (float((losses - exact).exp()) - 1), 3),
            }
            _say(f"perplexity of {name}")
        figures[name] = row
    return {"model": asked.model, "threads": 1, "load_average": os.getloadavg(), "text": about, "figures": figures}


@contextmanager
def _own_cache() -> Iterator[None]:
    """Quantised blocks of this run only: the first load finds none."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(prefix="swarmnode-bench-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


@torch.inference_mode()
def _seconds(span: Span, ends: Ends, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Of a prefill, and of decoding in a session that has seen some tokens."""
    begun = time.thread_time()
    ends.logits(span.step(span.open_session(), ends.embed(ids[None, :PREFILL_TOKENS], 0), 0))
    prefilled = time.thread_time() - begun
    state = span.open_session()
    span.step(state, ends.embed(ids[None, :SEEN_TOKENS], 0), 0)
    begun = time.thread_time()
    for position in range(SEEN_TOKENS, SEEN_TOKENS + tokens):
        ends.logits(span.step(state, ends.embed(ids[None, position : position + 1], position), position))
    return prefilled, time.thread_time() - begun


@torch.inference_mode()
def _plain_seconds(model: Any, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
    """The same by the stock model with its own cache."""
    begun = time.thread_time()
    model(ids[None, :PREFILL_TOKENS], logits_to_keep=1)
    prefilled = time.thread_time() - begun
    state = model(ids[None, :SEEN_TOKENS], use_cache=True, logits_to_keep=1).past_key_values
    begun = time.thread_time()
    for position in range(SEEN_TOKENS, SEEN_TOKENS + tokens):
        model(ids[None, position : position + 1], past_key_values=state, use_cache=True)
    return prefilled, time.thread_time() - begun


@torch.inference_mode()
def _losses(span: Span, ends: Ends, windows: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood of a text's tokens, each after those before it in its window."""
    total = torch.zeros((), dtype=torch.float64)
    for ids in windows:
        hidden = span.step(span.open_session(), ends.embed(ids[None], 0), 0)
        told = ends.logits(hidden, last_only=False)[0, :-1].log_softmax(-1)
        total -= told.gather(1, ids[1:, None]).double().sum()
    return total / (windows.shape[0] * (windows.shape[1] - 1))


def _ratio(taken: list[float], plain: list[float]) -> float:
    return round(float(spread(taken)["median"] / spread(plain)["median"]), 3)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
