"""Messages posted to a stream of the transport in Rust: they leave in the call, and in order when they have to wait."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from support.loopback import CARRIERS_AND_FAMILIES, QUIC
from support.muxers import pair
from swarmnode.errors import PeerLost
from swarmnode.node.streams import MessageStream
from swarmnode.protocols.messages import Ping, Step, TensorHeader

LONG = TensorHeader("float32", (1, 1024, 2048))
"""Eight MiB: more than two of them and a stream's window is full."""


@pytest.mark.parametrize("listen", CARRIERS_AND_FAMILIES)
async def test_a_message_leaves_without_a_writer(listen: str) -> None:
    async with pair(listen) as both:
        ours, theirs = map(MessageStream, await both.streams())
        assert ours.post_soon(Ping(1))
        await ours.post(Ping(2))
        assert [(await theirs.expect())[0] for _ in range(2)] == [Ping(1), Ping(2)]
        assert not ours.broken


async def test_what_there_is_no_room_for_waits_for_the_writer_and_nothing_overtakes_it() -> None:
    async with pair(QUIC) as both:
        ours, theirs = map(MessageStream, await both.streams())
        bodies = [bytes([number]) * LONG.raw_bytes for number in range(4)]
        for number, body in enumerate(bodies):
            assert ours.post_soon(Step(number, 0, 1, LONG), body)
            assert ours.post_soon(Ping(number))
        half_out = ours.broken
        assert half_out
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.run_writer)
            for number, body in enumerate(bodies):
                step, received = await theirs.expect()
                assert isinstance(step, Step)
                assert step.step == number
                assert received == body
                assert (await theirs.expect())[0] == Ping(number)
            await trio.testing.wait_all_tasks_blocked()
            assert ours.post_soon(Ping(99))  # at once again
            assert (await theirs.expect())[0] == Ping(99)
            ours.finish()


async def test_nothing_is_posted_to_a_stream_that_is_gone() -> None:
    async with pair(QUIC) as both:
        ours, theirs = map(MessageStream, await both.streams())
        await theirs.reset()
        with pytest.raises(PeerLost):
            await ours.expect()
        with pytest.raises(PeerLost):
            ours.post_soon(Ping(1))
        await ours.close()
        with pytest.raises(PeerLost):
            await ours.post(Ping(2))
