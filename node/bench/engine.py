"""One server and many sessions: tokens per second together, what long prompts do to others, what sessions take,
what beginnings that are known save.

The server is a process of its own on loopback. Sessions send the hidden states that a client would send, and no client
computes logits: on a small machine its share would drown the server's. Plain transformers runs in this process, turn by
turn with the rest.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from swarmnode.models.bundled import BUNDLED_NAME
from swarmnode.models.settings import Sampling
from swarmnode.node.cli.main import main
from swarmnode.node.demo import begin_bootstrap, make_servers, process_environment, serve_shares
from swarmnode.node.library import Model, open_node
from swarmnode.node.processes import OwnProcess, listening_to

from .prefix import SHARED_TOKENS, FirstTokens, sample_first_tokens
from .random_llama import LLAMA_1B, write_llama
from .report import spread
from .tokens import TEXT, load_plain, sample_plain

if TYPE_CHECKING:
    import torch

    from swarmnode.models.checkpoint import Checkpoint

__all__ = ["run"]

CONTEXT_TOKENS: Final = 64
"""What a session holds before its decode steps are measured."""

CHUNK_TOKENS: Final = 256
PETALS_SESSION_TOKENS: Final = 2048
"""What Petals keeps for a session by default, whatever it uses."""

SESSION_TOKENS: Final = 500
OPENED_SESSIONS: Final = 3
"""So many are really opened, to see that they take what was reckoned."""

KINDS: Final[dict[str, tuple[str, ...]]] = {"whole": (), "chunked": ("--prefill-chunk", str(CHUNK_TOKENS))}
"""Flags of each kind of server."""

Swarm = tuple[OwnProcess, list[OwnProcess]]


@dataclass(frozen=True, slots=True)
class Ground:
    """What the parts of a run stand on.

    Attributes:
        models: asked of a server of each kind in `KINDS` that the parts want.
        ids: a prompt of `CONTEXT_TOKENS`.
    """

    asked: argparse.Namespace
    checkpoint: Checkpoint
    models: dict[str, Model]
    ids: list[int]


def run(argv: Sequence[str]) -> dict[str, object]:
    """Measure and return the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench engine", description=__doc__)
    parser.add_argument("--model", default="smollm2", help="smollm2, llama-1b with random weights, or as for serve")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, of these")
    parser.add_argument("--sessions", default="1,2,4,8,16,32", help="how many at once")
    parser.add_argument("--steps", type=int, default=24, help="decode steps of each session in a sample")
    parser.add_argument("--prefill-tokens", type=int, default=4000, help="of the prompt beside which one decodes")
    parser.add_argument("--dtype", help="else float32, and bfloat16 for llama-1b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(argv)
    asked.parts = asked.parts.split(",")
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"there is no part {min(unknown)!r}, but {', '.join(PARTS)}")
    asked.dtype = asked.dtype or ("bfloat16" if asked.model == "llama-1b" else "float32")
    environ = process_environment(os.environ)
    with tempfile.TemporaryDirectory(prefix="swarmnode-bench-") as folder:
        own = {**environ, "XDG_CONFIG_HOME": folder}
        kinds = [kind for kind in KINDS if any(kind in PARTS[part][1] for part in asked.parts)]
        homes = {kind: {**own, "XDG_STATE_HOME": f"{folder}/{kind}"} for kind in kinds}
        swarms = {kind: (begin_bootstrap(homes[kind]), make_servers(1, main)) for kind in kinds}
        return trio.run(partial(_measure, asked, swarms, {**own, "XDG_STATE_HOME": folder}, Path(folder)))


