"""Connections of ours as py-libp2p's swarm wants them, whatever carries them; and how the swarm gets one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio
from multiaddr import Multiaddr

from swarmnode.errors import PeerLost

from .gate import Gate
from .lost import WireLost
from .native import NativeMuxer, NativeStream
from .p2p import (
    ID,
    ConnectionType,
    IMuxedConn,
    IMuxedStream,
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamReset,
    NetStream,
    StreamState,
    Swarm,
)

__all__ = ["MAX_CONNECTIONS", "Connection", "hand_over", "net_stream_of"]

MAX_CONNECTIONS = 1024
MAX_CONNECTIONS_PER_PEER = 4


class _MuxedStream(IMuxedStream):  # type: ignore[misc]
    """A stream of ours as py-libp2p's own protocols want it."""

    def __init__(self, connection: Connection, stream: NativeStream) -> None:
        self.muxed_conn = connection
        self.stream = stream

    async def read(self, n: int | None = None) -> bytes:
        try:
            data = await self.stream.receive_some(n if n is not None and n > 0 else 65536)
        except PeerLost as error:
            raise MuxedStreamReset(error.message) from error
        if not data:
            raise MuxedStreamEOF("the other end has finished")
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except PeerLost as error:
            raise MuxedStreamReset(error.message) from error

    async def close(self) -> None:
        await self.stream.aclose()

    async def reset(self) -> None:
        await self.stream.reset()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("trio's cancel scopes are the deadlines")

    async def __aenter__(self) -> _MuxedStream:
        return self

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxed_conn.get_remote_address()


class Connection(IMuxedConn):  # type: ignore[misc]
    """A connection of ours as py-libp2p's swarm wants it."""

    def __init__(self, muxer: NativeMuxer) -> None:
        self.muxer = muxer
        self.peer_id = ID.from_base58(muxer.peer)
        self.event_started = trio.Event()
        self.on_close: Callable[[], Awaitable[None]] | None = None

    @property
    def is_initiator(self) -> bool:
        return self.muxer.opened_by_us

    @property
    def is_established(self) -> bool:
        return not self.muxer.closed

    @property
    def is_closed(self) -> bool:
        return self.muxer.closed

    @property
    def peer(self) -> str:
        return self.muxer.peer

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """Bytes that both ends of this connection can make and nobody else."""
        return self.muxer.exporter(label, context, length)

    async def left(self) -> bool:
        """Wait for the connection's end; whether it was a polite one."""
        await self.muxer.ended.wait()
        return self.muxer.polite_end

    async def start(self) -> None:
        """What the swarm runs. The streams are carried already, since the gate needs one."""
        self.event_started.set()
        await self.muxer.ended.wait()

    async def open_stream(self) -> _MuxedStream:
        try:
            return _MuxedStream(self, await self.muxer.open())
        except WireLost as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def accept_stream(self) -> _MuxedStream:
        try:
            return _MuxedStream(self, await self.muxer.accept())
        except WireLost as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def close(self) -> None:
        self.muxer.close(say=True)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxer.remote_address


async def hand_over(connection: Connection, swarm: Swarm, direction: str, gate: Gate) -> None:
    """Give py-libp2p's swarm a connection that passes the gate. Raises `WireLost`, `PeerRefused`.

    It goes past the swarm's own inbound limit, which never frees a slot.
    """
    try:
        await gate.admit(connection, opened_by_us=direction == "outbound")
    except BaseException:
        connection.muxer.close(say=True)
        raise
    everyone = swarm.get_connections()
    try:
        if connection.peer_id == swarm.get_peer_id():
            raise WireLost("it is this node itself")
        if len(swarm.get_connections(connection.peer_id)) >= MAX_CONNECTIONS_PER_PEER:
            raise WireLost("too many connections from one peer")
        if len(everyone) >= MAX_CONNECTIONS - 1 and not _drop_idlest(each.muxed_conn.muxer for each in everyone):
            raise WireLost("too many connections")
        with trio.CancelScope(shield=True):  # half-added it would never be removed
            await swarm.add_conn(connection, direction=direction)
    except WireLost:
        connection.muxer.close(say=True)
        raise
    except Exception as error:
        connection.muxer.close()
        raise WireLost(f"the swarm refused it ({error})") from error


async def net_stream_of(stream: NativeStream, swarm: Swarm, protocol: str) -> NetStream:
    """A stream of ours as py-libp2p's own protocols know streams."""
    connection = swarm.get_connections(ID.from_base58(stream.peer))[0].muxed_conn
    net_stream = NetStream(_MuxedStream(connection, stream), None, None)
    await net_stream.set_state(StreamState.OPEN)
    net_stream.set_protocol(protocol)
    return net_stream


def _drop_idlest(muxers: Iterable[NativeMuxer]) -> bool:
    """Close the connection that has not been used for longest; False when all are in use."""
    idle = [muxer for muxer in muxers if muxer.idle]
    if idle:
        min(idle, key=lambda muxer: muxer.active_at).close(say=True)
    return bool(idle)
