"""Streams between two peers inside one process: bounded, half-closable, resettable, as late as one likes.

`memory.py` builds its network from them; `host.py` uses them when a node talks to itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from swarmnode.errors import PeerLost
from swarmnode.node.links import Link

__all__ = ["PIPE_BYTES", "PipeStream", "open_pipe"]

PIPE_BYTES = 256 * 1024
"""How much one direction holds before its sender has to wait, as a yamux stream's first window."""


class _Way:
    """One direction of a pipe."""

    def __init__(self, delay_seconds: Callable[[], float | None]) -> None:
        self.delay_seconds = delay_seconds
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self.finished = False
        self.broken = False
        self._changed = trio.Event()

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()
        self._changed = trio.Event()

    def end(self, *, broken: bool) -> None:
        self.finished = True
        if broken:
            self.broken = True
            self._chunks.clear()
            self._held_bytes = 0
        self.wake()

    async def send(self, data: memoryview, lost: Callable[[], PeerLost]) -> None:
        await trio.lowlevel.checkpoint()
        while data:
            if self.finished:
                raise lost()
            room = PIPE_BYTES - self._held_bytes
            delay = self.delay_seconds()
            if room <= 0 or delay is None:
                await self._changed.wait()
                continue
            piece = bytes(data[:room])
            data = data[len(piece) :]
            self._held_bytes += len(piece)
            self._chunks.append((trio.current_time() + delay, piece))
            self.wake()

    async def receive(self, max_bytes: int, lost: Callable[[], PeerLost]) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self.broken:
                raise lost()
            if self._chunks and self.delay_seconds() is not None:
                ready_at, piece = self._chunks[0]
                if ready_at > trio.current_time():
                    with trio.move_on_at(ready_at):
                        await self._changed.wait()
                    continue
                self._chunks.popleft()
                if len(piece) > max_bytes:
                    self._chunks.appendleft((ready_at, piece[max_bytes:]))
                    piece = piece[:max_bytes]
                self._held_bytes -= len(piece)
                self.wake()
                return piece
            if self.finished and not self._chunks:
                return b""
            await self._changed.wait()


class PipeStream:
    """One end of a pipe; a `swarmnode.node.net.network.Stream`."""

    def __init__(self, peer: str, incoming: _Way, outgoing: _Way, forget: Callable[[PipeStream], None]) -> None:
        self._peer = peer
        self._incoming = incoming
        self._outgoing = outgoing
        self._forget = forget
        self._closed = False

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def link(self) -> Link:
        """Near, unless the network has been told to be slow."""
        return Link(near=not self._outgoing.delay_seconds())

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            raise self._lost()
        await self._outgoing.send(memoryview(data).cast("B"), self._lost)

    async def receive_some(self, max_bytes: int) -> bytes:
        if self._closed:
            raise self._lost()
        return await self._incoming.receive(max_bytes, self._lost)

    async def send_eof(self) -> None:
        if self._closed or self._outgoing.broken:
            raise self._lost()
        self._outgoing.end(broken=False)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._outgoing.end(broken=self._outgoing.broken)
            self._incoming.end(broken=True)
            self._forget(self)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        self.drop()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def drop(self) -> None:
        """Reset without waiting."""
        self._closed = True
        self._outgoing.end(broken=True)
        self._incoming.end(broken=True)
        self._forget(self)

    def wake(self) -> None:
        """Let the tasks on this end look again after the delay between the peers has changed."""
        self._incoming.wake()
        self._outgoing.wake()

    def _lost(self) -> PeerLost:
        return PeerLost(f"The stream to {self._peer} is gone.", peer=self._peer)


def _nothing(_: PipeStream) -> None:
    pass


def open_pipe(
    ours: str,
    theirs: str,
    *,
    delay_seconds: Callable[[], float | None] = lambda: 0.0,
    forget: Callable[[PipeStream], None] = _nothing,
) -> tuple[PipeStream, PipeStream]:
    """Two ends: the one `ours` holds (its `peer` is `theirs`) and the one `theirs` holds.

    Args:
        delay_seconds: how late bytes arrive just now; None when nothing passes at all.
        forget: called with an end that has been closed or reset.
    """
    there, back = _Way(delay_seconds), _Way(delay_seconds)
    return PipeStream(theirs, back, there, forget), PipeStream(ours, there, back, forget)
