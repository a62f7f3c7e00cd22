"""Yamux: many streams over one connection (github.com/hashicorp/yamux, spec.md, as libp2p uses it).

py-libp2p's own muxer resets a writer whose reader stalls for 5 s, corrupts the connection when a writer is cancelled,
reports a killed peer as a polite end and does not hold a peer to its window; hence this one. Reading a stream gives
its window back; sending waits for the other end's window for as long as the other end lives. Knows no libp2p.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import trio

from swarmnode.node.links import Link

from .muxed import MAX_WINDOW_BYTES, MuxedStream
from .wire import Wire, WireLost

__all__ = ["MAX_STREAMS", "Muxer", "Seal"]

MAX_STREAMS = 512
"""Streams that one peer may have open over one connection."""
MAX_BUFFERED_BYTES = 64 * 1024 * 1024
"""What one peer may make us hold over one connection before windows stop growing and it is shut out."""
MAX_FRAME_BYTES = 65519
"""Noise's largest message without its tag: a frame never exceeds it, so one frame is one message."""
TICK_SECONDS = 1.0
PING_AFTER_TICKS = 2
SILENT_TICKS = 6
"""A connection with open streams over which nothing came for so many ticks is lost."""

_HEADER = struct.Struct(">BBHII")
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_PROTOCOL_ERROR = 1


class Seal(Protocol):
    """What turns frames into the bytes that travel, and back."""

    def seal(self, frame: bytes) -> bytes: ...

    def unseal(self, data: bytes) -> list[bytes]:
        """The plain bytes that `data` completes. Raises `WireLost` when they are not what the other end sealed."""


