"""Connections and streams of the transport in Rust, as the node uses them. Knows no libp2p.

Cancelling a read loses nothing; a write that is cancelled half-way leaves a stream that must be reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import trio
from typing_extensions import Buffer

from swarmnode import _native
from swarmnode.errors import PeerLost, ProtocolViolation
from swarmnode.node.bell import Bell
from swarmnode.node.links import Link

from .lost import WireLost

__all__ = ["NativeMuxer", "NativeStream", "Seen", "Stats"]

RESET_CODE = 0
"""libp2p's code for "no reason given"."""


class Seen(tuple[str, int]):
    """Where the other end is seen: host and port, and the transport it uses.

    Attributes:
        multiaddr: the same as a multiaddr.
    """

    multiaddr: str

    def __new__(cls, host: str, port: int, transport: str) -> Seen:
        seen = super().__new__(cls, (host, port))
        way = f"udp/{port}/quic-v1" if transport == "quic" else f"tcp/{port}"
        seen.multiaddr = f"/{'ip6' if ':' in host else 'ip4'}/{host}/{way}"
        return seen


@dataclass(frozen=True, slots=True)
class Stats:
    """What a connection knows of its path.

    Attributes:
        round_trip_seconds: as estimated now.
        sent_packets: so many.
        lost_packets: so many of these.
        window_bytes: what may be under way at a time.
        sent_bytes: everything included.
        received_bytes: everything included.
        queued_bytes: of messages that wait for room.
        datagram_bytes: the largest that fits the path.
        delivered_bytes_per_second: by the path while there was more to send; None before that was seen.
    """

    round_trip_seconds: float
    sent_packets: int
    lost_packets: int
    window_bytes: int
    sent_bytes: int
    received_bytes: int
    queued_bytes: int
    datagram_bytes: int
    delivered_bytes_per_second: int | None


class NativeMuxer:
    """One connection to one peer.

    Attributes:
        peer: the peer id of the other end.
        opened_by_us: whether we dialled.
        polite_end: whether the end, once it has come, was meant.
        active_at: when a stream was last opened, in trio's time.
        ended: set once the connection is gone; `run` sees to that.
        remote_address: where the other end is; None when the connection runs inside of another.
        relay: who carries it; None for a direct one.
    """

    def __init__(self, connection: _native.Connection, bell: Bell, relay: str | None = None) -> None:
        self.peer = connection.peer
        self.opened_by_us = connection.opened_by_us
        self.polite_end = False
        self.active_at = trio.current_time()
        self.ended = trio.Event()
        seen = connection.remote_addr
        self.remote_address = Seen(*seen, connection.transport) if seen is not None else None
        self.relay = relay
        self._connection = connection
        self._bell = bell

    @property
    def closed(self) -> bool:
        return self.ended.is_set() or self._connection.closed

    @property
    def open_streams(self) -> int:
        return self._connection.open_streams

    @property
    def idle(self) -> bool:
        """Whether no stream is open."""
        return self._connection.open_streams == 0

    @property
    def link(self) -> Link:
        """What is known of the way to the other end."""
        stats = self.stats()
        round_trip, delivered = stats.round_trip_seconds, stats.delivered_bytes_per_second
        # A window's worth in each round trip is the most that goes now; whether the link carries more, nobody knows.
        at_most = 8 * stats.window_bytes / round_trip if round_trip > 0 and stats.window_bytes else None
        return Link(
            near=self._connection.near,
            bits_per_second=8 * delivered if delivered is not None else None,
            at_most_bits_per_second=at_most,
            round_trip_seconds=round_trip or None,
        )

    async def run(self) -> None:
        """Wait for the end."""
        try:
            self.polite_end, _ = cast("tuple[bool, str]", await self._bell.result(self._connection.ended()))
        except _native.TransportError:
            pass  # its node has closed
        finally:
            self.ended.set()

    async def open(self) -> NativeStream:
        """A new stream, as soon as the other end allows one more. Raises `WireLost`."""
        return await self._stream_of(self._connection.open())

    async def accept(self) -> NativeStream:
        """The next stream that the other end opens. Raises `WireLost`."""
        return await self._stream_of(self._connection.accept())

    async def ping(self) -> float:
        """One datagram there and one back; the seconds it took. Raises `WireLost`."""
        try:
            return cast("float", await self._bell.result(self._connection.ping()))
        except _native.TransportError as error:
            raise WireLost(str(error)) from error

    def stats(self) -> Stats:
        """What is known of the path now."""
        return Stats(*self._connection.stats())

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """Bytes that both ends of this connection can make and nobody else (RFC 5705)."""
        return self._connection.exporter(label, context, length)

    def close(self, *, say: bool = False) -> None:
        """End the connection and all its streams at once."""
        self._connection.close()

    async def _stream_of(self, operation: _native.Operation) -> NativeStream:
        try:
            stream = cast("_native.Stream", await self._bell.result(operation))
        except _native.TransportError as error:
            raise WireLost(str(error)) from error
        self.active_at = trio.current_time()
        return NativeStream(stream, self, self._bell)


