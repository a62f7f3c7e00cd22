"""Clients whose prompts begin alike: the same text from less work, and nothing shared that was not called public."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from support.tiny_swarm import Tiny, read
from swarmnode.errors import BadInput
from swarmnode.node.background import open_background
from swarmnode.node.library import Model, Node, open_node
from swarmnode.node.net.memory import open_memory_net

BLOCK = 32
BEGINS = [5 + 11 * index % 200 for index in range(2 * BLOCK + 3)]
TOKENS = 8


@asynccontextmanager
async def swarm(
    llama: Tiny, clients: int = 1, *, share_prefixes: bool = False
) -> AsyncIterator[tuple[list[Node], list[Model]]]:
    """Two servers, and the model as so many clients have it."""
    async with open_memory_net() as net, AsyncExitStack() as stack:
        servers: list[Node] = []
        for number, blocks in enumerate(("0:2", "2:4")):
            join = servers[0].addrs if servers else ()
            node = await stack.enter_async_context(open_node(network=net.network(number), join=join))
            nursery = await stack.enter_async_context(open_background())
            serve = partial(node.serve, str(llama.folder), prefill_chunk=BLOCK, share_prefixes=share_prefixes)
            await nursery.start(partial(serve, blocks=blocks))
            servers.append(node)
        models = []
        for number in range(clients):
            opening = open_node(network=net.network(10 + number), join=servers[0].addrs, compression="raw")
            models.append(await (await stack.enter_async_context(opening)).load(str(llama.folder)))
        yield servers, models


def saved(servers: list[Node]) -> list[int]:
    return [node.saved_tokens for node in servers]


async def test_what_a_client_asks_twice_is_computed_once(llama: Tiny) -> None:
    async with swarm(llama) as (servers, (model,)):
        first = await read(model.generate(BEGINS, max_new_tokens=TOKENS))
        assert saved(servers) == [0, 0]
        assert await read(model.generate(BEGINS, max_new_tokens=TOKENS)) == first
        assert saved(servers) == [2 * BLOCK] * 2
        other = [*BEGINS[: BLOCK + 7], *BEGINS[:30]]
        assert await read(model.generate(other, max_new_tokens=TOKENS)) == llama.greedy(other, TOKENS)
        assert saved(servers) == [3 * BLOCK] * 2


async def test_a_session_that_is_sent_again_meets_itself(llama: Tiny) -> None:
    async with swarm(llama) as (servers, (model,)), model.session() as session:
        first = await read(session.generate(BEGINS, max_new_tokens=TOKENS))
        session.truncate(0)
        assert await read(session.generate(BEGINS, max_new_tokens=TOKENS)) == first
        assert saved(servers) == [2 * BLOCK] * 2


@pytest.mark.parametrize(
    ("share", "public", "met"), [(False, 64, 0), (True, 0, 0), (True, 63, BLOCK), (True, 64, 2 * BLOCK)]
)
async def test_clients_meet_in_what_both_sides_call_public(llama: Tiny, share: bool, public: int, met: int) -> None:
    async with swarm(llama, 2, share_prefixes=share) as (servers, models):
        answers = [await read(model.generate(BEGINS, public_prefix=public, max_new_tokens=TOKENS)) for model in models]
        assert answers[0] == answers[1]
        assert saved(servers) == [met] * 2


async def test_a_public_prefix_that_makes_no_sense(llama: Tiny) -> None:
    async with swarm(llama) as (_, (model,)):
        with pytest.raises(BadInput, match="A public prefix of -1 tokens makes no sense"):
            model.generate(BEGINS, public_prefix=-1)
        with pytest.raises(BadInput, match="A public prefix of -1 tokens makes no sense"):
            async with model.session(public_prefix=-1):
                pass
