"""Session messages over a stream: one task reads them, one task writes what has to wait. Knows no session."""

from __future__ import annotations

import time

import trio
from typing_extensions import Buffer

from swarmnode.errors import PeerLost, ProtocolViolation
from swarmnode.protocols.frames import FrameReader, open_frame
from swarmnode.protocols.messages import Message, Ping, encode, pack_header, parse

from .defaults import OUTBOX_FRAMES, RECEIVE_BYTES, STEP_BODY_BYTES
from .links import Link, LinkMeter
from .net.network import EagerMessages, Stream, WholeMessages

__all__ = ["MessageStream", "Silence"]

JOIN_BYTES = 64 * 1024
"""Up to this size a frame is copied into one buffer: one packet instead of two is worth more than the copy."""

PIECE_BYTES = 256 * 1024
"""A long body is written in pieces, so that a slow link with much to carry is not taken for a dead one."""

MAX_PINGS = 8
"""Pings without an answer that are remembered; a peer that owes more is about to be given up."""


class MessageStream:
    """Messages both ways over one stream.

    Whoever reads must never wait for a write: peers that both do so block each other. So messages are posted: they
    leave at once where the transport has room, and what has to wait goes to a bounded outbox, which `run_writer`, in a
    task of its own, writes out.

    Attributes:
        broken: a message is or was left half written: nothing can be written any more.
    """

    def __init__(self, stream: Stream, *, max_body_bytes: int = STEP_BODY_BYTES) -> None:
        self._signs = 0
        self._stream = stream
        self._whole = stream if isinstance(stream, WholeMessages) else None
        self._eager = stream if isinstance(stream, EagerMessages) else None
        self._max_body_bytes = max_body_bytes
        self._reader = FrameReader(max_body_bytes)
        self._meter = LinkMeter()
        self._known = stream.link
        self._pings: dict[int, float] = {}
        self._next_ping = 0
        self._post, self._posted = trio.open_memory_channel[tuple[Message, Buffer]](OUTBOX_FRAMES)
        self._waiting = 0
        self._finished = False
        self.broken = False

    @property
    def peer(self) -> str:
        return self._stream.peer

    @property
    def signs(self) -> int:
        """Counts signs of life: bytes that came, and pieces of a long message that were taken.

        A peer is silent while it does not change.
        """
        return self._signs if self._whole is None else self._whole.moved_bytes

    @property
    def link(self) -> Link:
        """What is known of the way to the peer, as of the last ping. May be read from any thread."""
        return self._meter.link(self._known)

    def ping(self) -> None:
        """Ask for a sign of life, if there is room to. Raises `PeerLost`."""
        if len(self._pings) >= MAX_PINGS:
            self._pings.clear()
        self._pings[self._next_ping] = time.perf_counter()
        self.post_soon(Ping(self._next_ping))
        self._next_ping += 1

    def answered(self, nonce: int) -> None:
        """A pong came. One that nobody asked for says nothing."""
        asked = self._pings.pop(nonce, None)
        if asked is not None:
            self._meter.answered(time.perf_counter() - asked)
            self._known = self._stream.link

    async def receive(self) -> tuple[Message, memoryview] | None:
        """The next message and its body; None once the peer has finished.

        Raises:
            PeerLost: the stream broke, also in the middle of a message.
            ProtocolViolation: what came is no message; `peer` says whose.
        """
        try:
            if self._whole is not None:
                return await self._receive_whole(self._whole)
            while (frame := self._reader.next_frame()) is None:
                data = await self._stream.receive_some(RECEIVE_BYTES)
                if not data:
                    if self._reader.in_frame:
                        raise PeerLost(f"Peer {self.peer} ended in the middle of a message.", peer=self.peer)
                    return None
                self._signs += 1
                self._reader.feed(data)
            return parse(frame), frame.body
        except ProtocolViolation as violation:
            raise ProtocolViolation(
                f"Peer {self.peer} broke the protocol: {violation.message}", hint=violation.hint, peer=self.peer
            ) from None

    async def expect(self) -> tuple[Message, memoryview]:
        """As `receive`, when the peer must not finish yet."""
        message = await self.receive()
        if message is None:
            raise PeerLost(f"Peer {self.peer} closed the stream.", peer=self.peer)
        return message

    async def send(self, message: Message, body: Buffer = b"") -> None:
        """Write a message now. Only while no writer runs. Raises `PeerLost`."""
        if self._whole is not None:
            await self._send_whole(self._whole, message, body)
            return
        head, rest = encode(message, body)
        self.broken = True  # until all of it is out
        if rest.nbytes <= JOIN_BYTES:
            await self._stream.send_all(head + rest)
        else:
            begun = time.perf_counter()
            await self._stream.send_all(head)
            for start in range(0, rest.nbytes, PIECE_BYTES):
                await self._stream.send_all(rest[start : start + PIECE_BYTES])
                self._signs += 1
            self._meter.sent(rest.nbytes, time.perf_counter() - begun)
        self.broken = False

    async def post(self, message: Message, body: Buffer = b"") -> None:
        """Send a message, waiting for room in the outbox. Raises `PeerLost` once nothing can be written any more."""
        if self._leaves_at_once(message, body):
            await trio.lowlevel.checkpoint()
            return
        self._waiting += 1  # whatever is posted from now on goes behind it
        try:
            await self._post.send((message, body))
        except BaseException as error:
            self._waiting -= 1
            if isinstance(error, (trio.BrokenResourceError, trio.ClosedResourceError)):
                raise self._gone() from None
            raise

    def post_soon(self, message: Message, body: Buffer = b"") -> bool:
        """Send a message if there is room at once; whether there was. Raises as `post`."""
        if self._leaves_at_once(message, body):
            return True
        try:
            self._post.send_nowait((message, body))
        except trio.WouldBlock:
            return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._gone() from None
        self._waiting += 1
        return True

    def finish(self) -> None:
        """Nothing more will be posted: the writer ends after what is waiting."""
        self._finished = True
        self._post.close()

    async def run_writer(self) -> None:
        """Write what waits until `finish`. Raises `PeerLost`."""
        with self._posted:
            async for message, body in self._posted:
                await self.send(message, body)
                self._waiting -= 1

    def _leaves_at_once(self, message: Message, body: Buffer) -> bool:
        """Send a message when nothing is before it; whether all of it went. The writer goes on with what did not."""
        if self._eager is None or self._waiting or self.broken or self._finished:
            return False
        header = pack_header(message, memoryview(body).nbytes)
        self.broken = True
        self.broken = not self._eager.begin_message(header, body)
        return not self.broken

    async def close(self) -> None:
        """Close the stream politely when no message is half written, else reset it. Never raises."""
        self.finish()
        if self.broken:
            await self._stream.reset()
        else:
            await self._stream.aclose()

    async def reset(self) -> None:
        """Drop the stream. Never raises."""
        self.finish()
        await self._stream.reset()

    async def _receive_whole(self, stream: WholeMessages) -> tuple[Message, memoryview] | None:
        parts = await stream.receive_message(self._max_body_bytes)
        if parts is None:
            return None
        frame = open_frame(*parts)
        return parse(frame), frame.body

    async def _send_whole(self, stream: WholeMessages, message: Message, body: Buffer) -> None:
        size = memoryview(body).nbytes
        header = pack_header(message, size)
        begun = time.perf_counter()
        self.broken = True
        await stream.send_message(header, body)
        self.broken = False
        self._meter.sent(size, time.perf_counter() - begun)

    def _gone(self) -> PeerLost:
        return PeerLost(f"The stream to {self.peer} is closed.", peer=self.peer)


class Silence:
    """Counts checks in a row between which a stream showed no sign of life.

    Checks are counted and not seconds, so that a pause of our own event loop is not taken for the peer's silence.
    """

    def __init__(self, stream: MessageStream, patience: int) -> None:
        self._stream = stream
        self._patience = patience
        self._signs = stream.signs
        self._quiet = 0

    def check(self) -> bool:
        """Whether the peer has now been silent for too many checks."""
        if self._stream.signs != self._signs:
            self._signs = self._stream.signs
            self._quiet = 0
        else:
            self._quiet += 1
        return self._quiet >= self._patience
