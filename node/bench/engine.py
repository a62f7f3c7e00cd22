"""One server and many sessions: tokens per second together, what long prompts do to others, what sessions take,
what beginnings that are known save.

The server is a process of its own on loopback. Sessions send the hidden states that a client would send, and no client
computes logits: on a small machine its share would drown the server's. Plain transformers runs in this process, turn by
turn with the rest.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from swarmnode.models.bundled import BUNDLED_NAME
from swarmnode.models.settings import Sampling
from swarmnode.node.cli.libraries import set_up_libraries
from swarmnode.node.cli.main import main
from swarmnode.node.demo import begin_bootstrap, make_servers, process_environment, serve_shares
from swarmnode.node.library import Model, open_node
from swarmnode.node.processes import OwnProcess, listening_to

from .prefix import SHARED_TOKENS, FirstTokens, sample_first_tokens
from .report import spread
from .tokens import TEXT, load_plain, sample_plain

if TYPE_CHECKING:
    import torch

__all__ = ["run"]

CONTEXT_TOKENS = 64
"""What a session holds before its decode steps are measured."""

CHUNK_TOKENS = 256
PETALS_SESSION_TOKENS = 2048
"""What Petals keeps for a session by default, whatever it uses."""

SESSION_TOKENS = 500


def run(argv: Sequence[str]) -> dict[str, object]:
    """Measure and return the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench engine", description=__doc__)
    parser.add_argument("--model", default=BUNDLED_NAME)
    parser.add_argument("--sessions", default="1,2,4,8,16,32", help="how many at once")
    parser.add_argument("--steps", type=int, default=24, help="decode steps of each session in a sample")
    parser.add_argument("--prefill-tokens", type=int, default=4000, help="of the prompt beside which one decodes")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(argv)
    set_up_libraries(debug=False)
    environ = process_environment(os.environ)
    with tempfile.TemporaryDirectory(prefix="swarmnode-bench-") as folder:
        own = {**environ, "XDG_CONFIG_HOME": folder}
        kinds = {"whole": (), "chunked": ("--prefill-chunk", str(CHUNK_TOKENS))}
        homes = [{**own, "XDG_STATE_HOME": f"{folder}/{kind}"} for kind in kinds]
        swarms = [(begin_bootstrap(home), make_servers(1, main)) for home in homes]
        return trio.run(partial(_measure, asked, dict(zip(kinds, swarms, strict=True)), kinds, own, folder))


