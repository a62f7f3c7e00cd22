"""Streams that move from a relayed connection to a direct one while they are in use, unnoticed by their owners.

Protocol `/swarmnode/moving/1`: the opener sends a token and the name of the protocol meant; from there on the stream is
as if opened for that. When a direct connection stands, the opener opens a stream of this protocol there and sends the
token with an empty name; the other side says yes with one byte. Each side then ends its direction of the old stream and
sends on over the new one, and who reads to the old stream's end reads on there. So no byte is lost, doubled or
overtaken, and nothing of what flows has to be understood. Knows no libp2p.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable

import trio

from swarmnode.errors import PeerFault, PeerLost, PeerRefused, ProtocolViolation
from swarmnode.node.links import Link

from .answer import answer
from .network import Stream, StreamHandler

__all__ = ["MOVING", "Movers", "MovingStream"]

MOVING = "/swarmnode/moving/1"
TOKEN_BYTES = 16
GREET_SECONDS = 10.0
"""A stream that has not said by then what it is for is dropped."""
MOVE_SECONDS = 5.0
"""The other side has agreed to a move by then, or the stream stays where it is."""
_YES = b"\x01"

_log = logging.getLogger("swarmnode.nat")


class MovingStream:
    """One stream to its owner, underneath first one and then another; a `Stream`."""

    def __init__(self, stream: Stream, token: bytes, forget: Callable[[MovingStream], None]) -> None:
        self.token = token
        self.over = trio.Event()
        self._peer = stream.peer
        self._forget = forget
        self._writer = self._reader = stream
        self._next: Stream | None = None
        self._settled: trio.Event | None = None
        self._finished = False
        self._sending = trio.Lock()

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def link(self) -> Link:
        return self._writer.link

    @property
    def moved(self) -> bool:
        """Whether it has left, or is leaving, the stream it began on."""
        return self._settled is not None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._sending:
            await self._writer.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        data = await self._reader.receive_some(max_bytes)
        while not data and await self._turn():
            data = await self._reader.receive_some(max_bytes)
        return data

    async def send_eof(self) -> None:
        async with self._sending:
            self._finished = True
            await self._writer.send_eof()

    async def aclose(self) -> None:
        self._end()
        for stream in self._streams():
            await stream.aclose()

    async def reset(self) -> None:
        self._end()
        for stream in self._streams():
            await stream.reset()

    # What moves it.

    def prepare(self) -> None:
        """A move is asked for: an end of the old stream is not the end until it is settled."""
        self._settled = trio.Event()

    async def settle(self, stream: Stream | None) -> None:
        """Go on over another stream, or, with None, stay. Raises `PeerLost`."""
        assert self._settled is not None, "prepared first"
        self._next = stream
        self._settled.set()
        if stream is None:
            return
        async with self._sending:  # never in the midst of what the owner sends
            old, self._writer = self._writer, stream
            if self._finished:
                await stream.send_eof()
            else:
                await old.send_eof()
        if self._reader is stream:
            await old.aclose()

    async def _turn(self) -> bool:
        """At the end of what comes: whether it was the old stream's end only."""
        if self._settled is not None:
            await self._settled.wait()
        if self._next is None or self._reader is self._next:
            return False
        old, self._reader = self._reader, self._next
        if self._writer is not old:
            await old.aclose()
        return True

    def _streams(self) -> list[Stream]:
        return list({id(each): each for each in (self._reader, self._writer, self._next or self._writer)}.values())

    def _end(self) -> None:
        self.over.set()
        self._forget(self)


