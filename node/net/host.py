"""The network over py-libp2p: its host, tamed. Foreign exceptions end here and come out as ours.

What is worked round of its host, swarm, peer store, identify and Kademlia routing is said where it is.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from multiaddr import Multiaddr

from swarmnode.errors import BadInput, PeerFault, PeerLost, PeerRefused, PeerUnreachable
from swarmnode.node.background import open_background
from swarmnode.node.identity import Identity
from swarmnode.node.links import Link
from swarmnode.protocols.ids import GATE

from .addresses import Endpoint, listen_socket, listening_addrs, peer_at, without_missing_family
from .answer import answer
from .circuits import Circuit, without_peer
from .connection import MAX_CONNECTIONS, Connection, hand_over, net_stream_of
from .dialing import Dialler
from .gate import Gate
from .kademlia import Kademlia
from .lan import stay_on_lan
from .lost import WireLost
from .metric import closest
from .multistream import choose, offer
from .native import NativeMuxer, NativeStream
from .network import Network, PeerAddrs, Stream, StreamHandler
from .p2p import (
    ID,
    KADEMLIA,
    ConnectionConfig,
    INetStream,
    PeerInfo,
    StreamFailure,
    id_of,
    new_host,
)
from .pipe import open_pipe
from .transport import Transport

__all__ = ["Libp2pNetwork", "open_host"]

NEGOTIATE_SECONDS = 4.0
"""A peer that has a connection to us and does not answer a new stream by then has gone."""
IDENTIFY_SECONDS = 5.0
ANSWER_SECONDS = 20.0
"""A question of identify or Kademlia is over by then."""
_log = logging.getLogger("swarmnode.network")


async def _do_nothing(*_: object) -> None:
    await trio.lowlevel.checkpoint()


class Libp2pNetwork:
    """One peer's place in the libp2p network; a `swarmnode.node.net.network.Network`."""

    def __init__(self, identity: Identity, addrs: Sequence[str], nursery: trio.Nursery, gate: Gate) -> None:
        self._identity = identity
        self._nursery = nursery
        self._gate = gate
        self._addrs = tuple(f"{addr}/p2p/{identity.peer}" for addr in addrs)
        self._handlers: dict[str, StreamHandler] = {}
        self._transport = Transport(identity)
        self._host = new_host(
            self._transport.keys,
            transports=[self._transport],
            connection_config=ConnectionConfig(
                max_connections=MAX_CONNECTIONS,
                high_watermark=MAX_CONNECTIONS,
                low_watermark=0,
                min_connections=0,
                outbound_stream_protocol_negotiation_timeout=NEGOTIATE_SECONDS,
                inbound_stream_protocol_negotiation_timeout=NEGOTIATE_SECONDS,
            ),
            disable_identify_address_discovery=True,
        )
        self._swarm = self._host.get_network()
        self._swarm.set_resource_manager(None)  # it counts what our muxer bounds already, and denies at random
        self._swarm.set_stream_handler(self._answer)  # its own lets a peer's broken UTF-8 take the node down
        self._swarm.auto_connector.maybe_connect = _do_nothing  # it dials whomever it knows, watermarks or not
        self._swarm.dial_peer = self._dial_peer  # its own waits 250 ms and retries for long
        # nobody listens to these, and they take a fifth of a question's time
        self._swarm.notify_opened_stream = self._swarm.notify_closed_stream = _do_nothing
        maddrs = [Multiaddr(addr) for addr in self._addrs]
        self._host.get_addrs = lambda: maddrs  # its own takes a millisecond, for every question
        self._host.new_stream = self._new_stream  # its own negotiates byte by byte, in two round trips
        self._host._schedule_identify = self._schedule_identify  # its own runs in trio's system nursery, past our end
        self._kademlia = Kademlia(self._host, identity.peer, self._keepers, self._is_connected, self._reach_known)
        self._dialler = Dialler(identity.peer, nursery, self._is_connected, self._dial_endpoint)
        self.questions = 0  # of other peers' look-ups, answered here
        self._identified: dict[str, trio.Event] = {}
        if not gate.has_key:
            self.handle(GATE, gate.answer)

    async def run(self, listeners: Sequence[socket.socket], running: trio.Event) -> None:
        """Run py-libp2p's host, accept connections and keep the routing table, for ever."""
        async with self._host.run([]), trio.open_nursery() as nursery:
            for listener in listeners:
                self._transport.listen(listener)
            nursery.start_soon(self._accept)
            nursery.start_soon(self._kademlia.upkeep)
            running.set()

    def close(self) -> None:
        """Say good-bye and drop every connection at once; py-libp2p takes 0.2 s for each."""
        for connection in self._swarm.get_connections():
            connection.muxed_conn.muxer.close(say=True)
        self._transport.close()

    # What a Network is.

    @property
    def peer(self) -> str:
        return self._identity.peer

    @property
    def addrs(self) -> tuple[str, ...]:
        return self._addrs

    @property
    def connected(self) -> tuple[str, ...]:
        return tuple(peer for peer in map(ID.to_base58, self._swarm.connections) if self._is_connected(peer))

    @property
    def open_streams(self) -> int:
        return sum(connection.muxed_conn.muxer.open_streams for connection in self._swarm.get_connections())

    def link(self, peer: str) -> Link | None:
        muxer = self._muxer(peer)
        return None if muxer is None else muxer.link

    def sign(self, data: bytes) -> bytes:
        return self._identity.sign(data)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler
        self._host.set_stream_handler(protocol, None)  # identify tells others from there what we speak

    async def connect(self, addr: str) -> str:
        peer = peer_at(addr)
        if peer is None:
            raise BadInput(f"{addr} does not name a peer.", hint="A full address ends in /p2p/ and the peer id.")
        await self._dialler.reach(peer, [addr])
        with trio.move_on_after(IDENTIFY_SECONDS):
            await self._identified_event(peer).wait()
        if not self._is_connected(peer):
            self._forget(peer)
            raise self._gate.turned_away(peer) or PeerUnreachable(f"{peer} closed the connection at once.", peer=peer)
        self._kademlia.joined()
        return peer

    async def meet(self, addr: str) -> None:
        """Connect to a neighbour, if that works."""
        try:
            await self.connect(addr)
        except (PeerFault, BadInput) as error:
            _log.debug("a neighbour could not be met: %s", error.message)

    async def open_stream(self, peer: str, protocol: str, addrs: Sequence[str] = ()) -> Stream:
        if peer == self.peer:
            return self._to_ourselves(protocol)
        addrs = [*addrs, *self._known_addrs(peer)]
        fresh = not self._is_connected(peer)
        await self._dialler.reach(peer, addrs)
        try:
            return await self._negotiate(peer, protocol)
        except PeerLost:
            if fresh:
                raise
        await self._dialler.reach(peer, addrs)  # the connection was dead without our knowing: once more over a new one
        return await self._negotiate(peer, protocol)

    async def closest_peers(self, key: bytes, count: int) -> list[PeerAddrs]:
        return self._closest(key, await self._kademlia.look_up(key, count), count)

    def known_closest(self, key: bytes, count: int) -> list[PeerAddrs]:
        return self._closest(key, self._kademlia.known(), count)

    def _closest(self, key: bytes, peers: Iterable[str], count: int) -> list[PeerAddrs]:
        ours = {self.peer} if self.addrs else set()
        return [PeerAddrs(peer, self._plain_addrs(peer)) for peer in closest(key, ours.union(peers), count)]

    def _keepers(self) -> list[str]:
        """The connected peers that others can reach as well. What one that listens nowhere keeps, nobody would find."""
        return [peer for peer in self.connected if self._known_addrs(peer)]

    # Connections.

    def _is_connected(self, peer: str) -> bool:
        return self._muxer(peer) is not None

    def _muxer(self, peer: str) -> NativeMuxer | None:
        """The newest living connection to a peer."""
        for connection in reversed(self._swarm.connections.get(id_of(peer), ())):
            muxer: NativeMuxer = connection.muxed_conn.muxer
            if not muxer.closed:
                return muxer
        return None

    async def _dial_endpoint(self, peer: str, endpoint: Endpoint | Circuit) -> None:
        self._gate.check(peer)
        await self._add(await self._transport.dial(Multiaddr(f"{endpoint}/p2p/{peer}")), "outbound")

    async def _add(self, connection: Connection, direction: str) -> None:
        self._nursery.start_soon(connection.muxer.run)
        await hand_over(connection, self._swarm, direction, self._gate)
        self._nursery.start_soon(self._watch, connection.muxer)

    async def _accept(self) -> None:
        """Take up what comes in, for ever. Whoever stalls at the gate stalls nobody else."""
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    nursery.start_soon(self._greet, await self._transport.accept())
            except WireLost:
                pass  # the transport is closed: so are we

    async def _greet(self, connection: Connection) -> None:
        try:
            await self._add(connection, "inbound")
        except (WireLost, PeerRefused) as error:
            _log.debug("an inbound connection was not taken: %s", error)

    async def _reach_known(self, peer: str) -> None:
        await self._dialler.reach(peer, self._known_addrs(peer))

    async def _dial_peer(self, peer_id: ID) -> list[Any]:
        """What the swarm calls when py-libp2p's own protocols want a peer; look-ups must not wait for the dead."""
        peer = peer_id.to_base58()
        await self._kademlia.reach_soon(peer)
        return list(self._swarm.get_connections(peer_id))

    async def _watch(self, muxer: NativeMuxer) -> None:
        """Forget a peer whose last connection broke without a good-bye; any is asked anew who it is another time."""
        await muxer.ended.wait()
        if not self._is_connected(muxer.peer):
            self._identified.pop(muxer.peer, None)
            if not muxer.polite_end:
                self._forget(muxer.peer)

    # Streams.

    async def _negotiate(self, peer: str, protocol: str) -> NativeStream:
        muxer = self._muxer(peer)
        if muxer is None:
            raise PeerLost(f"The connection to {peer} is gone.", peer=peer)
        try:
            with trio.fail_after(NEGOTIATE_SECONDS):
                stream = await muxer.open()
                try:
                    await choose(stream, protocol)
                except BaseException:
                    stream.drop()
                    raise
        except WireLost as error:
            raise PeerLost(f"The connection to {peer} is gone.", peer=peer) from error
        except trio.TooSlowError as error:
            muxer.close()
            raise PeerLost(f"{peer} does not answer.", peer=peer) from error
        return stream

    async def _new_stream(self, peer_id: ID, protocol_ids: Sequence[str]) -> INetStream:
        """What py-libp2p's own protocols open their streams with."""
        peer, protocol = peer_id.to_base58(), str(protocol_ids[0])
        try:
            await self._kademlia.reach_soon(peer)
            stream = await self._negotiate(peer, protocol)
        except PeerFault as fault:
            raise StreamFailure(fault.message) from fault
        return await net_stream_of(stream, self._swarm, protocol)

    async def _answer(self, net_stream: INetStream) -> None:
        """Answer an inbound stream. The swarm runs this: what it raises would take the node down."""
        stream: NativeStream = net_stream.muxed_stream.stream
        theirs = self._host.multiselect.handlers
        try:
            with trio.fail_after(NEGOTIATE_SECONDS):
                protocol = await offer(stream, theirs)
        except (PeerFault, trio.TooSlowError) as error:
            _log.debug("a stream of %s was not answered: %s", stream.peer, error)
            stream.drop()
            return
        if (handler := self._handlers.get(protocol)) is not None:
            await answer(protocol, handler, stream)
            return
        self.questions += protocol == KADEMLIA
        net_stream.set_protocol(protocol)
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                await theirs[protocol](net_stream)
            await stream.aclose()
        except Exception as error:  # noqa: BLE001 - foreign code fed by a peer
            _log.debug("%s from %s failed: %r", protocol, stream.peer, error)
            stream.drop()

    def _to_ourselves(self, protocol: str) -> Stream:
        if (handler := self._handlers.get(protocol)) is None:
            raise PeerRefused(f"This node does not answer {protocol} itself.", peer=self.peer)
        here, there = open_pipe(self.peer, self.peer)
        self._nursery.start_soon(partial(answer, protocol, handler, there))
        return here

    def _forget(self, peer: str) -> None:
        self._kademlia.forget(peer)
        self._identified.pop(peer, None)

    # Identify.

    def _identified_event(self, peer: str) -> trio.Event:
        return self._identified.setdefault(peer, trio.Event())

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        self._nursery.start_soon(self._identify, peer_id, reason)

    async def _identify(self, peer_id: ID, reason: str) -> None:
        """Learn where a connected peer listens and what it speaks; if others can reach it, it enters the table."""
        done = self._identified_event(peer_id.to_base58())
        if done.is_set():
            return
        try:
            with trio.move_on_after(IDENTIFY_SECONDS):
                await self._host._identify_peer(peer_id, reason=reason)
                store, addrs = self._host.get_peerstore(), self._known_addrs(peer_id.to_base58())
                if addrs and store.supports_protocols(peer_id, [KADEMLIA]):
                    await self._kademlia.add(PeerInfo(peer_id, store.addrs(peer_id)))
        except Exception as error:  # noqa: BLE001 - foreign code fed by a peer: it may raise anything
            _log.debug("%s could not be identified: %r", peer_id, error)
        finally:
            done.set()

    def _known_addrs(self, peer: str) -> list[str]:
        try:
            return [str(addr) for addr in self._host.get_peerstore().addrs(id_of(peer))]
        except Exception:  # noqa: BLE001 - it has an error class of its own for each way of not knowing
            return []

    def _plain_addrs(self, peer: str) -> tuple[str, ...]:
        addrs = self.addrs if peer == self.peer else self._known_addrs(peer)
        return tuple(dict.fromkeys(map(without_peer, addrs)))


@asynccontextmanager
async def open_host(
    identity: Identity, *, listen: Sequence[str], mdns: bool = False, gate: Gate | None = None, relays: bool = False
) -> AsyncIterator[Network]:
    """A libp2p peer that listens on these multiaddrs, none is fine too; leaving the block closes everything at once.

    `mdns`: find others on the local network. `relays`: let others be reached through it. No `gate`: all may come.

    Raises:
        PortInUse: somebody else listens there.
        BadInput: an address cannot be listened on.
    """
    listeners: list[socket.socket] = []
    try:
        for addr in without_missing_family(listen):
            listeners.append(listen_socket(addr))  # noqa: PERF401 - those before a failing one must be closed
        async with open_background() as nursery:
            addrs = [addr for listener in listeners for addr in listening_addrs(listener)]
            from .reaching import ReachingNetwork  # it is built on what stands here

            network = ReachingNetwork(identity, addrs, nursery, gate or Gate(identity.peer), relays=relays)
            running = trio.Event()
            nursery.start_soon(network.run, listeners, running)
            await running.wait()
            if mdns:
                nursery.start_soon(stay_on_lan, network.addrs, network.meet)
            try:
                yield network
            finally:
                network.close()
    finally:
        for listener in listeners:
            listener.close()
