"""A long prefill that stops between blocks: others are answered meanwhile, and nobody's bits change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import torch
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from support.pond import Pond, Server, Talk
from swarmnode.node.server import pauses
from swarmnode.node.server.pauses import Pauses, parted
from swarmnode.node.server.rates import Pace
from swarmnode.node.server.schedule import DECODE_TOKENS, Chunk, Pending, Priority
from swarmnode.node.torch_thread import TorchThread
from swarmnode.protocols.messages import Break, Close

LONG = 3 * DECODE_TOKENS


@pytest.fixture(autouse=True)
def _due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill stops before each block for whoever waits: no test is to depend on how long something takes."""
    monkeypatch.setattr(pauses, "PREFILL_TIMES", 0.0)


@asynccontextmanager
async def in_the_midst(thread: TorchThread, send: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """The prefill that `send` sends has begun, and stands before one of its blocks while this lasts."""
    token = trio.lowlevel.current_trio_token()
    sent, begun, gate = trio.Event(), trio.Event(), trio.Event()

    async def wait() -> None:
        begun.set()
        await gate.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, lambda: trio.from_thread.run(sent.wait, trio_token=token))
        await wait_all_tasks_blocked()
        await send()
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(thread.run, lambda: trio.from_thread.run(wait, trio_token=token), urgent=True))
        await wait_all_tasks_blocked()
        sent.set()
        await begun.wait()
        yield
        await wait_all_tasks_blocked()
        gate.set()


async def opened(pond: Pond, server: Server, number: int, first: int = 0) -> Talk:
    return await pond.opened(pond.network(), server, pond.open_message(first, 4, session=bytes([number]) * 16))


