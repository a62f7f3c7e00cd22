"""One stream of a multiplexed connection: its two windows, its buffer and its ends. Knows no frames, no libp2p."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Protocol

import trio

from swarmnode.errors import PeerLost
from swarmnode.node.links import Link

from .wire import WireLost

__all__ = ["INITIAL_WINDOW_BYTES", "MAX_WINDOW_BYTES", "MuxedStream"]

INITIAL_WINDOW_BYTES = 256 * 1024
"""What either end may send before the other has read anything (yamux specification)."""
MAX_WINDOW_BYTES = 8 * 1024 * 1024
"""How far the window of a stream grows whose reader keeps up."""
MAX_PIECE_BYTES = 65519 - 12
"""The body of a data frame: with its header it fits one Noise message."""
LINGER_TICKS = 5
"""How long a stream that we have closed waits for the other end to close it too, before it is reset."""


class _Connection(Protocol):
    """What a stream asks of its connection; all raise `WireLost` when it is gone."""

    @property
    def peer(self) -> str: ...
    @property
    def link(self) -> Link: ...
    @property
    def sluggish(self) -> bool: ...
    @property
    def congested(self) -> bool: ...
    def send_data(self, stream_id: int, piece: memoryview) -> None: ...
    def send_window(self, stream_id: int, more_bytes: int) -> None: ...
    def send_fin(self, stream_id: int) -> None: ...
    def send_reset(self, stream_id: int) -> None: ...
    async def room(self) -> None: ...
    def taken(self, read_bytes: int) -> None: ...
    def forget(self, stream: MuxedStream) -> None: ...


class MuxedStream:
    """A `swarmnode.node.net.network.Stream` over a shared connection.

    Frames are handed over whole, so cancelling a sender or a reader leaves the connection in order.
    """

    def __init__(self, connection: _Connection, stream_id: int) -> None:
        self.stream_id = stream_id
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._window_bytes = INITIAL_WINDOW_BYTES  # the target for what the other end may have under way
        self._credit_bytes = INITIAL_WINDOW_BYTES  # what it may still send now
        self._may_send_bytes = INITIAL_WINDOW_BYTES
        self._lost = False
        self._closed = False
        self._fin_sent = False
        self._fin_received = False
        self._linger_ticks = 0
        self._readable = trio.Event()
        self._sendable = trio.Event()

    @property
    def peer(self) -> str:
        return self._connection.peer

    @property
    def link(self) -> Link:
        return self._connection.link

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        await trio.lowlevel.checkpoint()
        while view:
            if self._lost or self._closed or self._fin_sent:
                raise self._gone()
            if self._may_send_bytes == 0:
                self._sendable = trio.Event()
                await self._sendable.wait()
                continue
            try:
                if self._connection.congested:
                    await self._connection.room()
                    continue
                piece = view[: min(self._may_send_bytes, MAX_PIECE_BYTES)]
                self._connection.send_data(self.stream_id, piece)
            except WireLost:
                raise self._gone() from None
            self._may_send_bytes -= len(piece)
            view = view[len(piece) :]
            if view:
                await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._pieces:
            if self._lost or self._closed:
                raise self._gone()
            if self._fin_received:
                return b""
            self._readable = trio.Event()
            await self._readable.wait()
        piece = self._pieces.popleft()
        if len(piece) > max_bytes:
            self._pieces.appendleft(piece[max_bytes:])
            piece = piece[:max_bytes]
        self._taken(len(piece))
        return piece

    def unread(self, piece: bytes) -> None:
        """Put back what was read too much."""
        if piece:
            self._pieces.appendleft(piece)
            self._buffered_bytes += len(piece)
            self._connection.taken(-len(piece))

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._lost or self._closed:
            raise self._gone()
        try:
            self._finish()
        except WireLost:
            raise self._gone() from None

    async def aclose(self) -> None:
        if not self._closed and not self._lost:
            self._closed = True
            with suppress(WireLost):
                self._finish()
            self._drop_buffer()
            self._wake()
            if self._fin_received:
                self._connection.forget(self)
        self._closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        self.drop()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def drop(self) -> None:
        """Reset without waiting."""
        if not self._lost:
            self.on_lost()
            with suppress(WireLost):
                self._connection.send_reset(self.stream_id)
            self._connection.forget(self)

    # What the connection calls.

    def charge(self, size: int) -> bool:
        """Take the announced bytes off the other end's window; False when it has not got that much."""
        self._credit_bytes -= size
        return self._credit_bytes >= 0

    def on_data(self, piece: bytes) -> None:
        """Bytes have come. After our close they are dropped without giving credit, until the other end notices."""
        if self._closed or self._lost:
            self._connection.taken(len(piece))
            return
        self._pieces.append(piece)
        self._buffered_bytes += len(piece)
        self._readable.set()

    def on_window(self, more_bytes: int) -> None:
        self._may_send_bytes += more_bytes
        self._sendable.set()

    def on_fin(self) -> None:
        self._fin_received = True
        self._readable.set()
        if self._closed:
            self._connection.forget(self)

    def on_lost(self) -> None:
        self._lost = True
        self._drop_buffer()
        self._wake()

    def tick(self) -> None:
        """A second has passed: give up waiting for the other end of a stream that we have closed."""
        if self._closed:
            self._linger_ticks += 1
            if self._linger_ticks >= LINGER_TICKS:
                self.drop()

    def _finish(self) -> None:
        if not self._fin_sent:
            self._fin_sent = True
            self._connection.send_fin(self.stream_id)

    def _taken(self, size: int) -> None:
        """Account for bytes read; give window back once that is worth a frame."""
        self._buffered_bytes -= size
        self._connection.taken(size)
        if self._fin_received or self._lost:
            return
        more = self._window_bytes - self._credit_bytes - self._buffered_bytes
        if more * 2 < self._window_bytes:
            return
        if not self._pieces and not self._connection.sluggish and self._window_bytes < MAX_WINDOW_BYTES:
            more += self._window_bytes  # the reader keeps up: twice the window for the next round
            self._window_bytes *= 2
        self._credit_bytes += more
        try:
            self._connection.send_window(self.stream_id, more)
        except WireLost:
            self._lost = True

    def _drop_buffer(self) -> None:
        self._connection.taken(self._buffered_bytes)
        self._buffered_bytes = 0
        self._pieces.clear()

    def _wake(self) -> None:
        self._readable.set()
        self._sendable.set()

    def _gone(self) -> PeerLost:
        return PeerLost(f"The stream to {self.peer} is gone.", peer=self.peer)