async def _measure(
    asked: argparse.Namespace,
    swarms: dict[str, tuple[OwnProcess, list[OwnProcess]]],
    kinds: dict[str, tuple[str, ...]],
    environ: dict[str, str],
    folder: str,
) -> dict[str, object]:
    import torch

    from swarmnode.models.checkpoint import open_checkpoint

    checkpoint = await trio.to_thread.run_sync(open_checkpoint, asked.model)
    ids = checkpoint.tokenizer()(TEXT * (1 + CONTEXT_TOKENS // 16))["input_ids"][:CONTEXT_TOKENS]
    plain = await trio.to_thread.run_sync(load_plain, checkpoint.folder, asked.dtype)
    models: dict[str, Model] = {}
    async with AsyncExitStack() as stack:
        for kind, (bootstrap, servers) in swarms.items():
            await stack.enter_async_context(listening_to([bootstrap, *servers], lambda *_: None))
            more = ["--dtype", asked.dtype, "--device", asked.device, *kinds[kind]]
            shares = [(0, checkpoint.num_blocks)]
            home = {**environ, "XDG_STATE_HOME": folder}
            address = await serve_shares(bootstrap, servers, home, model=asked.model, shares=shares, more=more)
            node = await stack.enter_async_context(open_node(join=[address], listen=()))
            models[kind] = await node.load(asked.model, dtype=asked.dtype, device="cpu")
        whole = models["whole"]
        counts = [int(count) for count in asked.sessions.split(",")]
        together: dict[int, list[tuple[float, list[float]]]] = {count: [] for count in counts}
        plain_rates, alone_rates = [], []
        beside: dict[str, list[float]] = {kind: [] for kind in models}
        quiet: dict[str, list[float]] = {kind: [] for kind in models}
        first_tokens = FirstTokens()
        for number in range(asked.rounds + 1):  # the first round pays for kernels and memory
            rate = (await trio.to_thread.run_sync(sample_plain, plain, ids, ids, asked.steps + 1)).tokens_per_second
            alone = whole.generate(ids, sampling=Sampling(max_new_tokens=asked.steps + 1))
            async for _ in alone:
                pass
            samples = {count: await _together(whole, count, asked.steps) for count in counts}
            waits = {kind: await _beside(model, asked.prefill_tokens) for kind, model in models.items()}
            await sample_first_tokens(whole, number, FirstTokens() if number == 0 else first_tokens)
            if number == 0:
                continue
            plain_rates.append(rate)
            alone_rates.append(alone.tokens_per_second)
            for count, sample in samples.items():
                together[count].append(sample)
            for kind, (before, during) in waits.items():
                quiet[kind] += before
                beside[kind] += during
    span = await trio.to_thread.run_sync(
        partial(checkpoint.load_span, 0, checkpoint.num_blocks, dtype=getattr(torch, asked.dtype))
    )
    per_session = await trio.to_thread.run_sync(span.cache_bytes, SESSION_TOKENS)
    reserved = PETALS_SESSION_TOKENS * span.token_bytes
    one = spread([rate for rate, _ in together[counts[0]]])["median"]
    own = spread(plain_rates, 2)
    return {
        "model": asked.model,
        "dtype": asked.dtype,
        "context_tokens": CONTEXT_TOKENS,
        "transformers_tokens_per_second": own,
        "one_generation": {
            "tokens_per_second": spread(alone_rates, 2),
            "ratio_to_transformers": round(spread(alone_rates)["median"] / own["median"], 3),
        },
        "sessions": {
            str(count): {
                "tokens_per_second": spread([rate for rate, _ in taken], 2),
                "ratio_to_one": round(spread([rate for rate, _ in taken])["median"] / one, 2),
                "ratio_to_transformers": round(spread([rate for rate, _ in taken])["median"] / own["median"], 2),
                "step_ms": _percentiles([seconds for _, steps in taken for seconds in steps]),
            }
            for count, taken in together.items()
        },
        f"decode_step_ms_beside_{asked.prefill_tokens}_tokens_of_prefill": {
            kind: {"alone": _percentiles(quiet[kind]), "beside": _percentiles(beside[kind])} for kind in models
        },
        f"first_token_behind_{SHARED_TOKENS}_tokens_seen_or_not": first_tokens.report(),
        f"sessions_of_{SESSION_TOKENS}_tokens_per_gib": {
            "ours": (1 << 30) // per_session,
            "full_length_reserved": (1 << 30) // reserved,
            "ratio": round(reserved / per_session, 2),
        },
    }


async def _together(model: Model, count: int, steps: int) -> tuple[float, list[float]]:
    """Tokens per second of so many sessions that decode at once, and what each of their steps took."""
    taken: list[float] = []
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(model.session()) for _ in range(count)]
        state = _noise(model, 1)

        async def decode(session: Any) -> None:
            for _ in range(steps):
                begun = time.perf_counter()
                await session.step(state, keep=1)
                taken.append(time.perf_counter() - begun)

        for session in sessions:
            await session.step(_noise(model, CONTEXT_TOKENS), keep=0)
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(decode, session)
        return count * steps / (time.perf_counter() - begun), taken


async def _beside(model: Model, prefill_tokens: int) -> tuple[list[float], list[float]]:
    """What decode steps of one session take: alone, and while another sends a long prompt."""
    async with model.session() as decoding, model.session() as prompted:
        state = _noise(model, 1)
        await decoding.step(_noise(model, CONTEXT_TOKENS), keep=0)
        alone = [await _timed(decoding, state) for _ in range(8)]
        during: list[float] = []
        through = trio.Event()

        async def prefill() -> None:
            await prompted.step(_noise(model, prefill_tokens), keep=1)
            through.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefill)
            while not through.is_set():
                during.append(await _timed(decoding, state))
        return alone, during


async def _timed(session: Any, state: torch.Tensor) -> float:
    begun = time.perf_counter()
    await session.step(state, keep=1)
    return time.perf_counter() - begun


def _noise(model: Model, tokens: int) -> torch.Tensor:
    import torch

    return torch.randn(1, tokens, model.hidden_size, generator=torch.Generator().manual_seed(tokens))


def _percentiles(seconds: list[float]) -> dict[str, float | int]:
    ordered = sorted(1e3 * each for each in seconds)
    return {
        "p50": round(ordered[len(ordered) // 2], 1),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
        "max": round(ordered[-1], 1),
        "samples": len(ordered),
    }