async def test_a_token_is_answered_in_the_midst_of_a_prefill(pond: Pond, ended: list[tuple[int, int]]) -> None:
    server = pond.serve(0, 4, deterministic=True)
    reading, talking, elsewhere = [await opened(pond, server, number, number // 2) for number in range(3)]
    prompt, start, token, more = (pond.hidden(tokens, seed) for seed, tokens in enumerate((LONG, 5, 1, 2)))
    for talk in (talking, elsewhere):
        await talk.step(0, start, 0)
        await talk.output()
    async with in_the_midst(pond.torch_thread, lambda: reading.step(0, prompt, 0)):
        await talking.step(1, token, 5)
        await elsewhere.step(1, more, 5)
    assert torch.equal((await talking.output())[1], pond.run_deterministically(0, 4, start, token)[1])
    assert torch.equal((await elsewhere.output())[1], pond.run_deterministically(1, 4, start, more)[1])
    assert torch.equal((await reading.output())[1], pond.run_deterministically(0, 4, prompt)[0])
    assert ended[:3] == [
        (1, 5),
        (2, 5),
        (1, 1),
    ]  # the other's step has to wait for this one, and may find no block left to stop at


async def test_a_session_can_be_opened_used_and_closed_in_the_midst_of_a_prefill(
    pond: Pond, ended: list[tuple[int, int]]
) -> None:
    server = pond.serve(0, 4)
    reading = await opened(pond, server, 1)
    async with in_the_midst(pond.torch_thread, lambda: reading.step(0, pond.hidden(LONG), 0)):
        network = pond.network()
        talk = await pond.talk(network, server)
        await talk.say(pond.open_message(0, 4, session=b"2" * 16))
        await wait_all_tasks_blocked()
    await talk.hear()
    await talk.step(0, pond.hidden(3, 1), 0)
    assert torch.equal((await talk.output())[1], pond.run(0, 4, pond.hidden(3, 1))[0])
    await talk.say(Close())
    await reading.output()
    await reading.say(Close())
    await server.idle()
    assert server.engine.cache_tokens_left == 1000


async def test_who_leaves_in_the_midst_of_its_prefill_is_forgotten_after_it(
    pond: Pond, ended: list[tuple[int, int]]
) -> None:
    server = pond.serve(0, 4)
    reading, talking = await opened(pond, server, 1), await opened(pond, server, 2)
    await talking.step(0, pond.hidden(5, 1), 0)
    await talking.output()
    async with in_the_midst(pond.torch_thread, lambda: reading.step(0, pond.hidden(LONG), 0)):
        await talking.step(1, pond.hidden(1, 2), 5)
        await reading.messages.reset()
        await wait_all_tasks_blocked()
        assert server.engine.statistics().tokens == LONG + 6  # nobody takes away what is being written
    await talking.output()
    await talking.say(Close())
    await server.idle()
    assert ended == [(2, 5), (2, 1)]
    assert server.engine.cache_tokens_left == 1000


async def test_who_leaves_while_its_token_waits_for_a_block_to_end_leaves_nothing(pond: Pond) -> None:
    server = pond.serve(0, 4)
    reading, talking = await opened(pond, server, 1), await opened(pond, server, 2)
    prompt = pond.hidden(LONG)
    async with in_the_midst(pond.torch_thread, lambda: reading.step(0, prompt, 0)):
        await talking.step(0, pond.hidden(1, 2), 0)
        await wait_all_tasks_blocked()
        await talking.messages.reset()
    assert torch.equal((await reading.output())[1], pond.run(0, 4, prompt)[0])
    await reading.say(Close())
    await server.idle()
    assert server.engine.cache_tokens_left == 1000


async def test_a_broken_token_in_the_midst_is_nobody_elses_loss(pond: Pond) -> None:
    server = pond.serve(0, 4)
    reading, bad = await opened(pond, server, 1), await opened(pond, server, 2)
    prompt = pond.hidden(LONG)
    async with in_the_midst(pond.torch_thread, lambda: reading.step(0, prompt, 0)):
        await bad.step(0, pond.hidden(1), 7)  # beyond what it holds
    answer = await bad.hear()
    assert isinstance(answer, Break)
    assert answer.code == "protocol-violation"
    assert torch.equal((await reading.output())[1], pond.run(0, 4, prompt)[0])


async def test_prompts_and_answers_of_many_are_what_each_gets_alone(pond: Pond) -> None:
    """All send as soon as they have heard, so that decode and prefill mix in whatever way they do."""
    server = pond.serve(0, 4, deterministic=True)
    lengths = [[LONG, 1, 1, LONG], [3, *[1] * 12], [1, LONG, *[1] * 6], [LONG, LONG], [*[2] * 10]]

    async def talk_through(number: int, steps: list[int]) -> None:
        talk = await opened(pond, server, number, number % 2)
        states = [pond.hidden(tokens, 100 * number + place) for place, tokens in enumerate(steps)]
        expected = pond.run_deterministically(number % 2, 4, *states)
        position = 0
        for place, (state, right) in enumerate(zip(states, expected, strict=True)):
            await talk.step(place, state, position)
            assert torch.equal((await talk.output())[1], right)
            position += state.shape[1]
        await talk.say(Close())

    async with trio.open_nursery() as nursery:
        for number, steps in enumerate(lengths):
            nursery.start_soon(talk_through, number, steps)
    await server.idle()
    assert server.engine.cache_tokens_left == 1000


def test_prefill_has_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "PREFILL_TIMES", 2.0)
    pausing = Pauses()
    assert pausing.due(0.0)
    pausing.took(0.0, 0.5)
    assert not pausing.due(1.25)
    assert pausing.due(1.5)
    pausing.took(1.5, 1.75)
    assert not pausing.due(2.0)
    assert pausing.due(2.25)


@given(
    st.lists(st.integers(1, 4 * DECODE_TOKENS), max_size=8), st.floats(0.0, 1.0), st.floats(0.001, 1.0), st.booleans()
)
def test_a_batch_is_parted_by_what_decode_would_wait(
    steps: list[int], base: float, slope: float, knows_the_pace: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pauses, "PREFILL_TIMES", 2.0)
        pace = Pace()
        for tokens in (10, 500) if knows_the_pace else ():
            pace.observe(tokens, base + slope * tokens)
        batch = [
            Chunk(Pending(b"%d" % number, "peer", 0, (tokens,), Priority.OTHERS, 0.0, None), 0, (tokens,), True)
            for number, tokens in enumerate(steps)
        ]
        first, behind = parted(batch, pace)
    assert sorted(map(id, first + behind)) == sorted(map(id, batch))
    assert not any(chunk.tokens <= DECODE_TOKENS for chunk in behind)
    decode = sum(tokens for tokens in steps if tokens <= DECODE_TOKENS)
    prefill = sum(steps) - decode
    if not decode:
        assert behind == batch
    elif knows_the_pace and prefill and base + slope * prefill > 2.1 * (base + slope * decode):
        assert len(behind) == sum(tokens > DECODE_TOKENS for tokens in steps)
