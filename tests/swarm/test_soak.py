"""Three servers, four clients, two minutes: every answer right, nothing left behind. A real model, real processes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import psutil
import pytest
import trio

import swarmnode
from support.plain import english_ids, plain_answer
from support.programs import Program, split_evenly, swarm
from swarmnode.models.settings import Sampling
from swarmnode.node.library import Model

MODEL = "SmolLM2-135M-Instruct"
SERVERS = 3
CLIENTS = 4
SOAK_SECONDS = 120.0
WARM_UP_SECONDS = 15.0
NEW_TOKENS = 8
LENGTHS = (1, 4, 9, 30, 60, 120)
CANCELLED_SHARE = 0.25

# What may differ between two moments of a server that leaks nothing: allocator slack, a connection dialled twice.
MEMORY_SLACK_BYTES = 64 * 1024 * 1024
DESCRIPTOR_SLACK = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Held:
    """What a process holds at one moment."""

    memory_bytes: int
    descriptors: int
    threads: int


def held_by(server: Program) -> Held:
    process = psutil.Process(server.process.pid)
    with process.oneshot():
        return Held(process.memory_info().rss, process.num_fds(), process.num_threads())


@cache
def cases() -> list[tuple[tuple[int, ...], list[int]]]:
    """Prompts and what transformers answers to them."""
    ids = english_ids(MODEL)
    prompts = [ids[number * 97 : number * 97 + length] for number, length in enumerate(LENGTHS)]
    return [(prompt, plain_answer(MODEL, prompt, NEW_TOKENS)) for prompt in prompts]


async def ask(model: Model, dice: random.Random) -> bool:
    """One question, now and then broken off in the middle; whether it was answered whole."""
    prompt, expected = dice.choice(cases())
    stop_after = dice.randrange(NEW_TOKENS) if dice.random() < CANCELLED_SHARE else NEW_TOKENS
    async with model.generate(prompt, sampling=Sampling(max_new_tokens=NEW_TOKENS)) as generation:
        async for _ in generation:
            if len(generation.ids) > stop_after:
                break
    assert list(generation.ids) == expected[: len(generation.ids)]
    return len(generation.ids) == NEW_TOKENS


async def client(address: str, seed: int, ready: trio.Event, counts: list[int], until: trio.CancelScope) -> None:
    """Ask until told to stop; at least once."""
    dice = random.Random(seed)
    async with swarmnode.open_node(join=[address], listen=(), compression="lossless") as node:
        model = await node.load(dtype="float32", device="cpu")
        await ask(model, dice)
        ready.set()
        while not until.cancel_called:
            counts[seed] += await ask(model, dice)


async def soak(address: str, servers: Sequence[Program]) -> tuple[list[Held], list[Held], list[int]]:
    """Run the clients; what each server held after the warm-up and at the end, and answers per client."""
    counts = [0] * CLIENTS
    until = trio.CancelScope()
    ready = [trio.Event() for _ in range(CLIENTS)]
    async with trio.open_nursery() as nursery:
        for seed in range(CLIENTS):
            nursery.start_soon(partial(client, address, seed, ready[seed], counts, until))
        for event in ready:
            await event.wait()
        await trio.sleep(WARM_UP_SECONDS)
        before = [held_by(server) for server in servers]
        await trio.sleep(SOAK_SECONDS)
        after = [held_by(server) for server in servers]
        until.cancel()
    return before, after, counts


async def test_two_minutes_of_four_clients_leave_nothing_behind() -> None:
    assert len(cases()) == len(LENGTHS)
    with swarm(None, split_evenly(30, SERVERS)) as (address, servers):
        idle = [server.wait_for("load") for server in servers]
        assert [load["sessions"] for load in idle] == [0] * SERVERS

        before, after, counts = await soak(address, servers)

        print(f"answers per client: {counts}; before: {before}; after: {after}")
        assert all(counts), "every client was served"
        for then, now in zip(before, after, strict=True):
            assert now.memory_bytes <= then.memory_bytes + MEMORY_SLACK_BYTES
            assert now.descriptors <= then.descriptors + DESCRIPTOR_SLACK
            assert now.threads <= then.threads
        for server, load in zip(servers, idle, strict=True):
            tokens = load["cache_tokens_left"]
            at_rest = server.wait_until("load", lambda load: load["sessions"] == 0 and load["streams"] == 0)
            assert at_rest["cache_tokens_left"] == tokens
