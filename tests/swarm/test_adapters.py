"""Adapters in a swarm: each generation gets the text that PEFT makes of the whole model, whoever else is served."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import torch
import trio

from support.loopback import QUIC
from support.tiny_adapter import peft_model, save_adapter
from support.tiny_swarm import PROMPT as SHORT
from support.tiny_swarm import TOKENS, Tiny, asked, freed, read
from swarmnode.errors import AdapterMissing, BadInput, BlocksMissing, PeerRefused
from swarmnode.node.background import open_background
from swarmnode.node.library import Model, open_node
from swarmnode.node.server import engine
from swarmnode.node.server.prefix import LEAST_BLOCK_TOKENS
from swarmnode.protocols.adapters import AdapterId

PROMPT = 3 * SHORT
"""So long that servers keep what sessions begin with for others, which must be of the same adapter."""


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PREFIX_BLOCK_TOKENS", LEAST_BLOCK_TOKENS)


@pytest.fixture
def poet(llama: Tiny, tmp_path: Path) -> Path:
    return save_adapter(llama.whole, tmp_path / "poet", ["q_proj", "v_proj", "down_proj"], r=4)


@pytest.fixture
def sql(llama: Tiny, tmp_path: Path) -> Path:
    return save_adapter(llama.whole, tmp_path / "sql", ["k_proj", "o_proj", "up_proj"], seed=2, r=2, use_rslora=True)


def greedy(llama: Tiny, adapter: Path | None, prompt: Sequence[int]) -> list[int]:
    """What `generate()` of PEFT adds to a prompt."""
    if adapter is None:
        return llama.greedy(prompt, TOKENS)
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        answer = peft_model(llama.whole, adapter).generate(  # type: ignore[no-untyped-call]  # PEFT's is untyped
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
    added: list[int] = answer[0, ids.shape[1] :].tolist()
    return added


async def all_at_once(model: Model, expected: dict[str | None, list[int]]) -> None:
    """Generations with each adapter and without, twice, all at the same time."""

    async def one(adapter: str | None) -> None:
        assert await read(model.generate(PROMPT, adapter=adapter, max_new_tokens=TOKENS)) == expected[adapter]

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for adapter in [*expected, *expected]:
                nursery.start_soon(one, adapter)


async def test_generations_with_each_adapter_and_without_share_two_servers(llama: Tiny, poet: Path, sql: Path) -> None:
    prompt = llama_ids(llama)
    expected = {
        None: greedy(llama, None, prompt),
        "poet": greedy(llama, poet, prompt),
        "sql": greedy(llama, sql, prompt),
    }
    assert len({tuple(ids) for ids in expected.values()}) == 3
    async with asked(llama.folder, adapters={"poet": poet, "sql": sql}) as (swarm, model):
        await all_at_once(model, expected)
        async with model.session(adapter="sql") as session:
            assert str(session.route.adapter).startswith("sql@")
            assert await read(session.generate(PROMPT, max_new_tokens=TOKENS)) == expected["sql"]
        await freed(swarm)
        (shown,) = (await swarm.client.status()).models
        assert {each.partition("@")[0] for server in shown.servers for each in server.adapters} == {"poet", "sql"}


async def test_the_same_over_sockets(llama: Tiny, poet: Path, sql: Path) -> None:
    prompt = llama_ids(llama)
    expected = {
        None: greedy(llama, None, prompt),
        "poet": greedy(llama, poet, prompt),
        "sql": greedy(llama, sql, prompt),
    }
    async with AsyncExitStack() as stack:
        join: tuple[str, ...] = ()
        # The second calls one of them otherwise: it is the same thing nonetheless.
        for blocks, names in (("0:2", ("poet", "sql")), ("2:4", ("bard", "sql"))):
            node = await stack.enter_async_context(open_node(listen=[QUIC], join=join))
            nursery = await stack.enter_async_context(open_background())
            own = dict(zip(names, (poet, sql), strict=True))
            await nursery.start(partial(node.serve, str(llama.folder), blocks=blocks, adapters=own))
            join = join or node.addrs[:1]
        client = await stack.enter_async_context(open_node(listen=(), join=join, compression="lossless"))
        await all_at_once(await client.load(str(llama.folder)), expected)


async def test_routes_lead_over_servers_that_have_the_adapter(
    llama: Tiny, poet: Path, sql: Path, tmp_path: Path
) -> None:
    third = save_adapter(llama.whole, tmp_path / "third", ["q_proj"], seed=3)
    offered = [{"poet": poet}, {"poet": poet, "half": third}, {"poet": sql}, {}]
    async with asked(llama.folder, replicas=2, adapters=offered) as (swarm, model):
        peers = [server.peer for server in swarm.servers]
        route = await model.route(adapter="poet")
        assert route.peers == (peers[0], peers[1]), "of two that are called so only one is on all blocks"
        assert route.adapter is not None
        assert await model.route(adapter=f"poet@{route.adapter.digest.hex()[:6]}") == route
        with pytest.raises(BlocksMissing, match=r"Blocks 0:2 of 4 have no live server with adapter half@"):
            await model.generate(PROMPT, adapter="half").open()
        with pytest.raises(AdapterMissing, match=r"an adapter 'bard'. There are half@\w{8}, poet@\w{8}, poet@\w{8}\."):
            await model.generate(PROMPT, adapter="bard").open()
        with pytest.raises(AdapterMissing, match="an adapter 'poet@ffffffffffff'"):
            async with model.session(adapter="poet@ffffffffffff"):
                pass


async def test_where_there_are_none_it_says_so(llama: Tiny) -> None:
    async with asked(llama.folder) as (_, model):
        with pytest.raises(AdapterMissing, match="There are none"):
            await model.generate(PROMPT, adapter="poet").open()


async def test_a_server_refuses_an_adapter_it_does_not_have(llama: Tiny, poet: Path) -> None:
    async with asked(llama.folder, (), adapters={"poet": poet}) as (swarm, model):
        route = await model.route(adapter="poet")
        asker = model._asker
        wrong = AdapterId("bard", bytes(16))

        async def plan(**_: object) -> object:
            return type(route)(route.hops, wrong)

        asker.servers.plan = plan  # type: ignore[method-assign,assignment]
        with pytest.raises(PeerRefused, match=r"no adapter bard@00000000; it has poet@"):
            await model.generate(PROMPT).open()
        await freed(swarm)


async def test_what_cannot_be_offered_is_refused_before_anything_is_loaded(llama: Tiny, poet: Path) -> None:
    async with asked(llama.folder) as (swarm, _):
        serve = partial(swarm.client.serve, str(llama.folder))
        for places, refused in (
            ({"a@b": poet}, "cannot be an adapter's name"),
            ({f"a{number}": poet for number in range(17)}, "16 adapters at most, not 17"),
        ):
            with pytest.raises(BadInput, match=refused):
                await serve(adapters=places)


async def test_adapters_count_in_what_fits(llama: Tiny, poet: Path) -> None:
    async with asked(llama.folder) as (swarm, _):
        chosen: list[int] = []

        class Enough(Exception):
            pass

        def note(choice: object) -> None:
            chosen.append(choice.need.weights)  # type: ignore[attr-defined]
            raise Enough

        for adapters in ({}, {"poet": poet}, {"poet": poet, "again": poet}):
            with pytest.raises(Enough):
                await swarm.client.serve(str(llama.folder), blocks="auto", adapters=adapters, chosen=note)
    plain, one, two = chosen
    numbers = 4 * (4 * (64 + 64) + 4 * (64 + 32) + 4 * (48 + 64))
    assert one - plain == 4 * numbers
    assert two == one, "one adapter under two names is there once"


def llama_ids(llama: Tiny) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(llama.folder)(PROMPT)["input_ids"]
    return ids
