"""Passes of training on one server: order, refusals, garbage, and what stays behind: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
import trio

from support.pond import ANSWER_SECONDS, Pond, Server, Talk
from swarmnode.errors import PeerLost
from swarmnode.models.span import Span
from swarmnode.models.training import backward, forward
from swarmnode.node.defaults import MAX_TRAINING_PASSES_PER_PEER, TRAINING_GROUPS, TRAINING_ROW_TOKENS
from swarmnode.node.net.memory import MemoryNetwork
from swarmnode.node.server.batch import run_batch
from swarmnode.node.server.trainer import Trainer
from swarmnode.node.server.training import TrainingHandler
from swarmnode.node.server.training_work import stretch
from swarmnode.node.streams import MessageStream
from swarmnode.node.tensors import tensor_from_bytes, tensor_to_bytes
from swarmnode.protocols.ids import TRAINING
from swarmnode.protocols.messages import (
    Break,
    Close,
    Gradients,
    Message,
    Ping,
    Pong,
    Prompts,
    Ready,
    Refused,
    Rows,
    TensorHeader,
    Train,
)
from swarmnode.protocols.tensors import CODEC_LOSSLESS

MEMORY_BYTES = 1 << 30


class School:
    """A server that trains, and clients that speak to it by hand."""

    def __init__(self, pond: Pond, server: Server, trainer: Trainer, handler: TrainingHandler) -> None:
        self.pond = pond
        self.server = server
        self.trainer = trainer
        self.handler = handler

    def asked(self, **changes: Any) -> Train:
        plain = Train(self.pond.model, 0, 4, False, "float32", (1, 0), 2, 5, 0)
        return replace(plain, **changes)

    async def talk(self, network: MemoryNetwork | None = None) -> Talk:
        network = network or self.pond.network()
        return Talk(MessageStream(await network.open_stream(self.server.peer, TRAINING, self.server.network.addrs)))

    async def begun(self, asked: Train, network: MemoryNetwork | None = None) -> tuple[Talk, Ready]:
        talk = await self.talk(network)
        await talk.say(asked)
        answer = await talk.hear()
        assert isinstance(answer, Ready), answer
        return talk, answer

    async def emptied(self) -> None:
        """Wait until nothing is held for anybody."""
        with trio.fail_after(ANSWER_SECONDS):
            while self.trainer.memory_bytes or self.handler.passes:  # noqa: ASYNC110 - what is awaited is their end
                await trio.sleep(0.001)


@asynccontextmanager
async def school_of(pond: Pond, memory_bytes: int = MEMORY_BYTES) -> AsyncIterator[School]:
    server = pond.serve(0, 4)
    engine = server.engine
    trainer = Trainer(engine._span, pond.torch_thread, busy=lambda: engine.busy, memory_bytes=memory_bytes)
    engine.batch_over = trainer.batch_over
    handler = TrainingHandler(pond.model, trainer, start=0, end=4, hidden_size=engine.hidden_size)
    server.network.handle(TRAINING, handler)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trainer.run)
        yield School(pond, server, trainer, handler)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def school(pond: Pond) -> AsyncIterator[School]:
    async with school_of(pond) as school:
        yield school


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


async def say_rows(talk: Talk, row: int, rows: torch.Tensor, kind: type[Rows | Gradients] = Rows) -> None:
    tensor, body = tensor_to_bytes(rows, "float32")
    await talk.say(kind(row, tensor), body)


async def hear_tensor(talk: Talk) -> tuple[Message, torch.Tensor]:
    message, body = await talk.hear_all()
    assert isinstance(message, Rows | Gradients | Prompts), message
    return message, tensor_from_bytes(message.tensor, body)


async def test_a_pass_forward(school: School) -> None:
    rows = noise(2, 5, school.server.engine.hidden_size)
    talk, _ = await school.begun(school.asked())
    await say_rows(talk, 0, rows)
    message, out = await hear_tensor(talk)
    assert isinstance(message, Rows)
    assert torch.equal(out, forward(school.server.engine._span, rows))
    assert await talk.messages.receive() is None
    await school.emptied()


async def test_a_pass_backward_with_prompts_in_groups(school: School) -> None:
    width = school.server.engine.hidden_size
    rows, gradient, prompts = noise(7, 250, width), noise(7, 250, width, seed=2), noise(3, 2, width, seed=3)
    talk, ready = await school.begun(
        school.asked(start=1, backward=True, rows=7, tokens=250, prompt_tokens=2, codecs=(0,))
    )
    assert ready.group_rows == 2
    for block, piece in ((1, prompts[:1]), (2, prompts[1:])):
        tensor, body = tensor_to_bytes(piece, "float32")
        await talk.say(Prompts(block, tensor), body)
    found = []
    for row in range(0, 7, 2):
        await say_rows(talk, row, rows[row : row + 2])
        await say_rows(talk, row, gradient[row : row + 2], Gradients)
        message, back = await hear_tensor(talk)
        assert isinstance(message, Gradients)
        assert message.row == row
        found.append(back)
    message, of_prompts = await hear_tensor(talk)
    assert isinstance(message, Prompts)
    assert message.block == 1
    expected = backward(school.server.engine._span.part(1, 4), rows, gradient, prompts, group_rows=2)
    assert torch.equal(torch.cat(found), expected.hidden)
    assert expected.prompts is not None
    assert torch.equal(of_prompts, expected.prompts)
    await school.emptied()


async def test_what_is_not_finite_is_computed_with(school: School) -> None:
    talk, _ = await school.begun(school.asked())
    rows = noise(2, 5, school.server.engine.hidden_size)
    rows[0] = float("nan")
    await say_rows(talk, 0, rows)
    _, out = await hear_tensor(talk)
    assert out[0].isnan().all()
    assert torch.equal(out[1:], forward(school.server.engine._span, rows)[1:])


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"end": 5}, "bad-range", "holds blocks 0:4, not 0:5"),
        ({"dtype": "int8"}, "peer-refused", "cannot be sent here as int8"),
        ({"codecs": (0, 99)}, "peer-refused", "Codec 99 is not read here"),
        (
            {"tokens": TRAINING_ROW_TOKENS + 1},
            "peer-refused",
            f"A row has {TRAINING_ROW_TOKENS + 1} tokens; {TRAINING_ROW_TOKENS} are the most",
        ),
    ],
)
async def test_what_can_never_be_run_is_refused(school: School, changes: dict[str, Any], code: str, said: str) -> None:
    talk = await school.talk()
    await talk.say(school.asked(**changes))
    refused = await talk.hear()
    assert isinstance(refused, Refused)
    assert refused.code == code
    assert said in refused.message
    await school.emptied()


async def test_another_model_is_refused(school: School) -> None:
    talk = await school.talk()
    await talk.say(school.asked(model=replace(school.pond.model, digest=bytes(32))))
    refused = await talk.hear()
    assert isinstance(refused, Refused)
    assert refused.code == "model-mismatch"


async def test_a_row_for_which_there_will_never_be_memory_is_refused_with_figures(pond: Pond) -> None:
    async with school_of(pond, memory_bytes=40 << 20) as school:
        talk = await school.talk()
        await talk.say(school.asked(tokens=2000, backward=True))
        refused = await talk.hear()
    assert isinstance(refused, Refused)
    assert refused.code == "peer-refused"
    assert "Rows of 2000 tokens take " in refused.message
    assert refused.message.endswith("this server has 40 MiB for that.")


async def test_blocks_through_which_no_gradients_go_are_refused_in_words(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some ways of keeping weights in few bits have it."""
    monkeypatch.setattr(Span, "without_cache", lambda _, hidden: hidden.detach())
    for _ in range(2):
        talk = await school.talk()
        await talk.say(school.asked(backward=True))
        refused = await talk.hear()
        assert isinstance(refused, Refused)
        assert refused.code == "peer-refused"
        assert refused.message.startswith("No gradients go through blocks as this server holds them: element 0 of ")


