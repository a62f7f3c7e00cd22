"""Training through a swarm: gradients are those of autograd on the whole model, and nobody else is held up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import torch
import trio

from support import programs
from support.tiny_swarm import PROMPT, TOKENS, Tiny, asked, read
from swarmnode.errors import PeerFault, PeerRefused
from swarmnode.models.training_comparison import WholePass, by_autograd
from swarmnode.node.client.training import TrainingSpan
from swarmnode.node.defaults import TRAINING_ROW_TOKENS
from swarmnode.node.library import Node, open_node
from swarmnode.node.routes import Hop
from swarmnode.node.torch_thread import open_torch_thread
from swarmnode.protocols.ids import TRAINING, ModelId

BLOCKS = 4


@asynccontextmanager
async def trained(client: Node, model: ModelId) -> AsyncIterator[list[TrainingSpan]]:
    """The servers of a model by their blocks, as the directory names them."""
    records = await client.directory.find_servers(model.name, BLOCKS)
    assert all(TRAINING in record.protocols for record in records)
    async with open_torch_thread() as thread:
        yield [
            TrainingSpan(
                client.network,
                thread,
                record.model,
                Hop(record.peer, record.addrs, record.start, record.end, record.dtype, record.codecs),
            )
            for record in sorted(records, key=lambda record: record.start)
        ]


async def train(spans: Sequence[TrainingSpan], whole: WholePass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What comes out of a chain of servers, and the gradients of what went in and of the prompts."""
    states = [whole.entering]
    prompts = [whole.prompts[span.hop.start : span.hop.end] for span in spans]
    for span, theirs in zip(spans, prompts, strict=True):
        states.append(await span.forward(states[-1], theirs))
    gradient = whole.leaving_gradient
    of_prompts: list[torch.Tensor] = []
    for span, theirs, entered in reversed(list(zip(spans, prompts, states[:-1], strict=True))):
        found = await span.backward(entered, gradient, theirs)
        assert found.prompts is not None
        gradient = found.hidden
        of_prompts.insert(0, found.prompts)
    return states[-1], gradient, torch.cat(of_prompts)


def check(found: tuple[torch.Tensor, torch.Tensor, torch.Tensor], whole: WholePass) -> None:
    expected = whole.leaving, whole.entering_gradient, whole.prompts_gradient
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(("family", "splits"), [("llama", [2]), ("qwen3_moe", [1, 3]), ("bloom", [])])
async def test_gradients_are_those_of_autograd_on_the_whole_model(
    family: str, splits: list[int], tiny: Callable[[str], Tiny]
) -> None:
    whole = by_autograd(tiny(family).whole)
    async with (
        asked(tiny(family).folder, splits) as (swarm, _),
        trained(swarm.client, swarm.servers[0].info.model) as spans,
    ):
        assert len(spans) == len(splits) + 1
        check(await train(spans, whole), whole)


def test_between_real_processes_too(llama: Tiny) -> None:
    whole = by_autograd(llama.whole)

    async def ask(address: str) -> None:
        async with open_node(listen=(), join=[address]) as client:
            [(model, _)] = await client.directory.find_models()
            async with trained(client, model) as spans:
                assert len(spans) == 2
                check(await train(spans, whole), whole)

    with programs.swarm(str(llama.folder), [(0, 2), (2, BLOCKS)]) as (address, _):
        trio.run(ask, address)


async def test_who_trains_and_who_asks_do_not_disturb_each_other(llama: Tiny) -> None:
    whole = by_autograd(llama.whole)
    async with asked(llama.folder, [2]) as (swarm, model), trained(swarm.client, swarm.servers[0].info.model) as spans:
        generations = [model.generate(PROMPT, max_new_tokens=TOKENS) for _ in range(3)]
        found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        texts: list[list[int]] = []

        async def ask() -> None:
            texts.extend([await read(generation) for generation in generations])

        async def learn() -> None:
            found.extend([await train(spans, whole) for _ in range(2)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(learn)
        for result in found:
            check(result, whole)
        assert texts == [llama.greedy(generation.prompt_ids, TOKENS) for generation in generations]


async def test_part_of_what_a_server_holds_is_trained_through(llama: Tiny) -> None:
    async with (
        asked(llama.folder, []) as (swarm, _),
        trained(swarm.client, swarm.servers[0].info.model) as [whole_span],
    ):
        rows = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1))
        at_once = await whole_span.forward(rows)
        for start, end in ((0, 1), (1, 4)):
            rows = await whole_span.part(start, end).forward(rows)
        assert torch.equal(rows, at_once)


async def test_rows_that_are_too_long_are_refused_in_words(llama: Tiny) -> None:
    async with asked(llama.folder, []) as (swarm, _), trained(swarm.client, swarm.servers[0].info.model) as [span]:
        with pytest.raises(PeerRefused, match=f"{TRAINING_ROW_TOKENS} are the most that this server trains on"):
            await span.forward(torch.zeros(1, TRAINING_ROW_TOKENS + 1, 64))
        with pytest.raises(PeerRefused, match="holds blocks 0:4, not 3:5"):
            await span.part(3, 5).forward(torch.zeros(1, 1, 64))


async def test_a_server_that_goes_away_in_the_midst_is_one_clear_error(llama: Tiny) -> None:
    async with asked(llama.folder, []) as (swarm, _), trained(swarm.client, swarm.servers[0].info.model) as [span]:
        rows = torch.zeros(64, 64, 64)

        async def kill() -> None:
            while not swarm.servers[0].node.passes:  # noqa: ASYNC110 - what is awaited is its beginning
                await trio.sleep(0.001)
            swarm.net.kill(swarm.servers[0].peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(PeerFault) as lost:
                await span.backward(rows, rows)
        assert lost.value.peer == swarm.servers[0].peer
