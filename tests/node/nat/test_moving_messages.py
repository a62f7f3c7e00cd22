"""Whole messages over real streams that move under their owners' hands, between two messages and never within one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from multiaddr import Multiaddr

from support.loopback import QUIC, TCP
from swarmnode.errors import PeerFault, PeerLost, PeerRefused
from swarmnode.node.identity import create_identity
from swarmnode.node.net.addresses import listen_socket, listening_addrs
from swarmnode.node.net.moving import Movers, MovingMessages
from swarmnode.node.net.native import NativeMuxer, NativeStream
from swarmnode.node.net.network import EagerMessages, Stream
from swarmnode.node.net.transport import Transport
from swarmnode.protocols.wire import pack

TALK = "/test/talk/1"
BODY_LIMIT = 64 << 20
LARGE = bytes(48 << 20)
"""More than all windows and buffers on the way hold: while nobody reads, it is half out."""
HANG_SECONDS = 60.0
"""Nothing here takes so long, whatever else the machine does."""

Handler = Callable[[MovingMessages], Awaitable[None]]


class Pair:
    """Two peers with two connections: streams begin on the first, and move to the second."""

    def __init__(self, handler: Handler) -> None:
        self.a = Movers(lambda _: None)
        self.b = Movers(lambda name: partial(self._handle, handler) if name == TALK else None)
        self.here: list[NativeMuxer] = []
        self.there: list[NativeMuxer] = []
        self.peer = ""

    async def begin(self) -> MovingMessages:
        stream = await self.a.begin(await self.here[0].open(), TALK)
        assert isinstance(stream, MovingMessages)
        return stream

    async def move(self) -> int:
        return await self.a.move(self.peer, self.open_direct)

    async def open_direct(self) -> NativeStream:
        return await self.here[1].open()

    async def streams_end(self) -> None:
        """Wait until no stream is open any more, on either connection at either end."""
        while any(muxer.open_streams for muxer in (*self.here, *self.there)):  # noqa: ASYNC110 - Rust tells nobody
            await trio.sleep(0.01)

    async def accept(self, muxer: NativeMuxer) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._answer, await muxer.accept())

    async def _answer(self, stream: NativeStream) -> None:
        try:
            await self.b.answer(stream)
        except PeerFault:
            await stream.reset()
        else:
            await stream.aclose()

    async def _handle(self, handler: Handler, stream: Stream) -> None:
        assert isinstance(stream, MovingMessages)
        await handler(stream)


@asynccontextmanager
async def pair(handler: Handler) -> AsyncIterator[Pair]:
    one, other = create_identity(), create_identity()
    dialler, listener = Transport(one), Transport(other)
    both = Pair(handler)
    both.peer = other.peer
    try:
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                for listen in (TCP, QUIC):
                    sock = listen_socket(listen)
                    addr = f"{listening_addrs(sock)[0]}/p2p/{other.peer}"
                    listener.listen(sock)
                    both.here.append((await dialler.dial(Multiaddr(addr))).muxer)
                    both.there.append((await listener.accept()).muxer)
                for muxer in (*both.here, *both.there):
                    nursery.start_soon(muxer.run)
                for muxer in both.there:
                    nursery.start_soon(both.accept, muxer)
                yield both
                nursery.cancel_scope.cancel()
    finally:
        dialler.close()
        listener.close()


def header(number: int) -> bytes:
    return pack({"n": number})


def body(number: int) -> bytes:
    return random.Random(number).randbytes(random.Random(-number).choice((0, 5, 3000, 200_000)))


async def receive(stream: MovingMessages) -> tuple[bytes, bytes] | None:
    message = await stream.receive_message(BODY_LIMIT)
    return (message[0], message[1].tobytes()) if message is not None else None


async def echo(stream: MovingMessages) -> None:
    while (message := await stream.receive_message(BODY_LIMIT)) is not None:
        await stream.send_message(*message)
    await stream.send_eof()


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("seed", range(3))
async def test_many_messages_both_ways_and_a_move_in_their_midst(seed: int, eager: bool) -> None:
    count, chance = 200, random.Random(seed)
    async with pair(echo) as both:
        stream = await both.begin()
        assert isinstance(stream, EagerMessages)
        moved_at = chance.randrange(count)
        signs = [0]

        async def send() -> None:
            for number in range(count):
                if not eager or not stream.begin_message(header(number), body(number)):
                    await stream.send_message(header(number), body(number))
                if eager:
                    await trio.lowlevel.checkpoint()
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for number in range(count):
                if number == moved_at:
                    nursery.start_soon(both.move)
                assert await receive(stream) == (header(number), body(number))
                assert stream.moved_bytes >= signs[-1]
                signs.append(stream.moved_bytes)
        assert await receive(stream) is None
        assert stream.moved
        assert stream.moved_bytes > 2 * sum(len(body(number)) for number in range(count))
        await stream.aclose()
        await both.streams_end()


async def test_cancelled_receives_lose_nothing_on_either_stream() -> None:
    least = 60
    moved, sent = trio.Event(), list[tuple[bytes, bytes]]()

    async def talk(stream: MovingMessages) -> None:
        while len(sent) < least or not moved.is_set():
            sent.append((header(len(sent)), body(len(sent))))
            await stream.send_message(*sent[-1])
            if len(sent) % 3 == 0:
                await trio.testing.wait_all_tasks_blocked()
        await stream.send_eof()

    async with pair(talk) as both:
        stream = await both.begin()
        found: list[tuple[bytes, bytes]] = []
        scopes: list[trio.CancelScope] = []
        done = trio.Event()

        async def listen() -> None:
            while not done.is_set():
                with trio.CancelScope() as scope:
                    scopes.append(scope)
                    if (message := await receive(stream)) is None:
                        done.set()
                    else:
                        found.append(message)

        async def disturb() -> None:
            while not done.is_set():
                await trio.testing.wait_all_tasks_blocked()
                scopes[-1].cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            nursery.start_soon(disturb)
            assert await both.move() == 1
            moved.set()
        assert found == sent
        assert len(scopes) > len(sent) + 1, "some receives were cancelled"
        await stream.aclose()


@pytest.mark.parametrize("who", ["opener", "answerer"])
async def test_a_message_that_is_half_out_ends_where_it_began(who: str) -> None:
    """While one side waits in the midst of a long message, the other has moved already, and both go on."""
    begun, go_on = trio.Event(), trio.Event()

    async def send(stream: MovingMessages) -> None:
        begun.set()
        await stream.send_message(header(0), LARGE)
        await stream.send_message(header(1), b"and on")
        await stream.send_eof()

    async def take(stream: MovingMessages) -> None:
        await stream.send_message(header(2), b"meanwhile")
        await go_on.wait()
        assert await receive(stream) == (header(0), LARGE)
        assert await receive(stream) == (header(1), b"and on")
        assert await receive(stream) is None

    async def talk(stream: MovingMessages) -> None:
        await (take(stream) if who == "opener" else send(stream))

    async with pair(talk) as both:
        stream = await both.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send if who == "opener" else take, stream)
            await begun.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert both.here[0].stats().sent_bytes + both.here[0].stats().received_bytes < len(LARGE), "it is half out"
            nursery.start_soon(both.move)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert stream.moved
            assert both.here[1].open_streams == 1
            go_on.set()
            if who == "opener":
                assert await receive(stream) == (header(2), b"meanwhile")
        await stream.aclose()
        await both.streams_end()


@pytest.mark.parametrize("ends", [True, False])
async def test_a_message_that_was_begun_is_ended_where_it_was_or_given_up(ends: bool) -> None:
    go_on, found = trio.Event(), list[tuple[bytes, bytes] | None]()

    async def take(stream: MovingMessages) -> None:
        await go_on.wait()
        for _ in range(3):
            found.append(await receive(stream))

    async with pair(take) as both:
        stream = await both.begin()
        assert not stream.begin_message(header(0), LARGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.move)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert stream.moved
            go_on.set()
            if ends:
                await stream.send_message(header(0), LARGE)
                assert stream.begin_message(header(1), b"and on")
                await stream.send_eof()
            else:
                await stream.reset()
        await stream.aclose()
        await both.streams_end()
    assert found == ([(header(0), LARGE), (header(1), b"and on"), None] if ends else [])


async def test_a_send_cancelled_half_way_breaks_the_stream_for_both_though_it_moves() -> None:
    cancelled, lost = trio.Event(), trio.Event()
    scope = trio.CancelScope()

    async def wait(stream: MovingMessages) -> None:
        await cancelled.wait()
        with pytest.raises(PeerLost):
            await stream.receive_message(BODY_LIMIT)
        lost.set()

    async with pair(wait) as both:
        stream = await both.begin()

        async def send() -> None:
            with scope:
                await stream.send_message(header(0), LARGE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(both.move)
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()
        assert scope.cancelled_caught
        cancelled.set()
        await lost.wait()
        await stream.reset()
        await both.streams_end()


async def test_who_is_done_before_the_move_is_leaves_nothing_open() -> None:
    moved = trio.Event()

    async def look_away(stream: MovingMessages) -> None:
        await moved.wait()

    async with pair(look_away) as both:
        stream = await both.begin()
        opened: list[NativeStream] = []  # held, so that it is not collected, which would close it

        async def open_and_leave() -> NativeStream:
            opened.append(await both.open_direct())
            await stream.aclose()
            return opened[0]

        assert await both.a.move(both.peer, open_and_leave) == 1
        moved.set()
        await both.streams_end()


async def test_what_could_not_move_moves_the_next_time() -> None:
    async def refuse() -> NativeStream:
        raise PeerRefused("not now", peer=both.peer)

    async with pair(echo) as both:
        stream = await both.begin()
        await stream.send_message(header(0), b"before")
        assert await receive(stream) == (header(0), b"before")
        assert (await both.a.move(both.peer, refuse), stream.moved) == (0, False)
        assert (await both.move(), stream.moved) == (1, True)
        await stream.send_message(header(1), b"after")
        assert await receive(stream) == (header(1), b"after")
        assert both.here[0].open_streams == 0
        await stream.aclose()
        await both.streams_end()
