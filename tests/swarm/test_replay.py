"""A session that was given up in the middle and sent again: the bits are those of one that never was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from trio.testing import MockClock

from swarmnode.node.background import open_background
from swarmnode.node.client.session import Session
from swarmnode.node.defaults import EVICTABLE_SECONDS
from swarmnode.node.library import Model, open_node
from swarmnode.node.net.memory import open_memory_net
from swarmnode.testing import make_tiny_model

STEPS = (5, 1, 1, 3, 1, 20, 1, 2, 1, 1)
TOKENS = sum(STEPS)
GIVEN_UP_AFTER = 7


@asynccontextmanager
async def tight_swarm(folder: Path, *, dtype: str, deterministic: bool) -> AsyncIterator[Model]:
    """Two servers that have room for one session each, asked by a third node."""
    async with open_memory_net() as net:
        opening = partial(open_node, compression="raw")
        async with (
            opening(network=net.network(0)) as head,
            opening(network=net.network(1), join=head.addrs) as tail,
            opening(network=net.network(2), join=head.addrs) as client,
            open_background() as nursery,
        ):
            for node, blocks in ((head, "0:2"), (tail, "2:4")):
                serve = partial(node.serve, blocks=blocks, dtype=dtype, deterministic=deterministic, cache_tokens=64)
                await nursery.start(serve, str(folder))
            yield await client.load(str(folder), dtype=dtype)


def states(model: Model) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, tokens, model.hidden_size, generator=generator) for tokens in STEPS]


async def take_its_cache(model: Model, clock: MockClock) -> None:
    """Have another session use the servers, whose caches have no room for two."""
    clock.jump(EVICTABLE_SECONDS)
    async with model.session(max_tokens=TOKENS) as other:
        await other.step(states(model)[0])
        clock.jump(EVICTABLE_SECONDS)  # it gives way, too, should its end be late


async def talk(session: Session, steps: list[torch.Tensor]) -> list[torch.Tensor]:
    return [await session.step(step) for step in steps]


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@pytest.mark.parametrize(("dtype", "deterministic"), [("float32", True), ("bfloat16", False)])
async def test_a_session_sent_again_has_the_bits_it_had(
    tmp_path: Path, mock_clock: MockClock, family: str, dtype: str, deterministic: bool
) -> None:
    mock_clock.rate = 1.0
    async with tight_swarm(make_tiny_model(tmp_path, family), dtype=dtype, deterministic=deterministic) as model:
        steps = states(model)
        async with model.session(max_tokens=TOKENS) as session:
            expected = await talk(session, steps)
            mock_clock.jump(EVICTABLE_SECONDS)
        async with model.session(max_tokens=TOKENS) as session:
            found = await talk(session, steps[:GIVEN_UP_AFTER])
            await take_its_cache(model, mock_clock)
            found += await talk(session, steps[GIVEN_UP_AFTER:])
            # All that it held and the next step went again in one message.
            assert session._ring._next_step == len(steps) - GIVEN_UP_AFTER
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


async def test_what_was_taken_back_is_not_sent_again(tmp_path: Path, mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    async with tight_swarm(make_tiny_model(tmp_path), dtype="float32", deterministic=True) as model:
        steps = states(model)
        async with model.session(max_tokens=TOKENS) as session:
            expected = await talk(session, [*steps[:3], *steps[4:]])
            mock_clock.jump(EVICTABLE_SECONDS)
        async with model.session(max_tokens=TOKENS) as session:
            await talk(session, steps[:6])
            session.truncate(sum(STEPS[:3]))
            found = await talk(session, steps[4:6])
            await take_its_cache(model, mock_clock)
            found += await talk(session, steps[6:])
        for ours, theirs in zip(found, expected[3:], strict=True):
            assert torch.equal(ours, theirs)


async def test_states_that_cannot_go_back_are_made_again_as_they_were(tmp_path: Path) -> None:
    async with tight_swarm(make_tiny_model(tmp_path, "mamba"), dtype="float32", deterministic=False) as model:
        steps = states(model)
        async with model.session(max_tokens=TOKENS) as session:
            expected = await talk(session, [*steps[:3], *steps[4:]])
        async with model.session(max_tokens=TOKENS) as session:
            await talk(session, steps[:6])
            session.truncate(sum(STEPS[:3]))
            found = await talk(session, steps[4:])
        for ours, theirs in zip(found, expected[3:], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_in_one_step_it_would_have_others(tmp_path: Path, mock_clock: MockClock, dtype: str) -> None:
    """What the tests above are worth."""
    mock_clock.rate = 1.0
    async with tight_swarm(make_tiny_model(tmp_path), dtype=dtype, deterministic=True) as model:
        steps = states(model)
        async with model.session(max_tokens=TOKENS) as session:
            apart = torch.cat(await talk(session, steps), dim=1)
            mock_clock.jump(EVICTABLE_SECONDS)
        async with model.session(max_tokens=TOKENS) as session:
            assert not torch.equal(await session.step(torch.cat(steps, dim=1)), apart)
