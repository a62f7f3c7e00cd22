"""The transports that are plugged in below py-libp2p's host: QUIC in Rust, and TCP where UDP does not get through.

Plain text is not spoken. TCP is py-libp2p's Noise and our yamux.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial

import trio
from multiaddr import Multiaddr

from swarmnode import _native
from swarmnode.errors import BadInput, PeerFault
from swarmnode.node.identity import Identity
from swarmnode.protocols.peers import check_peer
from swarmnode.protocols.swarm_key import exporter_from_handshake

from .accepting import connect_wire
from .addresses import Endpoint, parse_addr, resolve
from .bell import bell_of_this_run
from .connection import Connection
from .early import YAMUX, EarlyStream, Sealed
from .multistream import choose, offer
from .muxed import MuxedStream
from .native import NativeMuxer
from .p2p import (
    ID,
    NOISE,
    ConnectionType,
    IListener,
    IRawConnection,
    ITransport,
    NoiseTransport,
    PeerIDMismatchesPubkey,
    create_new_key_pair,
    create_noise_key_pair,
)
from .wire import Wire, WireLost
from .yamux import Muxer

__all__ = ["Transport"]

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


class _TcpMuxer(Muxer):
    """A TCP connection's streams.

    Args:
        secret: Noise's handshake hash: what no other connection has.
    """

    def __init__(
        self, peer: str, wire: Wire, sealed: Sealed, early: bytes, secret: bytes, *, opened_by_us: bool
    ) -> None:
        super().__init__(wire, sealed, peer, opened_by_us=opened_by_us, accept=self._take, early=early)
        self._secret = secret
        self._offer, self._offered = trio.open_memory_channel[MuxedStream](MAX_WAITING_STREAMS)

    @property
    def remote_address(self) -> tuple[str, int] | None:
        return self.wire.remote_address

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        return exporter_from_handshake(self._secret, label, context, length)

    async def run(self) -> None:
        try:
            await super().run()
        except Exception:  # noqa: BLE001 - the outermost edge of the connection's task
            _log.exception("the connection to %s failed", self.peer)
        finally:
            self._offer.close()

    async def open(self) -> MuxedStream:
        await trio.lowlevel.checkpoint()
        return self.open_stream()

    async def accept(self) -> MuxedStream:
        try:
            return await self._offered.receive()
        except trio.EndOfChannel as error:
            raise WireLost("the connection is closed") from error

    def _take(self, stream: MuxedStream) -> None:
        try:
            self._offer.send_nowait(stream)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            stream.drop()


class Transport(ITransport):  # type: ignore[misc]
    """Both transports as one of py-libp2p's. Must be made inside of trio, and not before a fork: it starts a thread."""

    provides_native_muxing = True

    def __init__(self, identity: Identity) -> None:
        self.keys = create_new_key_pair(identity.seed)
        self._noise = NoiseTransport(self.keys, create_noise_key_pair().private_key)
        self._bell = bell_of_this_run()
        self._native = _native.Transport(identity.seed, self._bell.native)

    def protocols(self) -> list[str]:
        return ["quic-v1", "tcp"]

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
        """Connect to a full multiaddr. Raises `OSError`, `WireLost`, `BadInput`."""
        endpoint, peer = parse_addr(str(maddr))
        if peer is None:
            raise BadInput(f"{maddr} does not name a peer.", hint="A full address ends in /p2p/ and the peer id.")
        if endpoint.transport == "quic":
            return await self._dial_quic(endpoint, peer)
        wire = await connect_wire(endpoint.host, endpoint.port, endpoint.family)
        try:
            return await self.upgrade(wire, peer)
        except BaseException:
            wire.close()
            raise

    def listen(self, sock: socket.socket) -> None:
        """Take over a bound UDP socket: connections come in over it, go out over it, holes are punched from it."""
        self._native.listen(sock.detach())

    async def accept(self) -> Connection:
        """The next connection over UDP. Raises `WireLost` once the transport is closed."""
        return await self._connection(self._native.accept)

    async def punch(self, endpoint: Endpoint, seconds: float) -> None:
        """Let in through our NAT, for so long, what comes from there. Raises `OSError`, `WireLost`."""
        host = await resolve(endpoint)
        try:
            self._native.punch(host, endpoint.port, seconds)
        except _native.TransportError as error:
            raise WireLost(str(error)) from error
        await trio.sleep(seconds)

    def close(self) -> None:
        """End all QUIC connections and say so."""
        self._native.close()

    async def _dial_quic(self, endpoint: Endpoint, peer: str) -> Connection:
        host = await resolve(endpoint)
        return await self._connection(partial(self._native.dial, host, endpoint.port, peer))

    async def _connection(self, begin: Callable[[], _native.Operation]) -> Connection:
        try:
            connection = await self._bell.result(begin())
        except _native.TransportError as error:
            raise WireLost(str(error)) from error
        assert isinstance(connection, _native.Connection)
        return Connection(NativeMuxer(connection, self._bell))

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
        return Connection(_TcpMuxer(peer, wire, sealed, stream.rest(), secret, opened_by_us=expected is not None))