class NativeStream:
    """A `swarmnode.node.net.network.Stream` that carries whole messages, too."""

    def __init__(self, stream: _native.Stream, muxer: NativeMuxer, bell: Bell) -> None:
        self.peer = muxer.peer
        self.native = stream
        self._muxer = muxer
        self._bell = bell

    @property
    def link(self) -> Link:
        """What is known of the way to the other end."""
        return self._muxer.link

    @property
    def moved_bytes(self) -> int:
        """Bytes that have come and gone so far: while it changes, the other end lives."""
        return self.native.moved_bytes

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        start, size = 0, memoryview(data).nbytes
        try:
            while start < size:
                start += await self._bell.until(self.native.write_token, partial(self.native.write, data, start))
        except _native.TransportError as error:
            raise self._gone(error) from error

    async def receive_some(self, max_bytes: int) -> bytes:
        try:
            return await self._bell.until(self.native.read_token, partial(self.native.read, max_bytes))
        except _native.TransportError as error:
            raise self._gone(error) from error

    async def receive_into(self, buffer: Buffer) -> int:
        """As `receive_some`, into the start of a writable buffer; how many bytes. Raises `PeerLost`."""
        try:
            return await self._bell.until(self.native.read_token, partial(self.native.read_into, buffer))
        except _native.TransportError as error:
            raise self._gone(error) from error

    def unread(self, piece: bytes) -> None:
        """Put back what was read too much."""
        self.native.unread(piece)

    async def send_message(self, header: bytes, body: Buffer = b"") -> None:
        """Send a frame with this packed header. A cancelled send that is half out resets the stream.

        Raises:
            PeerLost: the stream broke.
            ValueError: no peer would take it.
        """
        sent = False
        try:
            await self._bell.until(self.native.write_token, lambda: self.native.send(header, body) or None)
            sent = True
        except _native.TransportError as error:
            raise self._gone(error) from error
        finally:
            if not sent:
                self.native.give_up_send()

    def begin_message(self, header: bytes, body: Buffer = b"") -> bool:
        """Send of such a frame what there is room for; whether that was all. If not, `send_message` goes on with it.

        Raises:
            PeerLost: the stream broke.
            ValueError: no peer would take it.
        """
        try:
            return self.native.send(header, body)
        except _native.TransportError as error:
            raise self._gone(error) from error

    async def receive_message(self, max_body_bytes: int) -> tuple[bytes, memoryview] | None:
        """The next frame's header, packed, and body; None once the peer has finished. Cancelling loses nothing.

        The body is writable and starts at a multiple of 64.

        Raises:
            PeerLost: the stream broke, also in the middle of a message.
            ProtocolViolation: what came is no frame within the limits; the stream is of no use any more.
        """
        try:
            return await self._bell.until(self.native.read_token, partial(self.native.receive, max_body_bytes))
        except EOFError:
            return None
        except _native.BadMessage as error:
            raise ProtocolViolation(str(error)) from error
        except _native.TransportError as error:
            raise self._gone(error) from error

    async def receive_message_into(self, buffer: Buffer) -> tuple[bytes, int] | None:
        """As `receive_message`, the body into the start of a writable buffer; the header and the body's length.

        A cancelled receive that has written to the buffer leaves a stream that only refuses.
        """
        try:
            return await self._bell.until(self.native.read_token, partial(self.native.receive_into, buffer))
        except EOFError:
            return None
        except _native.BadMessage as error:
            raise ProtocolViolation(str(error)) from error
        except _native.TransportError as error:
            raise self._gone(error) from error
        finally:
            self.native.give_up_receive()

    async def send_eof(self) -> None:
        try:
            await self._bell.until(self.native.write_token, self.native.finish)
        except _native.TransportError as error:
            raise self._gone(error) from error

    async def aclose(self) -> None:
        self.native.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        self.drop()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def drop(self) -> None:
        """Reset without waiting."""
        self.native.reset(RESET_CODE)

    def _gone(self, error: _native.TransportError) -> PeerLost:
        return PeerLost(f"The stream to {self.peer} is gone: {error}.", peer=self.peer)
