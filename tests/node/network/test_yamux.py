"""The muxer over a socket pair: windows are kept to, rubbish ends the connection, a silent peer is noticed."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from swarmnode.errors import PeerLost
from swarmnode.node.net.early import Sealed
from swarmnode.node.net.muxed import INITIAL_WINDOW_BYTES, MuxedStream
from swarmnode.node.net.wire import Wire
from swarmnode.node.net.yamux import MAX_STREAMS, SILENT_TICKS, TICK_SECONDS, Muxer

HEADER = struct.Struct(">BBHII")
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def plain() -> Sealed:
    """Frames as they are, but for the length and an empty tag."""
    return Sealed(lambda frame: frame + bytes(16), lambda data: data[:-16])


def frame(kind: int, flags: int, stream_id: int, value: int, body: bytes = b"") -> bytes:
    return plain().seal(HEADER.pack(0, kind, flags, stream_id, value) + body)


@asynccontextmanager
async def muxers() -> AsyncIterator[tuple[Muxer, Muxer, list[MuxedStream]]]:
    """Two ends of a connection, and the streams that the second accepts."""
    accepted: list[MuxedStream] = []
    one, other = socket.socketpair()
    ours = Muxer(Wire(one), plain(), "other", opened_by_us=True, accept=lambda stream: None)
    theirs = Muxer(Wire(other), plain(), "one", opened_by_us=False, accept=accepted.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.run)
        nursery.start_soon(theirs.run)
        yield ours, theirs, accepted
        ours.close()
        theirs.close()


@asynccontextmanager
async def muxer_and_socket() -> AsyncIterator[tuple[Muxer, trio.SocketStream, list[MuxedStream]]]:
    """One end, and the bare socket of a peer that may send anything."""
    accepted: list[MuxedStream] = []
    one, other = socket.socketpair()
    muxer = Muxer(Wire(one), plain(), "rude", opened_by_us=False, accept=accepted.append)
    async with trio.open_nursery() as nursery, trio.SocketStream(trio.socket.from_stdlib_socket(other)) as rude:
        nursery.start_soon(muxer.run)
        yield muxer, rude, accepted
        muxer.close()


async def echo(stream: MuxedStream) -> None:
    while data := await stream.receive_some(4096):
        await stream.send_all(data)
    await stream.send_eof()


async def test_bytes_arrive_in_order_whatever_the_pieces() -> None:
    rng = random.Random(1)
    payload = rng.randbytes(3_000_000)
    async with muxers() as (ours, _, accepted), trio.open_nursery() as nursery:
        stream = ours.open_stream()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(echo, accepted[0])

        async def send() -> None:
            at = 0
            while at < len(payload):
                size = rng.choice((1, 100, 65507, 65508, 300_000))
                await stream.send_all(payload[at : at + size])
                at += size
            await stream.send_eof()

        nursery.start_soon(send)
        back = bytearray()
        while piece := await stream.receive_some(rng.choice((1, 1000, 1 << 20)) if len(back) < 5000 else 1 << 20):
            back += piece
        assert bytes(back) == payload
        await stream.aclose()
        await accepted[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert ours.idle


async def test_a_sender_stops_at_the_window_and_a_reset_frees_it() -> None:
    async with muxers() as (ours, _, accepted):
        stream = ours.open_stream()
        await stream.send_all(bytes(INITIAL_WINDOW_BYTES))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.05) as scope:
            await stream.send_all(b"x")
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def lost() -> None:
                with pytest.raises(PeerLost):
                    await stream.send_all(b"x")

            nursery.start_soon(lost)
            await trio.testing.wait_all_tasks_blocked()
            await accepted[0].reset()


async def test_what_was_sent_before_closing_arrives_and_later_bytes_are_refused() -> None:
    async with muxers() as (ours, _, accepted):
        stream = ours.open_stream()
        await trio.testing.wait_all_tasks_blocked()
        await accepted[0].send_all(b"refused, and why")
        await accepted[0].aclose()
        await stream.send_all(b"too late")
        assert await stream.receive_some(100) == b"refused, and why"
        assert await stream.receive_some(100) == b""
        await stream.aclose()
        with pytest.raises(PeerLost):
            await stream.send_all(b"x")


async def test_a_stream_the_other_end_never_closes_is_reset_after_a_while(autojump_clock: MockClock) -> None:
    async with muxer_and_socket() as (muxer, rude, accepted):
        await rude.send_all(frame(WINDOW_UPDATE, SYN, 1, 0))
        await trio.testing.wait_all_tasks_blocked()
        await accepted[0].aclose()
        for _ in range(8):
            await rude.send_all(frame(PING, ACK, 0, 0))  # it lives
            await trio.sleep(1)
        assert muxer.idle
        assert not muxer.closed


async def test_a_peer_silent_while_a_stream_is_open_is_lost(autojump_clock: MockClock) -> None:
    async with muxer_and_socket() as (muxer, _, _):
        await trio.sleep(1000)
        assert not muxer.closed
        stream = muxer.open_stream()
        start = trio.current_time()
        with pytest.raises(PeerLost):
            await stream.receive_some(1)
        assert trio.current_time() - start <= (SILENT_TICKS + 1) * TICK_SECONDS


async def test_more_streams_than_allowed_are_reset_and_the_others_live() -> None:
    async with muxer_and_socket() as (muxer, rude, accepted):
        for number in range(MAX_STREAMS + 10):
            await rude.send_all(frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0))
            await trio.testing.wait_all_tasks_blocked()
        assert len(accepted) == MAX_STREAMS
        assert not muxer.closed


@pytest.mark.parametrize(
    "rubbish",
    [
        HEADER.pack(1, DATA, 0, 0, 0),
        HEADER.pack(0, 9, 0, 0, 0),
        HEADER.pack(0, WINDOW_UPDATE, SYN, 2, 0),
        HEADER.pack(0, WINDOW_UPDATE, SYN, 0, 0),
        HEADER.pack(0, DATA, SYN, 1, INITIAL_WINDOW_BYTES + 1),
        HEADER.pack(0, DATA, 0, 7, 0xFFFFFFFF),
        HEADER.pack(0, GO_AWAY, 0, 0, 0),
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection(rubbish: bytes) -> None:
    async with muxer_and_socket() as (muxer, rude, _):
        stream = muxer.open_stream()
        await rude.send_all(plain().seal(rubbish))
        with pytest.raises(PeerLost):
            await stream.receive_some(1)
        assert muxer.closed


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=400), max_size=12))
def test_no_bytes_raise_anything(chunks: list[bytes]) -> None:
    async def main() -> None:
        async with muxer_and_socket() as (muxer, rude, _):
            try:
                for chunk in chunks:
                    await rude.send_all(plain().seal(chunk))
                await rude.send_all(b"\xff" * 70_000)
                await rude.send_eof()
            except trio.BrokenResourceError:
                pass
            await muxer.ended.wait()

    trio.run(main)
