"""A stream as a wire: what Noise and yamux run on when a relay is between. Knows neither relays nor libp2p."""

from __future__ import annotations

from collections import deque

import trio

from swarmnode.errors import PeerLost
from swarmnode.node.net.network import Stream
from swarmnode.node.net.wire import MAX_BACKLOG_BYTES, MAX_REPLIES_BYTES, RECEIVE_BYTES, Wire, WireLost

__all__ = ["StreamWire"]

LAST_WORDS_SECONDS = 0.5
"""To tell the other end that a close is meant."""


class StreamWire(Wire):
    """As `Wire`, over a stream instead of a socket. Whoever makes one runs `hold`, which writes and ends the stream.

    Attributes:
        relay: who carries the stream.
        ended: set once the wire is closed.
    """

    def __init__(self, stream: Stream, relay: str) -> None:
        # Nothing of a socket's wire is set up: every method is this class's own.
        self.relay = relay
        self.ended = trio.Event()
        self._stream = stream
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._more = trio.Event()
        self._space = trio.Event()
        self._holding = trio.CancelScope()

    @property
    def closed(self) -> bool:
        return self.ended.is_set()

    @property
    def remote_address(self) -> tuple[str, int] | None:
        return None  # the relay's would mislead

    @property
    def near(self) -> bool:
        return False

    @property
    def congested(self) -> bool:
        return self._waiting_bytes > MAX_BACKLOG_BYTES

    def write(self, data: bytes) -> None:
        if self.closed:
            raise WireLost("the connection is closed")
        self._pieces.append(data)
        self._waiting_bytes += len(data)
        self._more.set()
        if self._waiting_bytes > MAX_REPLIES_BYTES:
            self.close()
            raise WireLost("the other end does not read its answers")

    async def hold(self) -> None:
        """Write what is to be written until the wire is closed, then end the stream. Raises nothing."""
        finished = False
        try:
            with self._holding:
                while self._pieces or not self.closed:
                    if not self._pieces:
                        self._more = trio.Event()
                        await self._more.wait()
                        continue
                    pieces, self._pieces = self._pieces, deque()
                    data = b"".join(pieces)
                    await self._stream.send_all(data)
                    self._waiting_bytes -= len(data)
                    if not self.congested:
                        self._space.set()
                await self._stream.send_eof()
                finished = True
        except PeerLost:
            pass  # the other end, or the relay, went first
        finally:
            self.close()
            with trio.CancelScope(shield=True):
                await (self._stream.aclose() if finished else self._stream.reset())

    async def flush_for_ever(self) -> None:
        await self.ended.wait()
        raise WireLost("the connection is closed")

    async def room(self) -> None:
        while self.congested and not self.closed:
            if self._space.is_set():
                self._space = trio.Event()
            await self._space.wait()
        if self.closed:
            raise WireLost("the connection is closed")

    async def receive(self) -> bytes:
        if self.closed:
            raise WireLost("the connection is closed")
        try:
            return await self._stream.receive_some(RECEIVE_BYTES)
        except PeerLost as lost:
            self.close()
            raise WireLost(lost.message) from lost

    def close(self) -> None:
        """End the wire at once; what was written before may still go out for a moment."""
        if self.closed:
            return
        self.ended.set()
        self._holding.deadline = trio.current_time() + LAST_WORDS_SECONDS
        self._more.set()
        self._space.set()