async def test_one_client_has_so_many_passes_and_is_told_when_to_come_again(school: School) -> None:
    network = school.pond.network()
    talks = [(await school.begun(school.asked(), network))[0] for _ in range(MAX_TRAINING_PASSES_PER_PEER)]
    more = await school.talk(network)
    await more.say(school.asked())
    refused = await more.hear()
    assert isinstance(refused, Refused)
    assert refused.code == "peer-busy"
    assert refused.retry_after_seconds is not None
    await school.begun(school.asked())  # others are not concerned
    for talk in talks:
        await talk.close()


async def test_memory_that_is_taken_is_no_refusal_for_ever(pond: Pond) -> None:
    async with school_of(pond, memory_bytes=60 << 20) as school:
        first, _ = await school.begun(school.asked())
        talk = await school.talk()
        await talk.say(school.asked())
        refused = await talk.hear()
        assert isinstance(refused, Refused)
        assert refused.code == "peer-busy"
        await first.close()
        await school.emptied()
        await school.begun(school.asked())


WIDTH = 64
ROWS = TensorHeader("float32", (2, 5, WIDTH))


def body(tensor: TensorHeader) -> bytes:
    return bytes(tensor.raw_bytes)


@pytest.mark.parametrize(
    ("changes", "messages", "said"),
    [
        ({}, [Rows(1, ROWS)], "sent rows from 1 on, not from 0"),
        ({}, [Rows(0, TensorHeader("float32", (1, 5, WIDTH)))], "sent shape [1, 5, 64], not [2, 5, 64]"),
        ({}, [Rows(0, TensorHeader("float32", (2, 4, WIDTH)))], "sent shape [2, 4, 64], not [2, 5, 64]"),
        ({}, [Rows(0, TensorHeader("float32", (2, 5, 8)))], "sent shape [2, 5, 8], not [2, 5, 64]"),
        ({}, [Rows(0, TensorHeader("float16", (2, 5, WIDTH)))], "sent float16; float32 was agreed"),
        ({}, [Gradients(0, ROWS)], "sent gradients where something else had to come"),
        ({}, [Prompts(0, ROWS)], "sent prompts where something else had to come"),
        ({}, [Close()], "sent close where something else had to come"),
        ({"backward": True}, [Rows(0, ROWS), Rows(0, ROWS)], "sent rows where something else had to come"),
        ({"backward": True}, [Rows(0, ROWS), Gradients(1, ROWS)], "sent gradients from 1 on, not from 0"),
        ({"prompt_tokens": 5}, [Rows(0, ROWS)], "sent rows where something else had to come"),
        ({"prompt_tokens": 5}, [Prompts(1, ROWS)], "sent prompts of blocks from 1 on, not from 0"),
        (
            {"prompt_tokens": 5},
            [Prompts(0, TensorHeader("float32", (5, 5, WIDTH)))],
            "sent prompts of blocks from 0 on, not from 0",
        ),
        (
            {"rows": 9, "tokens": 512},
            [Rows(row, TensorHeader("float32", (1, 512, WIDTH))) for row in range(TRAINING_GROUPS + 1)],
            f"more than {TRAINING_GROUPS} groups",
        ),
    ],
)
async def test_what_was_not_agreed_on_ends_the_pass_with_one_clear_error(
    school: School, changes: dict[str, Any], messages: list[Message], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = trio.Event()
    monkeypatch.setattr(school.trainer, "_busy", lambda: not held.is_set())
    talk, _ = await school.begun(school.asked(**changes))
    for message in messages:
        tensor = getattr(message, "tensor", None)
        await talk.say(message, b"" if tensor is None else body(tensor))
    ended = await talk.hear()
    assert isinstance(ended, Break)
    assert ended.code == "protocol-violation"
    assert said in ended.message
    await school.emptied()


async def test_a_body_that_cannot_be_decoded_ends_its_pass_alone(school: School) -> None:
    rows = noise(2, 64, WIDTH)
    tensor, blob = tensor_to_bytes(rows, "float32", CODEC_LOSSLESS)
    assert tensor.codec == CODEC_LOSSLESS
    talk, _ = await school.begun(school.asked(tokens=64))
    other, _ = await school.begun(school.asked(tokens=64))
    await talk.say(Rows(0, tensor), bytes(blob)[:-9])
    ended = await talk.hear()
    assert isinstance(ended, Break)
    assert ended.code == "protocol-violation"
    await say_rows(other, 0, rows)
    assert (await hear_tensor(other))[1].shape == rows.shape


async def test_a_ping_is_answered_while_others_compute(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(school.trainer, "_busy", lambda: True)
    talk, _ = await school.begun(school.asked())
    await say_rows(talk, 0, noise(2, 5, WIDTH))
    await talk.say(Ping(7))
    assert await talk.hear() == Pong(7)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_client_that_goes_away_leaves_nothing_behind(school: School, how: str) -> None:
    talk, ready = await school.begun(school.asked(backward=True, rows=64, tokens=256))
    rows = noise(ready.group_rows, 256, WIDTH)
    for number in range(TRAINING_GROUPS):
        await say_rows(talk, number * ready.group_rows, rows)
        await say_rows(talk, number * ready.group_rows, rows, Gradients)
    await (talk.messages.reset() if how == "reset" else talk.close())
    await school.emptied()
    assert not school.trainer._line.waiting
    assert school.trainer._running is None


async def test_a_server_that_leaves_says_so(school: School) -> None:
    talk, _ = await school.begun(school.asked())
    school.handler.leave()
    ended = await talk.hear()
    assert isinstance(ended, Break)
    assert ended.code == "peer-lost"
    await school.emptied()


async def test_whatever_is_sent_the_next_client_is_served(school: School) -> None:
    """Messages that are right each by itself, in any order: an error or answers, and nothing stays behind."""
    random = Random(11)
    rows = noise(2, 5, WIDTH)
    expected = forward(school.server.engine._span, rows)
    for _ in range(40):
        talk = await school.talk()
        wanted = school.asked(backward=random.random() < 0.5, prompt_tokens=random.choice([0, 0, 5]))
        said: list[Message] = [wanted]
        for _ in range(random.randint(0, 5)):
            tensor = TensorHeader("float32", random.choice([(2, 5, WIDTH), (4, 5, WIDTH), (1, 5, WIDTH), (2, 5, 1)]))
            first = random.choice([0, 0, 0, 2])
            with_tensor: list[Message] = [Rows(first, tensor), Rows(first, tensor), Gradients(first, tensor)]
            said.append(random.choice([*with_tensor, Prompts(first, tensor), Ping(1), wanted, Close()]))
        with suppress(PeerLost):
            for message in said:
                tensor_said = getattr(message, "tensor", None)
                await talk.say(message, b"" if tensor_said is None else body(tensor_said))
        await talk.close()
    await school.emptied()
    talk, _ = await school.begun(school.asked())
    await say_rows(talk, 0, rows)
    assert torch.equal((await hear_tensor(talk))[1], expected)


async def test_a_session_never_waits_for_more_than_one_stretch(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the order in which the torch thread begins things, whatever they take."""
    begun: list[str] = []
    learnt = trio.Event()

    def noted(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun.append(name)
            return run(*args, **kwargs)

        return call

    monkeypatch.setattr("swarmnode.node.server.trainer.stretch", noted("stretch", stretch))
    monkeypatch.setattr("swarmnode.node.server.engine.run_batch", noted("batch", run_batch))
    engine = school.server.engine
    monkeypatch.setattr(engine, "submit", noted("asked", engine.submit))
    pond = school.pond
    talk, ready = await school.begun(school.asked(backward=True, rows=64, tokens=64))
    session = await pond.opened(pond.network(), school.server, pond.open_message(0, 4))

    async def learn() -> None:
        rows = noise(ready.group_rows, 64, WIDTH)
        for row in range(0, 64, ready.group_rows):
            await say_rows(talk, row, rows)
            await say_rows(talk, row, rows, Gradients)
            await hear_tensor(talk)
        learnt.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(learn)
        number = 0
        while not learnt.is_set():
            await session.step(number, pond.hidden(1), number)
            await session.output()
            number += 1
    assert begun.count("stretch") == 64 // ready.group_rows * (2 * 4 - 1)
    asked = [place for place, what in enumerate(begun) if what == "asked"]
    assert len(asked) == number > 0
    assert all("batch" in begun[place + 1 : place + 3] for place in asked)