class Movers:
    """All moving streams of one node.

    Args:
        handler_of: who answers a protocol that is named; None where it may not be.
    """

    def __init__(self, handler_of: Callable[[str], StreamHandler | None]) -> None:
        self._handler_of = handler_of
        self._ours: dict[str, set[MovingStream]] = {}
        self._theirs: dict[tuple[str, bytes], MovingStream] = {}

    async def begin(self, stream: Stream, protocol: str) -> MovingStream:
        """What a fresh stream of `MOVING` to a peer becomes. Raises `PeerLost`."""
        name = protocol.encode()
        moving = MovingStream(stream, secrets.token_bytes(TOKEN_BYTES), self._forget_ours)
        self._ours.setdefault(stream.peer, set()).add(moving)
        try:
            await stream.send_all(moving.token + bytes([len(name)]) + name)
        except BaseException:
            self._forget_ours(moving)
            raise
        return moving

    async def move(self, peer: str, open_direct: Callable[[], Awaitable[Stream]]) -> int:
        """Move what we opened to a peer; how many streams went.

        Args:
            open_direct: a fresh stream of `MOVING` to the peer over a direct connection. Raises `PeerFault`.
        """
        went = 0
        for moving in [each for each in self._ours.get(peer, ()) if not each.moved]:
            moving.prepare()
            agreed: Stream | None = None
            try:
                with trio.move_on_after(MOVE_SECONDS):
                    agreed = await _agree(moving.token, await open_direct())
            except PeerFault as fault:
                _log.debug("a stream to %s stays where it is: %s", peer, fault.message)
            try:
                await moving.settle(agreed)
            except PeerFault as fault:
                _log.debug("a stream to %s was lost while it moved: %s", peer, fault.message)
            went += agreed is not None
        return went

    async def answer(self, stream: Stream) -> None:
        """Answer `MOVING`: a `StreamHandler`."""
        with trio.move_on_after(GREET_SECONDS) as scope:
            token = await _exactly(stream, TOKEN_BYTES)
            size = (await _exactly(stream, 1))[0]
            name = (await _exactly(stream, size)) if size else b""
        if scope.cancelled_caught:
            raise PeerLost(f"{stream.peer} opened a stream and said nothing.", peer=stream.peer)
        if name:
            await self._welcome(stream, token, name)
        else:
            await self._take_over(stream, token)

    async def _welcome(self, stream: Stream, token: bytes, name: bytes) -> None:
        protocol = name.decode("ascii", "replace")
        handler = self._handler_of(protocol)
        if handler is None:
            raise PeerRefused(f"{stream.peer} wants {protocol!r}, which is not spoken here.", peer=stream.peer)
        key = (stream.peer, token)
        if key in self._theirs:
            raise ProtocolViolation(f"{stream.peer} uses a token twice.", peer=stream.peer)
        moving = self._theirs[key] = MovingStream(stream, token, self._forget_theirs)
        try:
            await answer(protocol, handler, moving)
        finally:
            self._forget_theirs(moving)

    async def _take_over(self, stream: Stream, token: bytes) -> None:
        moving = self._theirs.get((stream.peer, token))
        if moving is None or moving.moved:
            raise PeerRefused(f"{stream.peer} wants to move a stream that is not there.", peer=stream.peer)
        moving.prepare()
        await stream.send_all(_YES)
        await moving.settle(stream)
        await moving.over.wait()

    def _forget_ours(self, moving: MovingStream) -> None:
        streams = self._ours.get(moving.peer, set())
        streams.discard(moving)
        if not streams:
            self._ours.pop(moving.peer, None)

    def _forget_theirs(self, moving: MovingStream) -> None:
        self._theirs.pop((moving.peer, moving.token), None)


async def _agree(token: bytes, stream: Stream) -> Stream | None:
    """Ask the other side to go on over this stream; the stream once it said yes."""
    try:
        await stream.send_all(token + b"\x00")
        if await stream.receive_some(1) == _YES:
            return stream
    except BaseException:
        with trio.CancelScope(shield=True):
            await stream.reset()
        raise
    await stream.reset()
    return None


async def _exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise PeerLost(f"{stream.peer} ended the stream before it said what it is for.", peer=stream.peer)
        data += piece
    return data
