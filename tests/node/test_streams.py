"""Message streams: whole messages or an error that names the peer; a bounded outbox; silence counted in checks."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from swarmnode.errors import PeerLost, ProtocolViolation
from swarmnode.node.defaults import OUTBOX_FRAMES
from swarmnode.node.net.pipe import PipeStream, open_pipe
from swarmnode.node.streams import MessageStream, Silence
from swarmnode.protocols.frames import encode_frame
from swarmnode.protocols.messages import Close, Ping, Pong, Step, TensorHeader


@pytest.fixture
def pipe() -> tuple[PipeStream, PipeStream]:
    return open_pipe("here", "there")


def big_step(tokens: int = 4096) -> tuple[Step, bytes]:
    tensor = TensorHeader("float32", (1, tokens, 64))
    return Step(0, 0, tokens, tensor), bytes(range(256)) * (tensor.raw_bytes // 256)


async def test_messages_arrive_whole_and_in_order(pipe: tuple[PipeStream, PipeStream]) -> None:
    ours, theirs = MessageStream(pipe[0]), MessageStream(pipe[1])
    step, body = big_step()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.run_writer)
        await ours.post(Ping(7))
        await ours.post(step, body)
        await ours.post(Close())
        assert (await theirs.expect())[0] == Ping(7)
        message, received = await theirs.expect()
        assert message == step
        assert received == body
        assert (await theirs.expect())[0] == Close()
        ours.finish()
    await ours.close()
    assert await theirs.receive() is None


async def test_finish_lets_the_writer_write_what_waits(pipe: tuple[PipeStream, PipeStream]) -> None:
    ours, theirs = MessageStream(pipe[0]), MessageStream(pipe[1])
    for nonce in range(3):
        assert ours.post_soon(Ping(nonce))
    ours.finish()
    await ours.run_writer()
    await ours.close()
    assert [(await theirs.expect())[0] for _ in range(3)] == [Ping(0), Ping(1), Ping(2)]
    assert await theirs.receive() is None
    with pytest.raises(PeerLost):
        ours.post_soon(Ping(3))


async def test_the_outbox_is_bounded(pipe: tuple[PipeStream, PipeStream]) -> None:
    ours = MessageStream(pipe[0])
    assert all(ours.post_soon(Ping(nonce)) for nonce in range(OUTBOX_FRAMES))
    assert not ours.post_soon(Ping(0))


async def test_an_end_in_the_middle_of_a_message_is_a_loss(pipe: tuple[PipeStream, PipeStream]) -> None:
    head, _ = encode_frame({"type": "ping", "nonce": 1})
    await pipe[0].send_all(head[:-1])
    await pipe[0].send_eof()
    with pytest.raises(PeerLost, match="Peer here ended in the middle of a message"):
        await MessageStream(pipe[1]).receive()


async def test_expecting_more_after_the_end_is_a_loss(pipe: tuple[PipeStream, PipeStream]) -> None:
    await pipe[0].send_eof()
    with pytest.raises(PeerLost) as caught:
        await MessageStream(pipe[1]).expect()
    assert caught.value.peer == "here"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", encode_frame({"type": "nonsense"})[0]])
async def test_garbage_names_the_peer(pipe: tuple[PipeStream, PipeStream], data: bytes) -> None:
    await pipe[0].send_all(data)
    with pytest.raises(ProtocolViolation) as caught:
        await MessageStream(pipe[1]).receive()
    assert caught.value.peer == "here"
    assert caught.value.message.startswith("Peer here broke the protocol: ")


async def test_a_body_over_the_bound_is_refused_by_its_prefix(pipe: tuple[PipeStream, PipeStream]) -> None:
    step, body = big_step(tokens=16)
    ours, theirs = MessageStream(pipe[0]), MessageStream(pipe[1], max_body_bytes=len(body) - 1)
    await ours.send(step, body)
    with pytest.raises(ProtocolViolation, match="at most 4095 are taken"):
        await theirs.receive()


async def test_a_cancelled_send_leaves_a_stream_that_is_reset(pipe: tuple[PipeStream, PipeStream]) -> None:
    ours, theirs = MessageStream(pipe[0]), MessageStream(pipe[1])
    step, body = big_step()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send, step, body)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert ours.broken
    await ours.close()
    with pytest.raises(PeerLost):
        await theirs.receive()


async def test_silence_is_counted_in_checks(pipe: tuple[PipeStream, PipeStream]) -> None:
    ours, theirs = MessageStream(pipe[0]), MessageStream(pipe[1])
    silence = Silence(theirs, 3)
    assert [silence.check() for _ in range(2)] == [False, False]
    await ours.send(Pong(1))
    await theirs.receive()
    assert [silence.check() for _ in range(4)] == [False, False, False, True]
