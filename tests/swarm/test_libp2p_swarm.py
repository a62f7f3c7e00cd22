"""The same swarms over real libp2p hosts and sockets, several in one process."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trio

from support.loopback import QUIC, TCP
from support.tiny_swarm import PROMPT, TOKENS, Tiny, read
from swarmnode.errors import NoPeers, PeerFault, PeerLost
from swarmnode.node.background import open_background
from swarmnode.node.library import Node, open_node
from swarmnode.protocols.ids import SESSION


class Served:
    """A serving node, and the way to end it."""

    def __init__(self, node: Node, scope: trio.CancelScope) -> None:
        self.node = node
        self._scope = scope

    def end(self) -> None:
        self._scope.cancel()


@asynccontextmanager
async def serving(folder: Path, blocks: Sequence[str], listen: str = QUIC) -> AsyncIterator[tuple[list[Served], Node]]:
    """A node for each range of blocks, and one that asks."""
    async with open_background() as nursery:
        servers: list[Served] = []

        async def serve(blocks: str, join: tuple[str, ...], task_status: Any) -> None:
            with trio.CancelScope() as scope:
                async with open_node(listen=[listen], join=join) as node, open_background() as own:
                    await own.start(partial(node.serve, str(folder), blocks=blocks))
                    task_status.started(Served(node, scope))
                    await trio.sleep_forever()

        for each in blocks:
            join = servers[0].node.addrs[:1] if servers else ()
            servers.append(await nursery.start(serve, each, join))
        async with open_node(listen=(), join=servers[0].node.addrs[:1], compression="lossless") as client:
            yield servers, client


async def freed(servers: Sequence[Served]) -> None:
    with trio.fail_after(20):
        while any(each.node.sessions for each in servers):  # noqa: ASYNC110 - what is awaited is their end
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("listen", "blocks"),
    [(QUIC, ["0:4"]), (QUIC, ["0:2", "2:4"]), (QUIC, ["0:1", "1:3", "3:4"]), (TCP, ["0:1", "1:3", "3:4"])],
)
async def test_greedy_text_is_that_of_transformers(llama: Tiny, listen: str, blocks: list[str]) -> None:
    async with serving(llama.folder, blocks, listen) as (servers, client):
        model = await client.load(str(llama.folder))
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        assert await read(generation) == llama.greedy(generation.prompt_ids, TOKENS)
        assert generation.route is not None
        assert [f"{hop.start}:{hop.end}" for hop in generation.route.hops] == blocks
        await freed(servers)


async def test_many_at_once_and_some_given_up(llama: Tiny) -> None:
    async with serving(llama.folder, ["0:1", "1:3", "3:4"]) as (servers, client):
        model = await client.load(str(llama.folder))

        async def give_up(prompt: str, after: int) -> None:
            with trio.CancelScope() as scope:
                generation = model.generate(prompt, max_new_tokens=TOKENS)
                async for _ in generation:
                    if len(generation.ids) == after:
                        scope.cancel()

        whole = [model.generate(f"{number}: {PROMPT}", max_new_tokens=TOKENS) for number in range(4)]
        async with trio.open_nursery() as nursery:
            for number, generation in enumerate(whole):
                nursery.start_soon(read, generation)
                nursery.start_soon(give_up, f"{number}", number + 1)
        for generation in whole:
            assert generation.ids == llama.greedy(generation.prompt_ids, TOKENS)
        await freed(servers)


async def test_wide_steps_pass_through(llama: Tiny) -> None:
    """A megabyte in one step, both ways: more than any window or buffer below."""
    async with serving(llama.folder, ["0:2", "2:4"]) as (_, client):
        model = await client.load(str(llama.folder))
        async with model.session(max_tokens=128) as session:
            hidden = torch.randn(1, 128, model.hidden_size, generator=torch.Generator().manual_seed(2))
            once = await session.step(hidden)
            for _ in range(30):
                assert torch.equal(await session.step(hidden, position=0), once)


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_server_that_goes_is_named(llama: Tiny, victim: int) -> None:
    async with serving(llama.folder, ["0:1", "1:3", "3:4"]) as (servers, client):
        model = await client.load(str(llama.folder))
        generation = model.generate(PROMPT, max_new_tokens=100)
        with pytest.raises(PeerLost) as caught, trio.fail_after(15):  # noqa: PT012 - reading is what fails
            async for _ in generation:
                if len(generation.ids) == 5:
                    servers[victim].end()
        assert caught.value.peer == servers[victim].node.peer_id
        assert generation.ids == llama.greedy(generation.prompt_ids, TOKENS)[: len(generation.ids)]
        await freed([each for number, each in enumerate(servers) if number != victim])


async def test_garbage_then_an_honest_client(llama: Tiny) -> None:
    async with serving(llama.folder, ["0:4"]) as (servers, client):
        chance = random.Random(3)
        server = servers[0].node
        for _ in range(50):
            stream = await client.network.open_stream(server.peer_id, SESSION)
            try:
                await stream.send_all(chance.randbytes(chance.randrange(1, 4000)))
                with trio.move_on_after(0.05):
                    await stream.receive_some(100)
            except PeerFault:
                pass
            finally:
                await stream.reset()
        model = await client.load(str(llama.folder))
        generation = model.generate(PROMPT, max_new_tokens=4)
        assert await read(generation) == llama.greedy(generation.prompt_ids, 4)
        await freed(servers)


async def test_an_address_where_nobody_listens() -> None:
    gone = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWCNejSUEM8qCqyfgLaNDGgaucmhRW8d1ouDEpKFBdwMEC"
    with pytest.raises(NoPeers) as caught:
        async with open_node(listen=(), join=[gone]):
            pass
    assert gone in caught.value.message