class Muxer:
    """One connection to one peer.

    What came on the wire before it was a muxer's is `early`, plain.

    Attributes:
        peer: the peer id of the other end.
        wire: the connection under it.
        opened_by_us: whether we dialled.
        polite_end: whether the other end said that it would close.
        active_at: when a stream was last open, in trio's time.
        ended: set once the connection is gone.
    """

    def __init__(
        self,
        wire: Wire,
        seal: Seal,
        peer: str,
        *,
        opened_by_us: bool,
        accept: Callable[[MuxedStream], None],
        early: bytes = b"",
    ) -> None:
        self.peer = peer
        self.opened_by_us = opened_by_us
        self.polite_end = False
        self.ended = trio.Event()
        self.active_at = trio.current_time()
        self.wire = wire
        self._seal = seal
        self._accept = accept
        self._early = early
        self._streams: dict[int, MuxedStream] = {}
        self._next_id = 1 if opened_by_us else 2
        self._theirs = 0
        self._buffered_bytes = 0
        self._head = bytearray()
        self._body_left = 0
        self._body_of: MuxedStream | None = None
        self._body_flags = 0
        self._silent_ticks = 0
        self._busy = trio.Event()

    @property
    def closed(self) -> bool:
        return self.wire.closed

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def idle(self) -> bool:
        """Whether no stream is open."""
        return not self._streams

    @property
    def link(self) -> Link:
        """What is known of the way to the other end."""
        return Link(near=self.wire.near)

    @property
    def sluggish(self) -> bool:
        """Whether windows should stop growing because much is waiting to be read."""
        return self._buffered_bytes > MAX_BUFFERED_BYTES // 2

    async def run(self) -> None:
        """Carry the streams until the connection ends; then every stream is lost. Never raises but when cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush, nursery.cancel_scope)
                nursery.start_soon(self._keep)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    def open_stream(self) -> MuxedStream:
        """A new stream to the other end. Raises `WireLost`."""
        stream = MuxedStream(self, self._next_id)
        self._next_id += 2
        self._remember(stream)
        self.control(_WINDOW_UPDATE, _SYN, stream.stream_id, 0)
        return stream

    def close(self, *, say: bool = False) -> None:
        """End the connection and all its streams at once; with `say`, tell the other end that it is meant."""
        if say and not self.closed:
            with suppress(WireLost):
                self.control(_GO_AWAY, 0, 0, 0)
        self.wire.close()
        self.ended.set()
        for stream in list(self._streams.values()):
            stream.on_lost()
        self._streams.clear()

    def control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """Send a frame without a body. Raises `WireLost`."""
        self.wire.write(self._seal.seal(_HEADER.pack(0, kind, flags, stream_id, value)))

    # What the streams call.

    def send_data(self, stream_id: int, piece: memoryview) -> None:
        self.wire.write(self._seal.seal(_HEADER.pack(0, _DATA, 0, stream_id, len(piece)) + piece))

    def send_window(self, stream_id: int, more_bytes: int) -> None:
        self.control(_WINDOW_UPDATE, 0, stream_id, more_bytes)

    def send_fin(self, stream_id: int) -> None:
        self.control(_WINDOW_UPDATE, _FIN, stream_id, 0)

    def send_reset(self, stream_id: int) -> None:
        self.control(_WINDOW_UPDATE, _RST, stream_id, 0)

    @property
    def congested(self) -> bool:
        """Whether a sender has to wait for `room` first."""
        return self.wire.congested

    async def room(self) -> None:
        """Wait until the connection takes more. Raises `WireLost`."""
        await self.wire.room()

    def taken(self, read_bytes: int) -> None:
        """So many buffered bytes were read or dropped."""
        self._buffered_bytes -= read_bytes

    def forget(self, stream: MuxedStream) -> None:
        """A stream has ended in both directions."""
        if self._streams.pop(stream.stream_id, None) is not None and self._is_theirs(stream.stream_id):
            self._theirs -= 1
        self.active_at = trio.current_time()

    # The tasks of the connection.

    async def _flush(self, scope: trio.CancelScope) -> None:
        try:
            await self.wire.flush_for_ever()
        except WireLost:
            scope.cancel()

    async def _read(self) -> None:
        try:
            self._feed(self._early)
            while data := await self.wire.receive():
                self._silent_ticks = 0
                for plain in self._seal.unseal(data):
                    self._feed(plain)
        except WireLost:
            pass

    async def _keep(self) -> None:
        """Notice a silent peer while streams are open, and sweep streams that the other end never finished.

        Ticks, not seconds, so that an event loop of ours that was held up does not take it for the other's silence.
        """
        nonce = 0
        while True:
            await self._busy.wait()
            while self._streams:
                await trio.sleep(TICK_SECONDS)
                self._silent_ticks += 1
                if self._silent_ticks >= SILENT_TICKS:
                    self.wire.close()
                    return
                if self._silent_ticks >= PING_AFTER_TICKS:
                    nonce = (nonce + 1) & 0xFFFFFFFF
                    try:
                        self.control(_PING, _SYN, 0, nonce)
                    except WireLost:
                        return
                for stream in list(self._streams.values()):
                    stream.tick()
            self._busy = trio.Event()

    def _remember(self, stream: MuxedStream) -> None:
        if not self._streams:
            self._silent_ticks = 0
            self._busy.set()
        self._streams[stream.stream_id] = stream

    def _is_theirs(self, stream_id: int) -> bool:
        return (stream_id % 2 == 1) != self.opened_by_us

    # What the other end sends.

    def _feed(self, plain: bytes) -> None:
        view = memoryview(plain)
        while view:
            if self._body_left:
                piece = view[: self._body_left]
                view = view[len(piece) :]
                self._body_left -= len(piece)
                self._on_body(bytes(piece))
                continue
            missing = _HEADER.size - len(self._head)
            self._head += view[:missing]
            view = view[missing:]
            if len(self._head) == _HEADER.size:
                version, kind, flags, stream_id, value = _HEADER.unpack(self._head)
                self._head.clear()
                if version != 0:
                    raise self._violation("an unknown yamux version")
                self._on_frame(kind, flags, stream_id, value)

    def _on_frame(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        if kind in (_DATA, _WINDOW_UPDATE):
            if flags & _SYN:
                self._on_syn(stream_id)
            stream = self._streams.get(stream_id)
            if kind == _DATA:
                if value > MAX_WINDOW_BYTES:
                    raise self._violation("a frame larger than any window")
                self._body_left, self._body_of, self._body_flags = value, stream, flags
                if value == 0:
                    self._on_flags(stream, flags)
                elif stream is not None and not stream.charge(value):
                    raise self._violation("more than its window allows")
            else:
                if stream is not None and value:
                    stream.on_window(value)
                self._on_flags(stream, flags)
        elif kind == _PING:
            if flags & _SYN:
                self.control(_PING, _ACK, 0, value)
        elif kind == _GO_AWAY:
            self.polite_end = value == 0
            raise WireLost("the other end closed the connection")
        else:
            raise self._violation("an unknown yamux frame")

    def _on_syn(self, stream_id: int) -> None:
        if not self._is_theirs(stream_id) or stream_id == 0 or stream_id in self._streams:
            raise self._violation("a stream id that is not its to use")
        if self._theirs >= MAX_STREAMS:
            self.send_reset(stream_id)
            return
        stream = MuxedStream(self, stream_id)
        self._remember(stream)
        self._theirs += 1
        self.control(_WINDOW_UPDATE, _ACK, stream_id, 0)
        self._accept(stream)

    def _on_body(self, piece: bytes) -> None:
        stream = self._body_of
        if stream is not None:
            self._buffered_bytes += len(piece)
            if self._buffered_bytes > MAX_BUFFERED_BYTES:
                raise self._violation("more than may wait to be read")
            stream.on_data(piece)
        if not self._body_left:
            self._body_of = None
            self._on_flags(stream, self._body_flags)

    def _on_flags(self, stream: MuxedStream | None, flags: int) -> None:
        if stream is None:
            return
        if flags & _FIN:
            stream.on_fin()
        if flags & _RST:
            stream.on_lost()
            self.forget(stream)

    def _violation(self, what: str) -> WireLost:
        with suppress(WireLost):
            self.control(_GO_AWAY, 0, 0, _PROTOCOL_ERROR)
        return WireLost(f"the other end sent {what}")
