"""What goes wrong in a swarm: one clear error in time, no text lost, nothing left behind."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import trio
from trio.testing import MockClock

from support.pond import held
from support.tiny_swarm import PROMPT, TOKENS, Tiny, asked, freed, read
from swarmnode.errors import (
    BadInput,
    BadRange,
    BlocksMissing,
    ModelMismatch,
    NoPeers,
    PeerBusy,
    PeerLost,
)
from swarmnode.node.background import open_background
from swarmnode.node.defaults import EVICTABLE_SECONDS, STEP_SECONDS
from swarmnode.node.library import open_node
from swarmnode.node.net.memory import open_memory_net
from swarmnode.testing import make_tiny_model, open_memory_swarm


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_server_that_is_killed_is_named_and_no_text_is_lost(llama: Tiny, victim: int) -> None:
    async with asked(llama.folder, [1, 3]) as (swarm, model):
        dead = swarm.servers[victim]
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        with pytest.raises(PeerLost) as caught, trio.fail_after(10):  # noqa: PT012 - reading is what fails
            async for _ in generation:
                if len(generation.ids) == 4:
                    swarm.net.kill(dead.peer)
        assert caught.value.peer == dead.peer
        assert caught.value.span == (dead.info.start, dead.info.end)
        assert caught.value.message == (
            f"Peer {dead.peer}, which runs blocks {dead.info.start}:{dead.info.end}, went away."
        )
        expected = llama.greedy(generation.prompt_ids, TOKENS)
        assert generation.ids == expected[:4]
        assert generation.text == model.tokenizer.decode(expected[:4]).rstrip("\ufffd")
        await freed(swarm)


@pytest.mark.parametrize("victim", [0, 2])
async def test_a_server_that_falls_silent_is_named_within_seconds(llama: Tiny, victim: int) -> None:
    async with asked(llama.folder, [1, 3]) as (swarm, model):
        silent = swarm.servers[victim]
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        with pytest.raises(PeerLost) as caught, trio.fail_after(20):  # noqa: PT012 - reading is what fails
            async for _ in generation:
                if len(generation.ids) == 4:
                    swarm.net.blackhole(silent.peer)
        assert caught.value.peer == silent.peer
        assert caught.value.span == (silent.info.start, silent.info.end)
        swarm.net.heal()
        await freed(swarm)


async def test_cancelling_frees_everything(llama: Tiny) -> None:
    async with asked(llama.folder, [1, 3]) as (swarm, model):
        for stop_after in range(4):
            generation = model.generate(PROMPT, max_new_tokens=TOKENS)
            with trio.CancelScope() as scope:
                if stop_after == 0:
                    scope.cancel()
                async for _ in generation:
                    if len(generation.ids) >= stop_after:
                        scope.cancel()
            assert scope.cancelled_caught
            assert len(generation.ids) == stop_after
            await freed(swarm)
        for each in swarm.servers:
            record = await swarm.client.directory.confirm((await swarm.client.directory.find_servers("llama", 4))[0])
            assert record.cache_tokens_left == each.info.cache_tokens


async def test_leaving_the_block_frees_everything(llama: Tiny) -> None:
    async with asked(llama.folder) as (swarm, model):
        async with model.generate(PROMPT, max_new_tokens=TOKENS) as generation:
            async for _ in generation:
                break
        await freed(swarm)
        assert [piece async for piece in generation] == []


async def test_an_answer_thrown_away_half_read_frees_everything(llama: Tiny) -> None:
    async with asked(llama.folder) as (swarm, model):
        async for _ in model.generate(PROMPT, max_new_tokens=TOKENS):
            assert [each.node.sessions for each in swarm.servers] == [1, 1]
            break
        gc.collect()
        await freed(swarm)


async def test_a_cancelled_step_leaves_the_session_usable(llama: Tiny) -> None:
    async with asked(llama.folder, [1, 3]) as (_, model), model.session() as session:
        prompt = model.tokenizer(PROMPT)["input_ids"]
        with trio.move_on_after(0):
            await read(session.generate(prompt, max_new_tokens=2))
        with trio.CancelScope() as scope:
            generation = session.generate(prompt, max_new_tokens=TOKENS)
            async for _ in generation:
                scope.cancel()
        session.truncate(0)
        assert await read(session.generate(prompt, max_new_tokens=4)) == llama.greedy(prompt, 4)


async def test_a_step_that_never_comes_back_is_given_up(llama: Tiny, mock_clock: MockClock) -> None:
    """Although its server answers pings."""
    mock_clock.rate = 1.0
    async with asked(llama.folder, []) as (swarm, model), model.session() as session:
        thread = swarm.servers[0].node._torch_thread
        async with held(thread) as gate:

            async def jump() -> None:
                while not thread.waiting:  # noqa: ASYNC110 - until the step is there
                    await trio.sleep(0.001)
                mock_clock.jump(STEP_SECONDS)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(jump)
                with pytest.raises(PeerLost, match="No answer came from the servers in 300 seconds"):
                    await session.step(torch.zeros(1, 1, model.hidden_size))
            gate.set()


async def test_a_full_server_is_busy_and_another_is_taken(llama: Tiny) -> None:
    async with asked(llama.folder, [2], replicas=2, cache_tokens=64) as (swarm, model):
        prompt = [7] * 20
        async with model.generate(prompt, max_new_tokens=30) as one, model.generate(prompt, max_new_tokens=30) as two:
            first = await one.open()
            await anext(one)  # a session holds what it has used
            second = await two.open()
            await anext(two)
            assert not set(first.peers) & set(second.peers)
            with pytest.raises(PeerBusy) as caught:
                await model.generate(prompt, max_new_tokens=30).open()
            assert caught.value.message.endswith("The cache is full.")
        await freed(swarm)


async def test_an_idle_session_gives_way_and_goes_on_by_replay(llama: Tiny, mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    async with asked(llama.folder, [2], cache_tokens=64) as (swarm, model):
        prompt = [7] * 20
        async with model.generate(prompt, max_new_tokens=12) as idle:
            for _ in range(3):
                await anext(idle)
            mock_clock.jump(EVICTABLE_SECONDS)
            other = model.generate([9] * 20, max_new_tokens=4)
            await read(other)
            assert other.ids == llama.greedy([9] * 20, 4)
            async for _ in idle:
                pass
            assert idle.ids == llama.greedy(prompt, 12)
        await freed(swarm)


async def test_a_session_that_gave_way_waits_for_room_and_can_be_cancelled_then(
    llama: Tiny, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    mock_clock.rate = 1.0
    caplog.set_level(logging.INFO, "swarmnode.client")
    prompt, more = [7] * 20, [5, 6]
    first = llama.greedy(prompt, 3)
    expected = llama.greedy([*prompt, *first, *more], 3)
    async with asked(llama.folder, [2], cache_tokens=64) as (swarm, model):
        async with model.session(max_tokens=64) as session:
            assert await read(session.generate(prompt, max_new_tokens=3)) == first
            mock_clock.jump(EVICTABLE_SECONDS)
            async with model.generate([9] * 40, max_new_tokens=20) as other, trio.open_nursery() as nursery:
                await anext(other)
                nursery.start_soon(read, session.generate(more, max_new_tokens=3))
                while "The cache is full" not in caplog.text:  # noqa: ASYNC110 - what is awaited is that it waits
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            assert session.replays == 0
            assert await read(session.generate(more, max_new_tokens=3)) == expected
            assert session.replays == 1
        await freed(swarm)


async def test_blocks_that_nobody_serves_are_named(llama: Tiny) -> None:
    async with open_memory_net() as net, open_node(network=net.network(0)) as holder, trio.open_nursery() as nursery:
        await nursery.start(partial(holder.serve, str(llama.folder), blocks="1:3"))
        async with open_node(network=net.network(1), join=holder.addrs) as client:
            model = await client.load(str(llama.folder))
            with pytest.raises(BlocksMissing) as caught:
                await model.generate(PROMPT).open()
            assert caught.value.message == "Blocks 0:1 and 3:4 of 4 have no live server."
            with pytest.raises(BadRange, match="this model has blocks 0:4"):
                await client.serve(str(llama.folder), blocks="3:5")
            with pytest.raises(BadInput, match="serves blocks already"):
                await holder.serve(str(llama.folder))
            with pytest.raises(BadInput, match="public"):
                await client.serve(str(llama.folder), public_name="n" * 100)
        nursery.cancel_scope.cancel()


async def test_other_weights_of_the_same_name_are_refused_by_revision(llama: Tiny, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "llama", seed=5)
    async with open_memory_swarm(llama.folder) as swarm:
        model = await swarm.client.load(str(other))
        theirs = swarm.servers[0].info.model
        assert theirs.name == model.name
        with pytest.raises(ModelMismatch) as caught:
            await model.generate(PROMPT).open()
        assert model.id.revision in caught.value.message
        assert theirs.revision in caught.value.message


async def test_nobody_to_ask(llama: Tiny) -> None:
    async with open_memory_net() as net:
        async with open_node(network=net.network(0)) as alone:
            model = await alone.load(str(llama.folder))
            with pytest.raises(NoPeers, match="No peer is reachable"):
                await model.generate(PROMPT).open()
            address = alone.addrs[0]
        net.kill(alone.peer_id)
        with pytest.raises(NoPeers) as caught:
            async with open_node(network=net.network(1), join=[address]):
                pass
        assert address in caught.value.message
        with pytest.raises(BadInput):
            async with open_node(network=net.network(2), join=["nonsense"]):
                pass


async def test_the_only_model_needs_no_name(
    llama: Tiny, tiny: Callable[[str], Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama.folder.parent)
    async with open_memory_swarm(llama.folder) as swarm:
        assert (await swarm.client.load()).name == "llama"
        async with (
            open_node(
                network=swarm.net.network(99), join=swarm.servers[0].node.addrs, compression="lossless"
            ) as another,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(another.serve, str(tiny("bloom").folder))
            with pytest.raises(BadInput) as caught:
                await swarm.client.load()
            assert caught.value.message == "The swarm serves several models: bloom, llama."
            status = await swarm.client.status()
            assert [(each.model.name, each.available, each.gaps) for each in status.models] == [
                ("bloom", True, ()),
                ("llama", True, ()),
            ]
            nursery.cancel_scope.cancel()


async def test_status_shows_gaps_and_who_does_not_answer(llama: Tiny) -> None:
    async with asked(llama.folder, [1, 3]) as (swarm, _):
        swarm.net.kill(swarm.servers[1].peer)
        (model,) = (await swarm.client.status()).models
        assert not model.available
        assert model.gaps == ((1, 3),)
        assert [(each.start, each.end, each.confirmed) for each in model.servers] == [
            (0, 1, True),
            (1, 3, False),
            (3, 4, True),
        ]
        assert all(each.decode_tokens_per_second > 0 for each in model.servers)


async def test_a_server_that_leaves_tells_its_clients(llama: Tiny) -> None:
    async with open_memory_net() as net, open_node(network=net.network(0)) as server, open_background() as nursery:
        await nursery.start(partial(server.serve, str(llama.folder)))
        async with open_node(network=net.network(1), join=server.addrs, compression="lossless") as client:
            model = await client.load(str(llama.folder))
            generation = model.generate(PROMPT, max_new_tokens=TOKENS)
            with pytest.raises(PeerLost, match="This server is leaving"), trio.CancelScope(shield=True):  # noqa: PT012
                async for _ in generation:
                    nursery.cancel_scope.cancel()
