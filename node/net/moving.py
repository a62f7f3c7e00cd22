"""Streams that move from a relayed connection to a direct one while they are in use, unnoticed by their owners.

Protocol `/swarmnode/moving/1`: the opener sends a token and the name of the protocol meant; from there on the stream is
as if opened for that. When a direct connection stands, the opener opens a stream of this protocol there and sends the
token with an empty name; the other side says yes with one byte. Each side then ends its direction of the old stream,
behind the message that it is sending, and sends on over the new one, and who reads to the old stream's end reads on
there. So nothing is lost, doubled, cut or overtaken, and nothing of what flows has to be understood. Knows no libp2p.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import trio
from typing_extensions import Buffer

from swarmnode.errors import PeerFault, PeerLost, PeerRefused, ProtocolViolation
from swarmnode.node.links import Link

from .answer import answer
from .network import EagerMessages, Stream, StreamHandler

__all__ = ["MOVING", "Movers", "MovingMessages", "MovingStream"]

MOVING = "/swarmnode/moving/1"
TOKEN_BYTES = 16
GREET_SECONDS = 10.0
"""A stream that has not said by then what it is for is dropped."""
MOVE_SECONDS = 5.0
"""The other side has agreed to a move by then, or the stream stays where it is."""
ARRIVE_SECONDS = 2.0
"""A move is asked for over another connection than the stream began on, and may overtake its beginning by so much."""
_YES = b"\x01"

_log = logging.getLogger("swarmnode.nat")


class WholeStream(Stream, EagerMessages, Protocol):
    """A stream that carries bytes and whole messages."""


_S = TypeVar("_S", bound=Stream)


class MovingStream(Generic[_S]):
    """One stream to its owner, underneath first one and then another; a `Stream`."""

    def __init__(self, stream: _S, token: bytes, forget: Callable[[MovingStream[_S]], None]) -> None:
        self.token = token
        self.over = trio.Event()
        self._peer = stream.peer
        self._forget = forget
        self._first = self._writer = self._reader = stream
        self._next: _S | None = None
        self._settled: trio.Event | None = None
        self._finished = False
        self._sending = False
        self._switched = trio.Event()
        self._ends = stream  # whose end is to be said once the writer has been switched
        self._left = False  # it has been said

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
        with self._sends():
            await self._writer.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        data = await self._reader.receive_some(max_bytes)
        while not data and await self._turn():
            data = await self._reader.receive_some(max_bytes)
        return data

    async def send_eof(self) -> None:
        with self._sends():
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

    async def settle(self, stream: _S | None) -> None:
        """Go on over another stream, or, with None, stay. Raises `PeerLost`."""
        assert self._settled is not None, "prepared first"
        self._next = stream
        self._settled.set()
        if stream is None:
            self._settled = None
            return
        if self.over.is_set():  # its owner was done with it meanwhile
            await stream.reset()
            return
        if not self._sending:
            self._switch(stream)
        await self._switched.wait()
        if self.over.is_set():  # and with it both streams
            return
        await self._ends.send_eof()
        self._left = True
        if self._reader is stream:
            await self._first.aclose()

    @contextmanager
    def _sends(self) -> Iterator[None]:
        """The owner sends in this block: the writer is switched behind it, never in its midst."""
        self._sending = True
        try:
            yield
        finally:
            self._sending = False
            if self._next is not None and self._writer is not self._next:
                self._switch(self._next)

    def _switch(self, stream: _S) -> None:
        self._writer = stream
        self._ends = stream if self._finished else self._first
        self._switched.set()

    async def _turn(self) -> bool:
        """At the end of what comes: whether it was the old stream's end only."""
        if self._settled is not None:
            await self._settled.wait()
        if self._next is None or self._reader is self._next:
            return False
        self._reader = self._next
        if self._left:
            await self._first.aclose()
        return True

    def _streams(self) -> list[_S]:
        return [self._first] if self._next is None else [self._first, self._next]

    def _end(self) -> None:
        self.over.set()
        self._switched.set()  # nobody will end what is half out
        self._forget(self)


class MovingMessages(MovingStream[WholeStream]):
    """The same over streams that carry whole messages; it moves between two of them."""

    @property
    def moved_bytes(self) -> int:
        """Bytes that have come and gone over either stream so far."""
        return self._first.moved_bytes + (self._next.moved_bytes if self._next is not None else 0)

    def begin_message(self, header: bytes, body: Buffer = b"") -> bool:
        """As `EagerMessages.begin_message`."""
        self._sending = not self._writer.begin_message(header, body)  # `send_message` ends it on the same stream
        return not self._sending

    async def send_message(self, header: bytes, body: Buffer = b"") -> None:
        """As `WholeMessages.send_message`."""
        with self._sends():
            await self._writer.send_message(header, body)

    async def receive_message(self, max_body_bytes: int) -> tuple[bytes, memoryview] | None:
        """As `WholeMessages.receive_message`."""
        message = await self._reader.receive_message(max_body_bytes)
        while message is None and await self._turn():
            message = await self._reader.receive_message(max_body_bytes)
        return message


class Movers:
    """All moving streams of one node.

    Args:
        handler_of: who answers a protocol that is named; None where it may not be.
    """

    def __init__(self, handler_of: Callable[[str], StreamHandler | None]) -> None:
        self._handler_of = handler_of
        self._ours: dict[str, set[MovingStream[Any]]] = {}
        self._theirs: dict[tuple[str, bytes], MovingStream[Any]] = {}
        self._arrived = trio.Event()

    async def begin(self, stream: Stream, protocol: str) -> MovingStream[Any]:
        """What a fresh stream of `MOVING` to a peer becomes. Raises `PeerLost`."""
        name = protocol.encode()
        moving = _moving(stream, secrets.token_bytes(TOKEN_BYTES), self._forget_ours)
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

        async def bring(moving: MovingStream[Any]) -> None:
            nonlocal went
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

        async with trio.open_nursery() as nursery:  # one that is in the midst of a long message holds up no other
            for moving in [each for each in self._ours.get(peer, ()) if not each.moved]:
                nursery.start_soon(bring, moving)
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
        moving = self._theirs[key] = _moving(stream, token, self._forget_theirs)
        self._arrived.set()
        self._arrived = trio.Event()
        try:
            await answer(protocol, handler, moving)
        finally:
            self._forget_theirs(moving)

    async def _take_over(self, stream: Stream, token: bytes) -> None:
        key = (stream.peer, token)
        with trio.move_on_after(ARRIVE_SECONDS):
            while key not in self._theirs:
                await self._arrived.wait()
        moving = self._theirs.get(key)
        if moving is None or moving.moved:
            raise PeerRefused(f"{stream.peer} wants to move a stream that is not there.", peer=stream.peer)
        moving.prepare()
        await stream.send_all(_YES)
        await moving.settle(stream)
        await moving.over.wait()

    def _forget_ours(self, moving: MovingStream[Any]) -> None:
        streams = self._ours.get(moving.peer, set())
        streams.discard(moving)
        if not streams:
            self._ours.pop(moving.peer, None)

    def _forget_theirs(self, moving: MovingStream[Any]) -> None:
        self._theirs.pop((moving.peer, moving.token), None)


def _moving(stream: Stream, token: bytes, forget: Callable[[MovingStream[Any]], None]) -> MovingStream[Any]:
    """What fits the streams of a network, which are all of one kind."""
    kind: type[MovingStream[Any]] = MovingMessages if isinstance(stream, EagerMessages) else MovingStream
    return kind(stream, token, forget)


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