async def _measure(
    asked: argparse.Namespace, swarms: dict[str, Swarm], environ: dict[str, str], folder: Path
) -> dict[str, object]:
    from swarmnode.models.checkpoint import open_checkpoint

    named = {"smollm2": BUNDLED_NAME, "llama-1b": str(folder / "llama-1b")}.get(asked.model, asked.model)
    if asked.model == "llama-1b":
        await trio.to_thread.run_sync(write_llama, folder / "llama-1b", LLAMA_1B)
    checkpoint = await trio.to_thread.run_sync(open_checkpoint, named)
    ids = checkpoint.tokenizer()(TEXT * (1 + CONTEXT_TOKENS // 16))["input_ids"][:CONTEXT_TOKENS]
    figures: dict[str, object] = {"model": asked.model, "dtype": asked.dtype, "context_tokens": CONTEXT_TOKENS}
    async with AsyncExitStack() as stack:
        models: dict[str, Model] = {}
        for kind, (bootstrap, servers) in swarms.items():
            await stack.enter_async_context(listening_to([bootstrap, *servers], lambda *_: None))
            more = ["--dtype", asked.dtype, "--device", asked.device, *KINDS[kind]]
            shares = [(0, checkpoint.num_blocks)]
            address = await serve_shares(bootstrap, servers, environ, model=named, shares=shares, more=more)
            node = await stack.enter_async_context(open_node(join=[address], listen=()))
            models[kind] = await node.load(named, dtype=asked.dtype, device="cpu")
        for part in asked.parts:
            measure, _ = PARTS[part]
            figures |= await measure(Ground(asked, checkpoint, models, ids))
    return {**figures, "device": _device_name(asked.device)}


async def _many(ground: Ground) -> dict[str, object]:
    """So many sessions at once, beside one generation alone and plain transformers, in turns."""
    asked, whole, ids = ground.asked, ground.models["whole"], ground.ids
    plain = await trio.to_thread.run_sync(load_plain, ground.checkpoint.folder, asked.dtype, asked.device)
    counts = [int(count) for count in asked.sessions.split(",")]
    together: dict[int, list[tuple[float, list[float]]]] = {count: [] for count in counts}
    plain_rates, alone_rates = [], []
    for number in range(asked.rounds + 1):  # the first round pays for kernels and memory
        rate = (await trio.to_thread.run_sync(sample_plain, plain, ids, ids, asked.steps + 1)).tokens_per_second
        alone = whole.generate(ids, sampling=Sampling(max_new_tokens=asked.steps + 1))
        async for _ in alone:
            pass
        samples = {count: await _together(whole, count, asked.steps) for count in counts}
        if number:
            plain_rates.append(rate)
            alone_rates.append(alone.tokens_per_second)
            for count, sample in samples.items():
                together[count].append(sample)
    one = spread([rate for rate, _ in together[counts[0]]])["median"]
    own = spread(plain_rates, 2)
    return {
        "transformers_tokens_per_second": own,
        "one_generation": {
            "tokens_per_second": spread(alone_rates, 2),
            "ratio_to_transformers": round(spread(alone_rates)["median"] / own["median"], 3),
        },
        "sessions": {
            str(count): {
                "tokens_per_second": spread([rate for rate, _ in taken], 2),
                f"ratio_to_{counts[0]}": round(spread([rate for rate, _ in taken])["median"] / one, 2),
                "ratio_to_transformers": round(spread([rate for rate, _ in taken])["median"] / own["median"], 2),
                "step_ms": _percentiles([seconds for _, steps in taken for seconds in steps]),
            }
            for count, taken in together.items()
        },
    }


async def _prompt(ground: Ground) -> dict[str, object]:
    """What a decoding session waits for its next token, alone and while another's long prompt comes in."""
    tokens = min(ground.asked.prefill_tokens, ground.checkpoint.context_tokens)
    beside: dict[str, list[float]] = {kind: [] for kind in ground.models}
    quiet: dict[str, list[float]] = {kind: [] for kind in ground.models}
    prefills: dict[str, list[float]] = {kind: [] for kind in ground.models}
    for number in range(ground.asked.rounds + 1):
        for kind, model in ground.models.items():
            before, during, seconds = await _beside(model, tokens, number)
            if number:
                quiet[kind] += before
                beside[kind] += during
                prefills[kind].append(seconds)
    return {
        f"decode_step_ms_beside_{tokens}_tokens_of_prefill": {
            kind: {
                "alone": _percentiles(quiet[kind]),
                "beside": _percentiles(beside[kind]),
                "prefill_seconds": spread(prefills[kind], 2),
            }
            for kind in ground.models
        }
    }


async def _prefix(ground: Ground) -> dict[str, object]:
    """What the first token of a prompt waits for whose beginning the server has met, or has not."""
    first_tokens = FirstTokens()
    for number in range(ground.asked.rounds + 1):
        await sample_first_tokens(ground.models["whole"], number, first_tokens if number else FirstTokens())
    return {f"first_token_behind_{SHARED_TOKENS}_tokens_seen_or_not": first_tokens.report()}


async def _memory(ground: Ground) -> dict[str, object]:
    """How many sessions fit a GiB, as reckoned, and whether those that are really opened take as much."""
    return await trio.to_thread.run_sync(_open_sessions, ground.checkpoint, ground.asked.dtype)


PARTS: Final[dict[str, tuple[Callable[[Ground], Awaitable[dict[str, object]]], tuple[str, ...]]]] = {
    "sessions": (_many, ("whole",)),
    "prompt": (_prompt, ("whole", "chunked")),
    "prefix": (_prefix, ("whole",)),
    "memory": (_memory, ()),
}
"""What can be measured, and the kinds of servers that it wants."""


def _open_sessions(checkpoint: Checkpoint, dtype: str) -> dict[str, object]:
    import torch

    from swarmnode.models.span import Piece, RaggedCache

    span = checkpoint.load_span(0, checkpoint.num_blocks, dtype=getattr(torch, dtype))
    reckoned = span.cache_bytes(SESSION_TOKENS)
    reserved = PETALS_SESSION_TOKENS * span.token_bytes
    figures: dict[str, object] = {
        "ours": (1 << 30) // reckoned,
        "full_length_reserved": (1 << 30) // reserved,
        "ratio": round(reserved / reckoned, 2),
    }
    if span.ragged:
        taken = []
        for _ in range(OPENED_SESSIONS):
            cache = span.open_session()
            assert isinstance(cache, RaggedCache)
            for position in range(0, SESSION_TOKENS, CHUNK_TOKENS):
                tokens = min(CHUNK_TOKENS, SESSION_TOKENS - position)
                span.run([Piece(cache, _noise(span.hidden_size, tokens).to(span.dtype), position, (tokens,))])
            taken.append(cache.memory_bytes)
        figures |= {"reckoned_bytes_of_one": reckoned, "taken_bytes_of_one": spread(taken, 0)}
    return {f"sessions_of_{SESSION_TOKENS}_tokens_per_gib": figures}


def _device_name(device: str) -> str:
    import torch

    from swarmnode.node.places import torch_device

    chosen = torch_device(device)
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type


async def _together(model: Model, count: int, steps: int) -> tuple[float, list[float]]:
    """Tokens per second of so many sessions that decode at once, and what each of their steps took."""
    taken: list[float] = []
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(model.session()) for _ in range(count)]
        state = _noise(model.hidden_size, 1)

        async def decode(session: Any) -> None:
            for _ in range(steps):
                begun = time.perf_counter()
                await session.step(state, keep=1)
                taken.append(time.perf_counter() - begun)

        for session in sessions:
            await session.step(_noise(model.hidden_size, CONTEXT_TOKENS), keep=0)
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(decode, session)
        return count * steps / (time.perf_counter() - begun), taken


async def _beside(model: Model, prefill_tokens: int, number: int) -> tuple[list[float], list[float], float]:
    """What decode steps of one session take: alone, and while another sends a long prompt; and what that takes.

    Args:
        number: of the round. Each has a prompt of its own, of which the server knows no beginning.
    """
    async with model.session() as decoding, model.session() as prompted:
        state = _noise(model.hidden_size, 1)
        await decoding.step(_noise(model.hidden_size, CONTEXT_TOKENS), keep=0)
        alone = [await _timed(decoding, state) for _ in range(8)]
        during: list[float] = []
        through = trio.Event()
        begun = ended = time.perf_counter()

        async def prefill() -> None:
            nonlocal ended
            await prompted.step(_noise(model.hidden_size, prefill_tokens, 1 + number), keep=1)
            ended = time.perf_counter()
            through.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefill)
            while not through.is_set():
                during.append(await _timed(decoding, state))
        return alone, during, ended - begun


async def _timed(session: Any, state: torch.Tensor) -> float:
    begun = time.perf_counter()
    await session.step(state, keep=1)
    return time.perf_counter() - begun


def _noise(hidden_size: int, tokens: int, seed: int = 0) -> torch.Tensor:
    import torch

    return torch.randn(1, tokens, hidden_size, generator=torch.Generator().manual_seed(seed))


def _percentiles(seconds: list[float]) -> dict[str, float | int]:
    ordered = sorted(1e3 * each for each in seconds)
    return {
        "p50": round(ordered[(len(ordered) - 1) // 2], 1),
        "p95": round(ordered[math.ceil(0.95 * (len(ordered) - 1))], 1),
        "max": round(ordered[-1], 1),
        "samples": len(ordered),
    }
