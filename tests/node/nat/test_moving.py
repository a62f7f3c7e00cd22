"""Streams that move under their owners' hands: nothing lost, doubled or overtaken, whatever goes wrong on the way."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from swarmnode.errors import PeerFault, PeerLost, PeerRefused
from swarmnode.node.net.moving import ARRIVE_SECONDS, Movers
from swarmnode.node.net.network import Stream
from swarmnode.node.net.pipe import open_pipe

ECHO = "/test/echo/1"


class Pair:
    """Two peers, `a` opens to `b`; every stream between them is a fresh pipe."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.a = Movers(lambda _: None)
        self.b = Movers(lambda name: echo if name == ECHO else None)
        self.pipes: list[tuple[Stream, Stream]] = []

    async def connect(self, delay_seconds: float = 0.01) -> Stream:
        here, there = open_pipe("a", "b", delay_seconds=lambda: delay_seconds)
        self.pipes.append((here, there))
        self.nursery.start_soon(self._answer, there)
        return here

    async def _answer(self, stream: Stream) -> None:
        try:
            await self.b.answer(stream)
        except PeerFault:
            await stream.reset()
        else:
            await stream.aclose()


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(4096):
        await stream.send_all(data)
    await stream.send_eof()


async def receive(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := await stream.receive_some(size - len(data))):
        data += piece
    return bytes(data)


async def test_a_stream_in_full_use_moves_and_its_owners_see_nothing(autojump_clock: trio.abc.Clock) -> None:
    payload = random.Random(1).randbytes(3_000_000)
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        stream = await pair.a.begin(await pair.connect(), ECHO)

        async def send() -> None:
            rng = random.Random(2)
            at = 0
            while at < len(payload):
                size = rng.randrange(1, 40_000)
                await stream.send_all(payload[at : at + size])
                at += size
            await stream.send_eof()

        nursery.start_soon(send)
        first = await receive(stream, 100_000)
        went: list[int] = []

        async def move() -> None:
            went.append(await pair.a.move("b", pair.connect))

        nursery.start_soon(move)
        assert first + await receive(stream, len(payload)) == payload
        assert await stream.receive_some(1) == b""
        assert went == [1]
        await stream.aclose()
        (old, _), (new, _) = pair.pipes
        for gone in (old, new):
            with pytest.raises(PeerLost):
                await gone.receive_some(1)
        assert await pair.a.move("b", pair.connect) == 0


async def test_a_quiet_stream_moves_and_the_old_one_may_die(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        stream = await pair.a.begin(await pair.connect(), ECHO)
        await stream.send_all(b"before")
        assert await receive(stream, 6) == b"before"
        reading: list[bytes] = []

        async def wait_for_answer() -> None:
            reading.append(await receive(stream, 5))

        async with trio.open_nursery() as inner:
            inner.start_soon(wait_for_answer)
            await trio.testing.wait_all_tasks_blocked()
            assert await pair.a.move("b", pair.connect) == 1
            await trio.sleep(1)
            await pair.pipes[0][1].reset()
            await stream.send_all(b"after")
        assert reading == [b"after"]
        await stream.aclose()


async def test_the_direct_way_may_overtake_the_streams_beginning(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        stream = await pair.a.begin(await pair.connect(0.9 * ARRIVE_SECONDS), ECHO)
        assert await pair.a.move("b", pair.connect) == 1
        await stream.send_all(b"directly")
        assert await receive(stream, 8) == b"directly"
        await stream.aclose()
        late = await pair.a.begin(await pair.connect(1.1 * ARRIVE_SECONDS), ECHO)
        assert await pair.a.move("b", pair.connect) == 0
        await late.send_all(b"through the relay")
        assert await receive(late, 17) == b"through the relay"
        await late.aclose()


async def test_a_stream_stays_where_the_new_way_does_not_open(autojump_clock: trio.abc.Clock) -> None:
    async def refuse() -> Stream:
        raise PeerRefused("no", peer="b")

    async def say_nothing() -> Stream:
        return open_pipe("a", "b")[0]

    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        stream = await pair.a.begin(await pair.connect(), ECHO)
        for way in (refuse, say_nothing):
            other = await pair.a.begin(await pair.connect(), ECHO)
            assert await pair.a.move("b", way) == 0
            for each in (stream, other):
                await each.send_all(b"still here")
                assert await receive(each, 10) == b"still here"
            await other.aclose()
        await stream.aclose()


async def test_nobody_takes_over_anothers_stream(autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery)
        stream = await pair.a.begin(await pair.connect(), ECHO)
        await stream.send_all(b"mine")
        assert await receive(stream, 4) == b"mine"
        here, there = open_pipe("c", "b")
        await here.send_all(stream.token + b"\x00")
        with pytest.raises(PeerRefused):
            await pair.b.answer(there)
        await stream.send_all(b"yet!")
        assert await receive(stream, 4) == b"yet!"
        await stream.aclose()


@pytest.mark.parametrize("words", [b"", b"\x00" * 16, b"\x00" * 16 + b"\x05abc", b"\x00" * 16 + b"\x03abc"])
async def test_what_is_no_greeting_is_refused(words: bytes) -> None:
    movers = Movers(lambda name: echo if name == ECHO else None)
    here, there = open_pipe("a", "b")
    await here.send_all(words)
    await here.send_eof()
    with pytest.raises(PeerFault):
        await movers.answer(there)
