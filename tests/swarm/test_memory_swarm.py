"""Whole swarms inside one process: the text of plain transformers, over any cut and round any broken link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

import pytest
import torch
import trio

from support.tiny_swarm import PROMPT, TOKENS, Tiny, asked, freed, read
from swarmnode.errors import BadInput, PeerUnreachable, PromptTooLong
from swarmnode.node.background import open_background
from swarmnode.node.library import open_node
from swarmnode.node.net.memory import open_memory_net
from swarmnode.node.net.network import Stream
from swarmnode.node.server import engine
from swarmnode.protocols.ids import SESSION

FAMILIES = ("llama", "qwen3_moe", "gemma3_text", "bloom", "gpt_oss")
UNTRUNCATABLE = "falcon_h1"
CUTS: tuple[list[int], ...] = ([], [2], [1, 3], [1, 2, 3])


@pytest.mark.parametrize("family", FAMILIES)
async def test_greedy_text_is_that_of_transformers(family: str, tiny: Callable[[str], Tiny]) -> None:
    model_of_family = tiny(family)
    for splits in CUTS:
        async with asked(model_of_family.folder, splits) as (swarm, model):
            generation = model.generate(PROMPT, max_new_tokens=TOKENS)
            route = await generation.open()
            assert [(hop.start, hop.end) for hop in route.hops] == list(
                zip([0, *splits], [*splits, model.num_blocks], strict=True)
            )
            assert await read(generation) == model_of_family.greedy(generation.prompt_ids, TOKENS)
            await freed(swarm)


async def test_spans_that_overlap_are_used_in_part(llama: Tiny) -> None:
    async with open_memory_net() as net, AsyncExitStack() as stack:
        join: tuple[str, ...] = ()
        for number, blocks in enumerate(("0:3", "1:4")):
            node = await stack.enter_async_context(open_node(network=net.network(number), join=join))
            nursery = await stack.enter_async_context(open_background())
            await nursery.start(partial(node.serve, str(llama.folder), blocks=blocks))
            join = node.addrs
        client = await stack.enter_async_context(open_node(network=net.network(9), join=join, compression="lossless"))
        model = await client.load(str(llama.folder))
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        assert await read(generation) == llama.greedy(generation.prompt_ids, TOKENS)
        assert generation.route is not None
        first, second = generation.route.hops
        assert (first.start, first.end, second.end) == (0, second.start, 4)
        assert 1 <= first.end <= 3


async def test_a_prompt_in_chunks_follows_itself_round_the_ring(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PREFILL_CHUNK_TOKENS", 7)
    prompt = [5 + 11 * index % 200 for index in range(60)]
    async with asked(llama.folder, [1, 2, 3]) as (_, model):
        assert await read(model.generate(prompt, max_new_tokens=TOKENS)) == llama.greedy(prompt, TOKENS)


async def test_figures_make_sense(llama: Tiny) -> None:
    async with asked(llama.folder) as (_, model):
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        await read(generation)
        assert generation.finish_reason == "length"
        assert generation.ttft_seconds > 0
        assert generation.tokens_per_second > 0
        assert 0 < generation.hop_seconds < 1 / generation.tokens_per_second


async def test_a_successor_that_cannot_be_reached_is_relayed_to(llama: Tiny) -> None:
    async with asked(llama.folder, [1, 3]) as (swarm, model):
        network = swarm.servers[0].node.network
        dial = network.open_stream

        async def no_way(peer: str, protocol: str, addrs: Sequence[str] = ()) -> Stream:
            if protocol == SESSION:
                raise PeerUnreachable(f"Peer {peer} cannot be reached from here.", peer=peer)
            return await dial(peer, protocol, addrs)

        network.open_stream = no_way  # type: ignore[method-assign]
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        assert await read(generation) == llama.greedy(generation.prompt_ids, TOKENS)
        await freed(swarm)


async def test_a_link_that_breaks_in_the_middle_is_relayed_round(llama: Tiny) -> None:
    async with asked(llama.folder, [1, 3]) as (swarm, model):
        generation = model.generate(PROMPT, max_new_tokens=TOKENS)
        async with generation:
            async for _ in generation:
                if len(generation.ids) in (3, 9):
                    first, second = swarm.servers[len(generation.ids) // 9 :][:2]
                    for stream in list(first.node.network._links[second.peer]):  # type: ignore[attr-defined]
                        stream.drop()
        assert generation.ids == llama.greedy(generation.prompt_ids, TOKENS)
        await freed(swarm)


async def test_turns_share_one_cache(llama: Tiny) -> None:
    async with asked(llama.folder) as (swarm, model), model.session() as session:
        first = session.generate(PROMPT, max_new_tokens=6)
        await read(first)
        assert session.position == len(first.prompt_ids) + 5  # the last token was chosen, but never sent
        second = session.generate(" and then", max_new_tokens=6)
        await read(second)
        whole = [*first.prompt_ids, *first.ids, *second.prompt_ids]
        assert second.ids == llama.greedy(whole, 6)
        assert list(session.ids) == [*whole, *second.ids[:-1]]
        assert swarm.servers[0].node.sessions == 1


async def test_a_talk_computes_only_what_is_new(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asked(llama.folder) as (_, model), model.session() as session:
        await read(session.generate("hi", chat=True, max_new_tokens=4))
        held = session.position
        sent = []
        send = session._send

        async def noted(start: int, *rest: object) -> object:
            sent.append(start)
            return await send(start, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(session, "_send", noted)
        answer = session.generate("well?", chat=True, max_new_tokens=4)
        await read(answer)
        assert answer.ids == llama.greedy(answer.prompt_ids, 4)
        # All but the very end of the first turn is used again: its last bytes may make other tokens in the template.
        assert 0 < held - sent[0] < 8
        assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2


async def test_raw_hidden_states_are_those_of_the_blocks(llama: Tiny) -> None:
    async with asked(llama.folder, [1, 3]) as (_, model), model.session() as session:
        hidden = torch.randn(1, 6, model.hidden_size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = llama.whole.model(inputs_embeds=hidden, output_hidden_states=True).hidden_states
        norm = llama.whole.model.norm
        out = await session.step(hidden)
        torch.testing.assert_close(norm(out), expected[-1], rtol=0, atol=1e-5)
        assert session.position == 6
        again = await session.step(hidden[:, 2:], position=2, keep=3)
        torch.testing.assert_close(again, out[:, 3:], rtol=0, atol=1e-5)
        assert (await session.step(hidden[:, :2], keep=0)).shape == (1, 0, model.hidden_size)
        assert session.position == 8
        with pytest.raises(BadInput, match=r"\[1, 6, 8\] do not fit"):
            await session.step(torch.zeros(1, 6, 8))
        with pytest.raises(BadInput, match="Position 9 is not within"):
            await session.step(hidden, position=9)


async def test_a_state_that_cannot_go_back_is_sent_again(tiny: Callable[[str], Tiny]) -> None:
    recurrent = tiny(UNTRUNCATABLE)
    async with asked(recurrent.folder, [1, 3]) as (swarm, model), model.session() as session:
        prompt = model.tokenizer(PROMPT)["input_ids"]
        first = await read(session.generate(prompt, max_new_tokens=8))
        assert first == recurrent.greedy(prompt, 8)
        session.truncate(10)
        assert await read(session.generate(prompt[10:], max_new_tokens=8)) == first
        # The same when only the server knows that it cannot go back: the session is opened anew and sent again.
        object.__setattr__(session._asker, "truncatable", True)
        ring = session._ring
        session.truncate(10)
        assert await read(session.generate(prompt[10:], max_new_tokens=8)) == first
        assert session._ring is not ring
        assert [each.node.sessions for each in swarm.servers] == [1, 1, 1]


async def test_stop_strings_and_the_models_own_end(llama: Tiny) -> None:
    async with asked(llama.folder) as (_, model):
        prompt = model.tokenizer(PROMPT)["input_ids"]
        plain = model.generate(prompt, max_new_tokens=TOKENS)
        await read(plain)
        stop = plain.text[5:7]
        stopped = model.generate(prompt, max_new_tokens=TOKENS, stop=[stop])
        await read(stopped)
        assert stopped.finish_reason == "stop_string"
        assert stopped.text == plain.text[: plain.text.index(stop)]
        object.__setattr__(model._asker, "eos_ids", frozenset({plain.ids[4]}))
        ended = model.generate(prompt, max_new_tokens=TOKENS)
        await read(ended)
        assert ended.finish_reason == "stop"
        assert ended.ids == plain.ids[: plain.ids.index(plain.ids[4]) + 1]


async def test_a_seed_gives_the_same_text(llama: Tiny) -> None:
    async with asked(llama.folder) as (_, model):
        drawn = [
            await read(model.generate(PROMPT, max_new_tokens=12, temperature=1.5, seed=seed)) for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]


async def test_prompts_that_make_no_sense(llama: Tiny) -> None:
    async with asked(llama.folder) as (swarm, model):
        with pytest.raises(PromptTooLong) as caught:
            await model.generate([5] * 128).open()
        assert caught.value.message == "The prompt has 128 tokens, but llama takes 128, its answer among them."
        assert caught.value.hint == "Shorten it by 1 tokens or more."
        with pytest.raises(BadInput, match="The prompt is empty"):
            await model.generate("").open()
        with pytest.raises(BadInput, match="Token id 260 is not in the model's vocabulary, 0 to 259"):
            await model.generate([260]).open()
        with pytest.raises(BadInput, match="no sampling field 'temprature'"):
            model.generate("x", temprature=1.0)
        # As long as it fits, the answer is cut to what is left.
        generation = model.generate([5] * 120, max_new_tokens=100)
        assert len(await read(generation)) == 8
        assert generation.finish_reason == "length"
        await freed(swarm)


async def test_many_at_once(llama: Tiny) -> None:
    async with asked(llama.folder, [1, 3]) as (swarm, model):
        prompts = [f"{number} and {number}" for number in range(6)]
        generations = [model.generate(prompt, max_new_tokens=TOKENS) for prompt in prompts]
        async with trio.open_nursery() as nursery:
            for generation in generations:
                nursery.start_soon(read, generation)
        for generation in generations:
            assert generation.ids == llama.greedy(generation.prompt_ids, TOKENS)
        await freed(swarm)
