"""A server's sessions, spoken by hand: right answers, honest refusals, nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
import trio
import trio.testing
from trio.testing import MockClock

from support.pond import Pond, held
from swarmnode.errors import PeerLost
from swarmnode.node.defaults import BATCH_TOKENS, EVICTABLE_SECONDS, MAX_IN_FLIGHT_STEPS, MAX_STEP_WAIT_SECONDS
from swarmnode.node.server.batch import run_batch
from swarmnode.node.tensors import tensor_to_bytes
from swarmnode.protocols.messages import (
    Attach,
    Attached,
    Break,
    Close,
    Output,
    Ping,
    Pong,
    Refused,
    Step,
    Successor,
    TensorHeader,
)
from swarmnode.protocols.records import ModelId
from swarmnode.protocols.tensors import CODEC_H8, CODEC_LOSSLESS, CODEC_RAW


async def test_steps_give_what_the_blocks_give(pond: Pond) -> None:
    server = pond.serve(0, 4)
    talk = await pond.opened(pond.network(), server, pond.open_message(0, 4))
    prompt, token = pond.hidden(5), pond.hidden(1, seed=1)
    expected = pond.run(0, 4, prompt, token)

    await talk.step(0, prompt, 0, keep=2)
    output, hidden = await talk.output()
    assert (output.step, output.position, output.next_block) == (0, 3, 4)
    assert torch.equal(hidden, expected[0][:, -2:])
    (trace,) = output.trace
    assert (trace.start, trace.end) == (0, 4)
    assert trace.compute_us > 0

    await talk.step(1, token, 5)
    assert torch.equal((await talk.output())[1], expected[1])

    await talk.step(2, pond.hidden(3, seed=2), 6, keep=0)
    output, hidden = await talk.output()
    assert hidden.shape == (1, 0, pond.checkpoint.hidden_size)

    # Behind: truncates, and goes on as if the rest had never been.
    await talk.step(3, token, 5)
    assert torch.equal((await talk.output())[1], expected[1])
    await talk.say(Close())
    await server.idle()
    assert server.engine.cache_tokens_left == 1000


async def test_a_part_of_the_span_can_be_opened(pond: Pond) -> None:
    server = pond.serve(0, 4)
    talk = await pond.opened(pond.network(), server, pond.open_message(1, 4))
    hidden = pond.hidden(3)
    await talk.step(0, hidden, 0)
    assert torch.equal((await talk.output())[1], pond.run(1, 4, hidden)[0])


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"model": ModelId("other", "r", b"d" * 32)}, "model-mismatch", "This server holds llama, not other."),
        ({"start": 0, "end": 3}, "peer-refused", "Blocks 0:3 are not the last and have no successor."),
        ({"start": 0, "end": 5}, "bad-range", "This server holds blocks 0:4, not 0:5."),
        ({"dtype": "int7"}, "peer-refused", "Hidden states cannot be sent here as int7."),
        ({"codecs": (0, 99)}, "peer-refused", "Codec 99 is not read here."),
        ({"rows": 2}, "peer-refused", "This server runs 1 row in a session, not 2."),
        ({"max_tokens": 1001}, "peer-refused", "The whole cache of this server has no room for 1001 tokens."),
    ],
)
async def test_refusals_say_why(pond: Pond, changes: dict[str, Any], code: str, message: str) -> None:
    server = pond.serve(0, 4)
    talk = await pond.talk(pond.network(), server)
    await talk.say(pond.open_message(0, 4, **changes))
    answer = await talk.hear()
    assert isinstance(answer, Refused)
    assert (answer.code, answer.message) == (code, message)
    assert (answer.retry_after_seconds is not None) == (code == "peer-busy")
    await server.idle()


async def test_a_model_of_the_same_name_is_told_apart(pond: Pond) -> None:
    server = pond.serve(0, 4)
    talk = await pond.talk(pond.network(), server)
    ours = pond.model
    await talk.say(pond.open_message(0, 4, model=ModelId(ours.name, "elsewhere", ours.digest)))
    answer = await talk.hear()
    assert isinstance(answer, Refused)
    assert (
        answer.message == f"This server holds llama at revision {ours.revision[:12]}, not llama at revision elsewhere."
    )


async def test_a_server_that_is_not_online_is_busy(pond: Pond) -> None:
    server = pond.serve(0, 4)
    for state, doing in (("joining", "is still loading its blocks"), ("draining", "is leaving")):
        server.handler.state = state  # type: ignore[assignment]
        talk = await pond.talk(pond.network(), server)
        await talk.say(pond.open_message(0, 4))
        answer = await talk.hear()
        assert isinstance(answer, Refused)
        assert (answer.code, answer.message) == ("peer-busy", f"This server {doing}.")


async def test_a_session_id_is_used_once(pond: Pond) -> None:
    server, network = pond.serve(0, 4), pond.network()
    await pond.opened(network, server, pond.open_message(0, 4))
    second = await pond.talk(pond.network(), server)
    await second.say(pond.open_message(0, 4))
    answer = await second.hear()
    assert isinstance(answer, Refused)
    assert answer.message == "This session is open already."
    assert server.handler.sessions == 1


async def test_pings_are_answered_while_steps_are_computed(pond: Pond) -> None:
    server = pond.serve(0, 4)
    talk = await pond.opened(pond.network(), server, pond.open_message(0, 4))
    async with held(pond.torch_thread) as gate:
        await talk.step(0, pond.hidden(2), 0)
        await talk.say(Ping(99))
        assert await talk.hear() == Pong(99)
        gate.set()
        assert (await talk.output())[0].step == 0


async def test_what_the_client_breaks_off_is_freed(pond: Pond) -> None:
    server, network = pond.serve(0, 4), pond.network()
    for end in ("close", "reset", "eof"):
        talk = await pond.opened(network, server, pond.open_message(0, 4))
        await talk.step(0, pond.hidden(4), 0)
        if end == "close":
            await talk.messages.close()
        elif end == "reset":
            await talk.messages.reset()
        else:
            await talk.messages._stream.send_eof()
        await server.idle()
        assert server.engine.cache_tokens_left == 1000


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step(0, 0, 1, TensorHeader("float32", (2, 1, 64))), "sent a step of shape [2, 1, 64]"),
        (Step(0, 0, 1, TensorHeader("float32", (1, 1, 32))), "sent a step of shape [1, 1, 32]"),
        (Step(0, 0, 1, TensorHeader("float32", (1, 1025, 64))), "sent a step of shape [1, 1025, 64]"),
        (Step(0, 0, 1, TensorHeader("float16", (1, 1, 64))), "sent a step in float16; float32 was agreed"),
        (Step(0, 7, 1, TensorHeader("float32", (1, 1, 64))), "A step came for position 7"),
    ],
)
async def test_steps_that_do_not_fit_break_the_session(pond: Pond, step: Step, message: str) -> None:
    server = pond.serve(0, 4)
    talk = await pond.opened(pond.network(), server, pond.open_message(0, 4))
    await talk.say(step, bytes(step.tensor.raw_bytes))
    answer = await talk.hear()
    assert isinstance(answer, Break)
    assert answer.code == "protocol-violation"
    assert message in answer.message
    await server.idle()


async def test_a_codec_that_was_not_agreed_on_breaks_the_session(pond: Pond) -> None:
    server = pond.serve(0, 4)
    header, body = tensor_to_bytes(pond.hidden(8), "float32", CODEC_H8)
    assert header.codec == CODEC_H8
    for codecs, answers in (((CODEC_H8, CODEC_RAW), Output), ((CODEC_LOSSLESS, CODEC_RAW), Break)):
        talk = await pond.opened(pond.network(), server, pond.open_message(0, 4, codecs=codecs))
        await talk.say(Step(0, 0, 8, header), body)
        answer = await talk.hear()
        assert isinstance(answer, answers), answer
        if isinstance(answer, Break):
            assert answer.code == "protocol-violation"
            assert "a step in codec 2, which was not agreed on" in answer.message
        await talk.close()
        await server.idle()


async def test_more_steps_than_agreed_break_the_session(pond: Pond) -> None:
    server = pond.serve(0, 4)
    talk = await pond.opened(pond.network(), server, pond.open_message(0, 4))
    async with held(pond.torch_thread) as gate:
        for number in range(MAX_IN_FLIGHT_STEPS + 2):
            await talk.step(number, pond.hidden(1), number)
        answer = await talk.hear()
        gate.set()
    assert isinstance(answer, Break)
    assert f"more than {MAX_IN_FLIGHT_STEPS} steps under way" in answer.message
    await server.idle()


async def test_a_session_grows_while_there_is_room(pond: Pond) -> None:
    server = pond.serve(0, 4, cache_tokens=300)
    talk = await pond.opened(pond.network(), server, pond.open_message(0, 4, max_tokens=10))
    await talk.step(0, pond.hidden(100), 0, keep=1)
    await talk.output()
    assert server.engine.cache_tokens_left == 300 - 100
    await talk.step(1, pond.hidden(250), 100, keep=1)
    answer = await talk.hear()
    assert isinstance(answer, Break)
    assert (answer.code, answer.step) == ("peer-refused", 1)
    assert answer.message == "The whole cache of this server has no room for 350 tokens."
    await server.idle()
    assert server.engine.cache_tokens_left == 300


async def test_an_idle_session_gives_its_cache_to_one_that_needs_it(pond: Pond, mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    server = pond.serve(0, 4, cache_tokens=100)
    idle = await pond.opened(pond.network(), server, pond.open_message(0, 4, session=b"1" * 16))
    await idle.step(0, pond.hidden(60), 0, keep=1)
    await idle.output()
    asked = pond.open_message(0, 4, session=b"2" * 16, max_tokens=80)
    active = await pond.opened(pond.network(), server, asked)
    mock_clock.jump(EVICTABLE_SECONDS)
    await active.step(0, pond.hidden(80), 0, keep=1)
    assert torch.equal((await active.output())[1], pond.run(0, 4, pond.hidden(80))[0][:, -1:])
    answer = await idle.hear()
    assert isinstance(answer, Break)
    assert (answer.code, answer.message.split(",")[0]) == (
        "replay-needed",
        "The cache of this session was given to others",
    )
    assert server.engine.statistics().evicted_idle == 1


async def test_steps_of_many_sessions_share_passes_and_give_what_each_gives_alone(pond: Pond) -> None:
    server = pond.serve(0, 4, deterministic=True)
    talks = [
        await pond.opened(pond.network(), server, pond.open_message(first, 4, session=bytes([number]) * 16))
        for number, first in enumerate((0, 0, 0, 1, 1))
    ]
    prompts = [pond.hidden(3 + 5 * number, seed=number) for number in range(len(talks))]
    tokens = [pond.hidden(1, seed=10 + number) for number in range(len(talks))]
    async with held(pond.torch_thread) as gate:
        for talk, prompt, token in zip(talks, prompts, tokens, strict=True):
            await talk.step(0, prompt, 0, keep=2)
            await talk.step(1, token, prompt.shape[1])
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    for talk, prompt, token, first in zip(talks, prompts, tokens, (0, 0, 0, 1, 1), strict=True):
        alone = pond.run_deterministically(first, 4, prompt, token)
        assert torch.equal((await talk.output())[1], alone[0][:, -2:])
        assert torch.equal((await talk.output())[1], alone[1])


async def test_own_use_goes_first_then_preferred_peers_then_others(pond: Pond, ended: list[tuple[int, int]]) -> None:
    stranger, friend = pond.network(), pond.network()
    server = pond.serve(0, 4, cache_tokens=4 * BATCH_TOKENS, preferred=frozenset({friend.peer}))
    talks = []
    for number, network in enumerate((stranger, stranger, friend, server.network)):
        asked = pond.open_message(0, 4, session=bytes([number]) * 16)
        talks.append(await pond.opened(network, server, asked))
    async with held(pond.torch_thread) as gate:
        for talk in talks:  # a batch has room for one of them
            await talk.step(0, pond.hidden(BATCH_TOKENS), 0, keep=1)
            await trio.testing.wait_all_tasks_blocked()
        gate.set()
    for talk in talks:
        await talk.output()
    assert [session for session, _ in ended] == [0, 3, 2, 1]  # nobody waited when the first one came


async def test_a_step_that_waits_too_long_for_its_turn_ends_its_session(pond: Pond, mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    server = pond.serve(0, 4)
    first = await pond.opened(pond.network(), server, pond.open_message(0, 4, session=b"1" * 16))
    second = await pond.opened(pond.network(), server, pond.open_message(0, 4, session=b"2" * 16))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.engine.run)
        async with held(pond.torch_thread) as gate:
            await first.step(0, pond.hidden(3), 0)
            await trio.testing.wait_all_tasks_blocked()
            await second.step(0, pond.hidden(3), 0)
            await trio.testing.wait_all_tasks_blocked()
            assert server.engine.waiting_steps == 1
            mock_clock.jump(MAX_STEP_WAIT_SECONDS)
            answer = await second.hear()
            gate.set()
        assert isinstance(answer, Break)
        assert (answer.code, answer.message) == (
            "peer-busy",
            "A step waited for 120 seconds, because this server is overloaded.",
        )
        assert torch.equal((await first.output())[1], pond.run(0, 4, pond.hidden(3))[0])
        nursery.cancel_scope.cancel()


async def test_a_decode_step_waits_for_a_session_that_is_about_to_come(
    pond: Pond, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def noted(chunks: Sequence[object], **options: Any) -> object:
        batches.append(len(chunks))
        return run_batch(chunks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("swarmnode.node.server.engine.run_batch", noted)
    server, names = pond.serve(0, 4), [b"1" * 16, b"2" * 16]
    prompt, *tokens = (pond.hidden(count, seed=count) for count in (3, 1, 1, 1))
    talks = [await pond.opened(pond.network(), server, pond.open_message(0, 4, session=name)) for name in names]
    for talk in talks:
        await talk.step(0, prompt, 0)
        await talk.output()
    gathering = server.engine._gathering
    for sessions in (1, 8):  # ten seconds for itself, it is told, and that the first session answers within one
        gathering.pace.observe(sessions, 10.0 + sessions / 100)
    gathering.given(names[:1], trio.current_time() - 1)
    gathering.came(names[0], trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.engine.run)
        await trio.testing.wait_all_tasks_blocked()
        batches.clear()
        gathering.given(names[:1], trio.current_time())
        for talk in reversed(talks):
            await talk.step(1, tokens[0], 3)
            await trio.testing.wait_all_tasks_blocked()
            assert server.engine.busy  # training leaves the thread alone while a batch gathers, too
        for talk in talks:
            assert torch.equal((await talk.output())[1], pond.run(0, 4, prompt, tokens[0])[1])
        assert batches == [2]
        await talks[1].step(2, tokens[1], 4)  # and runs all the same when nobody comes
        await talks[1].output()
        assert batches == [2, 1]
        nursery.cancel_scope.cancel()


async def test_a_broken_step_is_nobody_elses_loss(pond: Pond) -> None:
    server = pond.serve(0, 4)
    good = await pond.opened(pond.network(), server, pond.open_message(0, 4, session=b"1" * 16))
    bad = await pond.opened(pond.network(), server, pond.open_message(0, 4, session=b"2" * 16))
    async with held(pond.torch_thread) as gate:
        await bad.step(0, pond.hidden(3), 7)  # beyond what it holds
        await good.step(0, pond.hidden(3), 0)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    answer = await bad.hear()
    assert isinstance(answer, Break)
    assert answer.code == "protocol-violation"
    assert torch.equal((await good.output())[1], pond.run(0, 4, pond.hidden(3))[0])


async def test_two_servers_pass_steps_on(pond: Pond) -> None:
    first, second, network = pond.serve(0, 2), pond.serve(2, 4), pond.network()
    ours, theirs = b"1" * 16, b"2" * 16
    successor = Successor(second.peer, second.network.addrs, theirs)
    head = await pond.opened(network, first, pond.open_message(0, 2, session=ours, successor=successor))
    # The second open comes late: the attach waits for it.
    tail = await pond.opened(network, second, pond.open_message(2, 4, session=theirs, predecessor=first.peer))
    prompt = pond.hidden(5)
    await head.step(0, prompt, 0, keep=1)
    output, hidden = await tail.output()
    assert torch.equal(hidden, pond.run(0, 4, prompt)[0][:, -1:])
    assert [(hop.start, hop.end) for hop in output.trace] == [(0, 2), (2, 4)]
    await head.close()
    await tail.close()
    await first.idle()
    await second.idle()


async def test_only_the_named_predecessor_may_attach(pond: Pond) -> None:
    server, network, stranger = pond.serve(0, 4), pond.network(), pond.network()
    await pond.opened(network, server, pond.open_message(0, 4, predecessor=network.peer))
    talk = await pond.talk(stranger, server)
    await talk.say(Attach(bytes(16)))
    answer = await talk.hear()
    assert isinstance(answer, Refused)
    assert answer.message == "No session here expects you."
    right = await pond.talk(network, server)
    await right.say(Attach(bytes(16)))
    assert await right.hear() == Attached()


async def test_an_attach_that_nobody_opens_is_refused_in_time(pond: Pond, autojump_clock: object) -> None:
    server = pond.serve(0, 4)
    talk = await pond.talk(pond.network(), server)
    await talk.say(Attach(b"x" * 16))
    answer = await talk.hear()
    assert isinstance(answer, Refused)
    assert answer.message == "No session here expects you."


async def test_a_step_for_an_unreachable_successor_comes_back(pond: Pond) -> None:
    first, second, network = pond.serve(0, 2), pond.serve(2, 4), pond.network()
    pond.net.kill(second.peer)
    successor = Successor(second.peer, second.network.addrs, b"2" * 16)
    head = await pond.opened(network, first, pond.open_message(0, 2, successor=successor))
    prompt = pond.hidden(5)
    await head.step(0, prompt, 0, keep=1)
    output, hidden = await head.output()
    assert (output.step, output.position, output.next_block) == (0, 0, 2)
    assert torch.equal(hidden, pond.run(0, 2, prompt)[0])


async def test_what_a_broken_link_may_have_lost_comes_back_and_twice_is_once(pond: Pond) -> None:
    first, second, network = pond.serve(0, 2), pond.serve(2, 4), pond.network()
    successor = Successor(second.peer, second.network.addrs, b"2" * 16)
    head = await pond.opened(network, first, pond.open_message(0, 2, session=b"1" * 16, successor=successor))
    asked = pond.open_message(2, 4, session=b"2" * 16, predecessor=first.peer)
    tail = await pond.opened(network, second, asked)
    prompt, token = pond.hidden(5), pond.hidden(1, seed=1)
    await head.step(0, prompt, 0, keep=1)
    assert (await tail.output())[0].step == 0
    pond.cut(first, second)
    output, hidden = await head.output()
    assert (output.step, output.next_block) == (0, 2)
    # The client sends it on although it did arrive: nothing comes of it.
    await tail.step(0, hidden, 0, keep=1)
    await head.step(1, token, 5)
    output, hidden = await head.output()
    assert (output.step, output.next_block) == (1, 2)
    await tail.step(1, hidden, 5)
    output, hidden = await tail.output()
    assert output.step == 1
    assert torch.equal(hidden, pond.run(0, 4, prompt, token)[1])


async def test_a_client_that_falls_silent_is_let_go(pond: Pond, mock_clock: Any) -> None:
    server, network = pond.serve(0, 4), pond.network()
    talk = await pond.opened(network, server, pond.open_message(0, 4))
    mock_clock.autojump_threshold = 0.05
    pond.net.blackhole(network.peer)
    began = trio.current_time()
    await server.idle(poll_seconds=1.0)
    assert trio.current_time() - began < 30
    with pytest.raises(PeerLost):
        await talk.hear()


async def test_an_idle_session_gives_its_cache_up(pond: Pond, mock_clock: Any) -> None:
    server, network = pond.serve(0, 4), pond.network()
    talk = await pond.opened(network, server, pond.open_message(0, 4))
    mock_clock.autojump_threshold = 0.0005

    async def ping() -> None:
        with suppress(PeerLost):
            while True:
                await talk.say(Ping(1))
                await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        while isinstance(answer := await talk.hear(), Pong):
            pass
        nursery.cancel_scope.cancel()
    assert isinstance(answer, Break)
    assert answer.message == "The session did nothing for 30 minutes, so its cache was given up."
    await server.idle()


async def test_leaving_tells_the_clients(pond: Pond) -> None:
    server = pond.serve(0, 4)
    talk = await pond.opened(pond.network(), server, pond.open_message(0, 4))
    await server.handler.leave()
    answer = await talk.hear()
    assert isinstance(answer, Break)
    assert (answer.code, answer.message) == ("peer-lost", "This server is leaving.")
    assert server.handler.sessions == 0
