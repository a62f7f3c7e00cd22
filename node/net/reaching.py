"""The libp2p network of a node that may stand behind a NAT: relayed connections beside direct ones, and out of them.

What `nat/` decides and speaks is tied here to the host: who is connected how, where others see us, where we can be
found. A direct connection is always preferred, and streams that last move to it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from functools import partial

import trio
from multiaddr import Multiaddr

from swarmnode.errors import BadInput, PeerLost, PeerRefused, PeerUnreachable
from swarmnode.node.identity import Identity
from swarmnode.protocols.ids import SESSION

from .addresses import Endpoint, parse_addr
from .circuits import MARK, Circuit, without_peer
from .connection import Connection
from .gate import Gate
from .host import IDENTIFY_SECONDS, Libp2pNetwork
from .lost import WireLost
from .moving import MOVING, Movers
from .nat.keeper import Keeper
from .native import NativeMuxer, NativeStream
from .network import Stream
from .p2p import id_of, note_identified
from .transport import Transport

__all__ = ["ReachingNetwork"]

LASTING = frozenset({SESSION})
"""Protocols whose streams last, so that it is worth moving them to a better connection."""
LINGER_SECONDS = 10.0
"""A relayed connection that a direct one has replaced is closed once it has been idle for so long."""
AGAIN_SECONDS = (5.0, 60.0, 600.0)
"""After so long it is tried again to get off a relay: the other side may know by then that it can be dialled."""
HANDSHAKE_SECONDS = 8.0
"""Noise and yamux through a relay: six crossings or so."""

_log = logging.getLogger("swarmnode.nat")


class ReachingNetwork(Libp2pNetwork):
    """`Libp2pNetwork` with relayed connections; also the `Ground` that the NAT rooms stand on.

    Args:
        relays: whether others may be reached through this node.

    Attributes:
        keeper: what is known of our own reach, and what is done about it.
    """

    def __init__(
        self, identity: Identity, addrs: Sequence[str], nursery: trio.Nursery, gate: Gate, *, relays: bool
    ) -> None:
        super().__init__(identity, addrs, nursery, gate)
        self._announced: tuple[str, ...] = ()
        self._observed: dict[str, str] = {}
        self._says: dict[str, tuple[str, ...]] = {}
        self._links_changed = trio.Event()
        self._movers = Movers(lambda name: self._handlers.get(name) if name in LASTING else None)
        self.handle(MOVING, self._movers.answer)
        note_identified(self._host.get_peerstore(), self._note)
        self.keeper = Keeper(self, relays=relays)

    async def run(self, listeners: Sequence[socket.socket], running: trio.Event) -> None:
        """As the host; a node that listens also finds out whether it can be dialled."""
        async with trio.open_nursery() as nursery:
            if listeners:
                nursery.start_soon(self.keeper.run)
            await super().run(listeners, running)

    # What a Network is.

    @property
    def addrs(self) -> tuple[str, ...]:
        return (*(f"{addr}/p2p/{self.peer}" for addr in self._announced), *super().addrs)

    @property
    def is_relayed(self) -> bool:
        return any(MARK in addr for addr in self._announced)

    async def open_stream(self, peer: str, protocol: str, addrs: Sequence[str] = ()) -> Stream:
        if protocol not in LASTING or peer == self.peer:
            return await super().open_stream(peer, protocol, addrs)
        await self._dialler.reach(peer, [*addrs, *self._known_addrs(peer)])
        if not self.relayed(peer):
            return await super().open_stream(peer, protocol, addrs)
        try:
            stream = await super().open_stream(peer, MOVING, addrs)
        except PeerRefused:  # it does not know how to move
            return await super().open_stream(peer, protocol, addrs)
        moving = await self._movers.begin(stream, protocol)
        if not self.relayed(peer):  # since just now
            self._nursery.start_soon(self._move, peer)
        return moving

    # What a Ground is.

    @property
    def listens(self) -> tuple[str, ...]:
        return tuple(map(without_peer, super().addrs))

    def seen_at(self, peer: str) -> tuple[str, ...]:
        found = [muxer.remote_address for muxer in self._muxers(peer) if muxer.relay is None]
        return tuple(dict.fromkeys(address.multiaddr for address in found if address is not None))

    def observed(self) -> dict[str, str]:
        return {peer: addr for peer, addr in self._observed.items() if self._is_direct(peer)}

    def speakers(self, protocol: str) -> tuple[str, ...]:
        return tuple(peer for peer in self.connected if self._is_direct(peer) and self._speaks(peer, protocol))

    def known_addrs(self, peer: str) -> tuple[str, ...]:
        return self._says.get(peer, ())

    def relayed(self, peer: str) -> bool:
        return self._is_connected(peer) and not self._is_direct(peer)

    async def direct(self, peer: str) -> None:
        while not self._is_direct(peer):
            await self._links_changed.wait()

    async def carry(self, stream: Stream, peer: str, relay: str, *, opened_by_us: bool) -> None:
        assert isinstance(stream, NativeStream)  # only a network in tests has others, and carries nothing
        try:
            self._gate.check(peer)
            with trio.fail_after(HANDSHAKE_SECONDS):
                connection = await self._transport.upgrade(stream, peer if opened_by_us else None, relay)
            if connection.peer != peer:
                connection.muxer.close(say=True)
                raise WireLost("another peer than the relay said is behind it")
            await self._add(connection, "outbound" if opened_by_us else "inbound")
        except (WireLost, trio.TooSlowError) as error:
            stream.drop()
            raise PeerUnreachable(f"{peer} cannot be reached through {relay}: {error}.", peer=peer) from error
        except BaseException:
            stream.drop()
            raise
        if not opened_by_us:
            await connection.muxer.ended.wait()

    async def dial(self, peer: str, addr: str) -> None:
        try:
            endpoint, _ = parse_addr(addr)
            await super()._dial_endpoint(peer, endpoint)
        except (OSError, WireLost, BadInput) as error:
            raise PeerUnreachable(f"{peer} does not answer at {addr}: {error}.", peer=peer) from error

    async def dial_back(self, peer: str, addr: str) -> None:
        # From the socket that listens a NAT would let us in that lets in nobody else.
        fresh = Transport(self._identity)
        try:
            connection = await fresh.dial(Multiaddr(f"{addr}/p2p/{peer}"))
            connection.muxer.close(say=True)
        except (OSError, WireLost, BadInput) as error:
            raise PeerUnreachable(f"{peer} does not answer at {addr}: {error}.", peer=peer) from error
        finally:
            fresh.close()

    async def punch(self, addr: str, seconds: float) -> None:
        try:
            endpoint, _ = parse_addr(addr)
            await self._transport.punch(endpoint, seconds)
        except (OSError, WireLost, BadInput) as error:
            _log.debug("no packets to %s: %s", addr, error)

    def announce(self, addrs: Sequence[str]) -> None:
        self._announced = tuple(addrs)
        maddrs = [Multiaddr(addr) for addr in self.addrs]
        self._host.get_addrs = lambda: maddrs

    # Connections.

    def _muxers(self, peer: str) -> list[NativeMuxer]:
        """The living connections to a peer, the newest first."""
        found = [connection.muxed_conn.muxer for connection in self._swarm.connections.get(id_of(peer), ())]
        return [muxer for muxer in reversed(found) if not muxer.closed]

    def _muxer(self, peer: str) -> NativeMuxer | None:
        living = self._muxers(peer)
        return next((muxer for muxer in living if muxer.relay is None), living[0] if living else None)

    def _is_direct(self, peer: str) -> bool:
        muxer = self._muxer(peer)
        return muxer is not None and muxer.relay is None

    async def _dial_endpoint(self, peer: str, endpoint: Endpoint | Circuit) -> None:
        if isinstance(endpoint, Endpoint):
            await super()._dial_endpoint(peer, endpoint)
            return
        try:
            await self.keeper.dial(peer, endpoint)
        except PeerUnreachable as error:
            raise WireLost(error.message) from error

    async def _add(self, connection: Connection, direction: str) -> None:
        await super()._add(connection, direction)
        peer, relay = connection.peer, connection.muxer.relay
        self._tell()
        if relay is None:
            self._nursery.start_soon(self._move, peer)
        elif direction == "inbound":
            self._nursery.start_soon(self._lead, peer, relay)

    async def _watch(self, muxer: NativeMuxer) -> None:
        await super()._watch(muxer)
        self._tell()
        if not self._is_direct(muxer.peer):
            self._observed.pop(muxer.peer, None)
            self.keeper.gone(muxer.peer)
        if not self._is_connected(muxer.peer):
            self._says.pop(muxer.peer, None)

    async def _lead(self, peer: str, relay: str) -> None:
        """A peer came through a relay: once we know what it says of itself, try for a direct connection."""
        with trio.move_on_after(IDENTIFY_SECONDS):
            await self._identified_event(peer).wait()
        for pause in (0.0, *AGAIN_SECONDS):
            await trio.sleep(pause)
            if not self.relayed(peer):
                return
            if pause:
                await self._identify_again(peer)
            await self.keeper.came_through(peer, relay)

    async def _identify_again(self, peer: str) -> None:
        try:
            with trio.move_on_after(IDENTIFY_SECONDS):
                await self._host._identify_peer(id_of(peer), reason="again")
        except Exception as error:  # noqa: BLE001 - foreign code fed by a peer: it may raise anything
            _log.debug("%s could not be identified again: %r", peer, error)

    async def _move(self, peer: str) -> None:
        """Bring what runs through a relay over to the direct connection, then let the relayed one go."""
        if await self._movers.move(peer, partial(self._open_direct, peer)):
            _log.info("what ran to %s through a relay runs directly now", peer)
        while self._is_direct(peer):
            relayed = [muxer for muxer in self._muxers(peer) if muxer.relay is not None]
            if not relayed:
                return
            await trio.sleep(LINGER_SECONDS)
            for muxer in relayed:
                if muxer.idle and self._is_direct(peer):
                    muxer.close(say=True)

    async def _open_direct(self, peer: str) -> Stream:
        if not self._is_direct(peer):
            raise PeerLost(f"The direct connection to {peer} is gone.", peer=peer)
        return await self._negotiate(peer, MOVING)

    def _note(self, peer: str, observed: str | None, listens: tuple[str, ...]) -> None:
        """What a peer has just said of us and of itself."""
        if observed is not None and self._is_direct(peer):
            self._observed[peer] = observed
        self._says[peer] = listens

    def _speaks(self, peer: str, protocol: str) -> bool:
        try:
            return bool(self._host.get_peerstore().supports_protocols(id_of(peer), [protocol]))
        except Exception:  # noqa: BLE001 - it has an error class of its own for each way of not knowing
            return False

    def _tell(self) -> None:
        """Wake whoever waits for a connection to come or go."""
        self._links_changed.set()
        self._links_changed = trio.Event()
