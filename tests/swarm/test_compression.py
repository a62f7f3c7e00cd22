"""What travels in a swarm's sessions, and what it does to the answers: agreed, chosen, forced, refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from support.tiny_swarm import PROMPT, TOKENS, Tiny, freed, read
from swarmnode.errors import ProtocolViolation
from swarmnode.node import tensors
from swarmnode.node.client import ring
from swarmnode.node.library import Model
from swarmnode.node.links import Link
from swarmnode.node.net.pipe import PipeStream
from swarmnode.node.server import batch, serving
from swarmnode.protocols.tensors import (
    CODEC_E4M3,
    CODEC_H4,
    CODEC_H6,
    CODEC_H8,
    CODEC_LOSSLESS,
    CODEC_RAW,
    TensorHeader,
)
from swarmnode.testing import MemorySwarm, open_memory_swarm

HIDDEN_TOKENS = 16
FAR = Link(round_trip_seconds=0.03)
FORCED = {"raw": CODEC_RAW, "lossless": CODEC_LOSSLESS, "h8": CODEC_H8, "h6": CODEC_H6, "fp8": CODEC_E4M3}
MOST_LOSS = {CODEC_H8: 0.02, CODEC_H6: 0.1, CODEC_E4M3: 0.1, CODEC_H4: 0.5}


@pytest.fixture
def travelled(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many tensors went out in each codec, from the client and the servers."""
    counts: Counter[int] = Counter()

    def counted(tensor: torch.Tensor, dtype: str, codec: int = CODEC_RAW) -> Any:
        header, body = tensors.tensor_to_bytes(tensor, dtype, codec)
        if header.values:
            counts[header.codec] += 1
        return header, body

    monkeypatch.setattr(ring, "tensor_to_bytes", counted)
    monkeypatch.setattr(batch, "tensor_to_bytes", counted)
    return counts


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every stream of a memory network look like one over a slow link."""
    monkeypatch.setattr(PipeStream, "link", property(lambda _: FAR))


@asynccontextmanager
async def asked(tiny: Tiny, compression: str) -> AsyncIterator[tuple[MemorySwarm, Model]]:
    async with open_memory_swarm(tiny.folder, splits=[1, 3], compression=compression) as swarm:
        yield swarm, await swarm.client.load(swarm.model)


def states(model: Model) -> torch.Tensor:
    return torch.randn(1, HIDDEN_TOKENS, model.hidden_size, generator=torch.Generator().manual_seed(4))


async def outcome(model: Model) -> torch.Tensor:
    """What the blocks make of the same hidden states."""
    async with model.session() as session:
        return await session.step(states(model))


@pytest.mark.parametrize("compression", [*FORCED, "h4"])
async def test_a_forced_codec_is_what_travels(llama: Tiny, travelled: Counter[int], compression: str) -> None:
    async with asked(llama, "raw") as (_, model):
        exact = await outcome(model)
    travelled.clear()
    async with asked(llama, compression) as (swarm, model):
        codec = FORCED.get(compression, CODEC_H4)
        answer = await outcome(model)
        assert travelled == {codec: 4}  # the client and three servers
        if codec in MOST_LOSS:
            assert 0 < (answer - exact).norm() / exact.norm() < MOST_LOSS[codec]
        else:
            assert torch.equal(answer, exact)
        await freed(swarm)


@pytest.mark.parametrize("compression", ["raw", "lossless"])
async def test_exact_codecs_give_the_text_of_transformers(llama: Tiny, compression: str) -> None:
    async with asked(llama, compression) as (_, model):
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        assert await read(generation) == llama.greedy(generation.prompt_ids, TOKENS)


async def test_auto_loses_nothing_on_one_machine(llama: Tiny, travelled: Counter[int]) -> None:
    async with asked(llama, "auto") as (_, model):
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        assert await read(generation) == llama.greedy(generation.prompt_ids, TOKENS)
    assert set(travelled) == {CODEC_RAW}


@pytest.mark.usefixtures("far")
async def test_auto_takes_h8_over_a_slow_link(llama: Tiny, travelled: Counter[int]) -> None:
    async with asked(llama, "auto") as (_, model):
        await outcome(model)
    assert travelled == {CODEC_H8: 4}


@pytest.mark.usefixtures("far")
async def test_who_asks_for_exactness_gets_it_from_servers_that_would_rather_not(
    llama: Tiny, travelled: Counter[int]
) -> None:
    async with asked(llama, "h4") as (swarm, _):
        object.__setattr__(swarm.client, "_compression", "lossless")
        model = await swarm.client.load(swarm.model)
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        assert await read(generation) == llama.greedy(generation.prompt_ids, TOKENS)
    assert set(travelled) <= {CODEC_RAW, CODEC_LOSSLESS}
    assert travelled[CODEC_LOSSLESS]


async def test_a_server_of_an_older_version_makes_the_session_raw(
    llama: Tiny, travelled: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "KNOWN_CODECS", (CODEC_RAW,))
    async with asked(llama, "h8") as (_, model):
        await outcome(model)
    assert travelled == {CODEC_RAW: 4}


async def test_what_could_not_be_delivered_is_carried_on_as_it_is(llama: Tiny, travelled: Counter[int]) -> None:
    async with asked(llama, "h8") as (swarm, model):
        direct = await outcome(model)
        async with model.session() as session:
            for first, second in zip(swarm.servers[:2], swarm.servers[1:], strict=True):
                for stream in list(first.node.network._links[second.peer]):  # type: ignore[attr-defined]
                    stream.drop()
            travelled.clear()
            assert torch.equal(await session.step(states(model)), direct)
        assert travelled == {CODEC_H8: 4}


@pytest.fixture
def bent(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Once it holds something, the client's next coded body has a bit turned that only decoding can find."""
    todo: list[bool] = []

    def broken(tensor: torch.Tensor, dtype: str, codec: int = CODEC_RAW) -> tuple[TensorHeader, Any]:
        header, body = tensors.tensor_to_bytes(tensor, dtype, codec)
        if todo and header.codec != CODEC_RAW:
            todo.pop()
            body = bytearray(body)
            body[-1] ^= 1
        return header, body

    monkeypatch.setattr(ring, "tensor_to_bytes", broken)
    return todo


async def test_a_body_that_cannot_be_decoded_ends_the_session_and_nothing_else(llama: Tiny, bent: list[bool]) -> None:
    async with asked(llama, "h8") as (swarm, model):
        whole = await outcome(model)
        bent.append(True)
        with pytest.raises(ProtocolViolation, match="cannot be decoded"):
            await outcome(model)
        assert not bent
        assert torch.equal(await outcome(model), whole)
        await freed(swarm)
