"""Tokens per second of plain transformers and of swarms of 1, 2 and 3 servers on this machine, turn by turn in one run.

Every server is a process of its own on loopback; the client is this process, and so is plain transformers. Each round
takes one sample of every contender, so that a noisy minute hits them all.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import trio

from swarmnode.models.bundled import BUNDLED_NAME
from swarmnode.models.settings import Sampling
from swarmnode.node.cli.main import main
from swarmnode.node.codec import COMPRESSIONS
from swarmnode.node.demo import begin_bootstrap, equal_shares, make_servers, process_environment, serve_shares
from swarmnode.node.library import Model, open_node
from swarmnode.node.processes import OwnProcess, listening_to

from .report import spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TEXT", "Sample", "load_plain", "run", "sample_plain"]

TEXT = "Once upon a time there was a village by the sea, and in the village lived an old woman who knew the winds. "


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one contender; `hop_seconds` of each decode step, none without a swarm."""

    tokens_per_second: float
    prefill_seconds: float
    hop_seconds: tuple[float, ...] = ()


Contender = Callable[[], Any]


def run(argv: Sequence[str]) -> dict[str, object]:
    """Measure and return the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench tokens")
    parser.add_argument("--model", default=BUNDLED_NAME)
    parser.add_argument("--servers", default="1,2,3", help="sizes of the swarms")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=8, help="of the decode samples")
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compression", default="auto", choices=COMPRESSIONS, help="of the swarms")
    asked = parser.parse_args(argv)
    environ = process_environment(os.environ)
    sizes = [int(size) for size in asked.servers.split(",")]
    with tempfile.TemporaryDirectory(prefix="swarmnode-bench-") as folder:
        own = {**environ, "XDG_CONFIG_HOME": folder}
        # A bootstrap node keeps its key, and so one home each.
        homes = [{**own, "XDG_STATE_HOME": f"{folder}/{size}"} for size in sizes]
        swarms = [(begin_bootstrap(home), make_servers(size, main)) for home, size in zip(homes, sizes, strict=True)]
        return trio.run(partial(_measure, asked, swarms, {**own, "XDG_STATE_HOME": folder}))


async def _measure(
    asked: argparse.Namespace, swarms: Sequence[tuple[OwnProcess, list[OwnProcess]]], environ: dict[str, str]
) -> dict[str, object]:
    import torch

    from swarmnode.models.checkpoint import open_checkpoint

    checkpoint = await trio.to_thread.run_sync(open_checkpoint, asked.model)
    ids = checkpoint.tokenizer()(TEXT * (1 + asked.prefill_tokens // 16))["input_ids"]
    short, long = ids[: asked.prompt_tokens], ids[: asked.prefill_tokens]
    plain = await trio.to_thread.run_sync(load_plain, checkpoint.folder)
    contenders: dict[str, Contender] = {
        "transformers": partial(trio.to_thread.run_sync, sample_plain, plain, short, long, asked.new_tokens)
    }
    async with AsyncExitStack() as stack:
        for bootstrap, servers in swarms:
            await stack.enter_async_context(listening_to([bootstrap, *servers], lambda *_: None))
        for bootstrap, servers in swarms:
            shares = equal_shares(checkpoint.num_blocks, len(servers))
            address = await serve_shares(
                bootstrap, servers, environ, model=asked.model, shares=shares, compression=asked.compression
            )
            node = await stack.enter_async_context(open_node(join=[address], listen=(), compression=asked.compression))
            model = await node.load(asked.model, dtype="float32", device="cpu")
            contenders[f"swarm_of_{len(servers)}"] = partial(_sample_swarm, model, short, long, asked.new_tokens)
        for contender in contenders.values():
            await contender()  # warm-up: the first pass of a process pays for its kernels and memory
        samples: dict[str, list[Sample]] = {name: [] for name in contenders}
        for _ in range(asked.rounds):
            for name, contender in contenders.items():
                samples[name].append(await contender())
    return {
        "model": asked.model,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "prompt_tokens": asked.prompt_tokens,
        "new_tokens": asked.new_tokens,
        "prefill_tokens": asked.prefill_tokens,
        "figures": {name: _figures(taken, samples["transformers"]) for name, taken in samples.items()},
    }


def _figures(taken: list[Sample], plain: list[Sample]) -> dict[str, object]:
    decode = spread([sample.tokens_per_second for sample in taken], 2)
    prefill = spread([sample.prefill_seconds for sample in taken], 3)
    plain_decode = spread([sample.tokens_per_second for sample in plain])
    plain_prefill = spread([sample.prefill_seconds for sample in plain])
    figures: dict[str, object] = {
        "decode_tokens_per_second": decode,
        "decode_ratio_to_transformers": round(decode["median"] / plain_decode["median"], 3),
        "prefill_seconds": prefill,
        "prefill_ratio_to_transformers": round(prefill["median"] / plain_prefill["median"], 3),
    }
    if hops := [1e3 * seconds for sample in taken for seconds in sample.hop_seconds]:
        figures["milliseconds_per_hop_beyond_compute"] = {**spread(hops, 3), "mean": round(fmean(hops), 3)}
    return figures


def load_plain(folder: Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """The model as transformers itself loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    from swarmnode.node.places import torch_device

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.eval().to(torch_device(device))


def sample_plain(model: PreTrainedModel, short: list[int], long: list[int], new_tokens: int) -> Sample:
    """What `generate` makes of a short prompt in decode, and of a long one in prefill."""
    first = _generate_plain(model, short, 1)
    whole = _generate_plain(model, short, new_tokens)
    return Sample((new_tokens - 1) / (whole - first), _generate_plain(model, long, 1))


def _generate_plain(model: Any, ids: list[int], new_tokens: int) -> float:
    import torch

    prompt = torch.tensor([ids], device=model.device)
    begun = time.perf_counter()
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    made.tolist()  # a device has computed by then
    return time.perf_counter() - begun


async def _sample_swarm(model: Model, short: list[int], long: list[int], new_tokens: int) -> Sample:
    decode = model.generate(short, sampling=Sampling(max_new_tokens=new_tokens))
    hops = [decode.last_hop_seconds async for _ in decode]
    async with model.generate(long, sampling=Sampling(max_new_tokens=1)) as prefill:
        await prefill.open()
        begun = time.perf_counter()
        async for _ in prefill:
            pass
        seconds = time.perf_counter() - begun
    return Sample(decode.tokens_per_second, seconds, tuple(hops[1:]))  # the first token is prefill's
