"""The transport that is plugged in below py-libp2p's host: TCP, py-libp2p's Noise, our yamux, natively muxed.

Apart from `host.py` because another transport can take its place.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio
from multiaddr import Multiaddr

from swarmnode.errors import BadInput, PeerFault, PeerLost
from swarmnode.node.identity import Identity
from swarmnode.protocols.peers import check_peer
from swarmnode.protocols.swarm_key import exporter_from_handshake

from .accepting import connect_wire
from .addresses import parse_addr
from .early import YAMUX, EarlyStream, Sealed
from .gate import Gate
from .multistream import choose, offer
from .muxed import MuxedStream
from .p2p import (
    ID,
    NOISE,
    ConnectionType,
    IListener,
    IMuxedConn,
    IMuxedStream,
    IRawConnection,
    ITransport,
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamReset,
    NetStream,
    NoiseTransport,
    PeerIDMismatchesPubkey,
    StreamState,
    Swarm,
    create_new_key_pair,
    create_noise_key_pair,
)
from .wire import Wire, WireLost
from .yamux import Muxer

__all__ = ["MAX_CONNECTIONS", "Connection", "Tcp", "hand_over", "net_stream_of"]

MAX_CONNECTIONS = 1024
MAX_CONNECTIONS_PER_PEER = 4
MAX_WAITING_STREAMS = 256
"""Inbound streams of one connection that the swarm has not taken up yet."""

_log = logging.getLogger("swarmnode.network")


class _RawConnection(IRawConnection):  # type: ignore[misc]
    """An early stream as py-libp2p's Noise wants it."""

    def __init__(self, stream: EarlyStream, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        return await self._stream.receive_some(n or 65536)

    async def write(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


class _MuxedStream(IMuxedStream):  # type: ignore[misc]
    """A stream of ours as py-libp2p's own protocols want it."""

    def __init__(self, connection: Connection, stream: MuxedStream) -> None:
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
    """A connection of ours as py-libp2p's swarm wants it.

    Args:
        secret: Noise's handshake hash: what no other connection has.
    """

    def __init__(
        self, peer: str, wire: Wire, sealed: Sealed, early: bytes, secret: bytes, *, opened_by_us: bool
    ) -> None:
        self.peer_id = ID.from_base58(peer)
        self._secret = secret
        self.event_started = trio.Event()
        self.on_close: Callable[[], Awaitable[None]] | None = None
        self._wire = wire
        self._offer, self._offered = trio.open_memory_channel[MuxedStream](MAX_WAITING_STREAMS)
        self.muxer = Muxer(wire, sealed, peer, opened_by_us=opened_by_us, accept=self._take, early=early)

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
        return exporter_from_handshake(self._secret, label, context, length)

    async def start(self) -> None:
        """What the swarm runs. The streams are carried already, since the gate needs one."""
        self.event_started.set()
        await self.muxer.ended.wait()

    async def run(self) -> None:
        """Carry the streams until the end. Never raises but when cancelled."""
        try:
            await self.muxer.run()
        except Exception:  # noqa: BLE001 - the outermost edge of the connection's task
            _log.exception("the connection to %s failed", self.muxer.peer)
        finally:
            self._offer.close()

    async def open_stream(self) -> _MuxedStream:
        try:
            return _MuxedStream(self, self.muxer.open_stream())
        except WireLost as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def accept_stream(self) -> _MuxedStream:
        try:
            return _MuxedStream(self, await self._offered.receive())
        except trio.EndOfChannel as error:
            raise MuxedConnUnavailable("the connection is closed") from error

    async def close(self) -> None:
        self.muxer.close(say=True)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._wire.remote_address

    def _take(self, stream: MuxedStream) -> None:
        try:
            self._offer.send_nowait(stream)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            stream.drop()


class Tcp(ITransport):  # type: ignore[misc]
    """TCP, Noise and yamux as one transport of py-libp2p's. Plain text is not spoken."""

    provides_native_muxing = True

    def __init__(self, identity: Identity) -> None:
        self.keys = create_new_key_pair(identity.seed)
        self._noise = NoiseTransport(self.keys, create_noise_key_pair().private_key)

    def protocols(self) -> list[str]:
        return ["tcp"]

    def can_dial(self, maddr: Multiaddr) -> bool:
        try:
            return parse_addr(str(maddr))[1] is not None
        except BadInput:
            return False

    def can_listen(self, maddr: Multiaddr) -> bool:
        return False  # the listening sockets are bound before the host starts, so that errors can be told

    def create_listener(self, handler_function: object) -> IListener:
        raise NotImplementedError("the host listens on sockets of its own")

    async def dial(self, maddr: Multiaddr) -> Connection:
        """Connect to a full multiaddr. Raises `OSError`, `WireLost`."""
        endpoint, peer = parse_addr(str(maddr))
        wire = await connect_wire(endpoint.host, endpoint.port, endpoint.family)
        try:
            return await self.upgrade(wire, peer)
        except BaseException:
            wire.close()
            raise

    async def upgrade(self, wire: Wire, expected: str | None) -> Connection:
        """Prove who is who; `expected` is the peer we dialled, None when it dialled us. Raises `WireLost`."""
        plain = EarlyStream(wire, expected or "An inbound connection")
        raw = _RawConnection(plain, is_initiator=expected is not None)
        try:
            if expected is None:
                await offer(plain, (NOISE,))
                session = await self._noise.secure_inbound(raw)
            else:
                await choose(plain, NOISE)
                session = await self._noise.secure_outbound(raw, ID.from_base58(expected))
            peer = check_peer(session.get_remote_peer().to_base58())
            state = session.conn.noise_state
            sealed = Sealed(state.encrypt, state.decrypt)
            stream = EarlyStream(wire, peer, seal=sealed, early=plain.rest())
            if expected is None:
                await offer(stream, (YAMUX,))
            else:
                await choose(stream, YAMUX)
        except PeerFault as fault:
            raise WireLost(fault.message) from fault
        except WireLost:
            raise
        except PeerIDMismatchesPubkey as error:
            raise WireLost("another peer answers at its address") from error
        except Exception as error:
            # foreign code fed by a stranger: it may raise anything
            raise WireLost(f"the handshake failed ({type(error).__name__})") from error
        secret = state.get_handshake_hash()
        return Connection(peer, wire, sealed, stream.rest(), secret, opened_by_us=expected is not None)


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


async def net_stream_of(stream: MuxedStream, swarm: Swarm, protocol: str) -> NetStream:
    """A stream of ours as py-libp2p's own protocols know streams."""
    connection = swarm.get_connections(ID.from_base58(stream.peer))[0].muxed_conn
    net_stream = NetStream(_MuxedStream(connection, stream), None, None)
    await net_stream.set_state(StreamState.OPEN)
    net_stream.set_protocol(protocol)
    return net_stream


def _drop_idlest(muxers: Iterable[Muxer]) -> bool:
    """Close the connection that has not been used for longest; False when all are in use."""
    idle = [muxer for muxer in muxers if muxer.idle]
    if idle:
        min(idle, key=lambda muxer: muxer.active_at).close(say=True)
    return bool(idle)
