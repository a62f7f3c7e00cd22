"""A network inside one process that behaves like the real one: authenticated peers, bounded streams, death, silence.

For tests, ours and other people's: peers can be killed, silenced, parted and slowed down. Knows no libp2p.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import trio

from swarmnode.errors import BadInput, PeerRefused, PeerUnreachable
from swarmnode.node.background import open_background
from swarmnode.node.identity import Identity, identity_from_seed
from swarmnode.node.links import Link

from .answer import answer
from .metric import closest
from .network import PeerAddrs, Stream, StreamHandler
from .pipe import PipeStream, open_pipe

__all__ = ["MemoryNet", "MemoryNetwork", "open_memory_net"]

DIAL_SECONDS = 5.0
"""After this long a dial into silence fails."""
SILENCE_SECONDS = 6.0
"""After this long without a sign of life a connection counts as lost."""


class MemoryNet:
    """All peers of one in-memory network. Made by `open_memory_net`.

    Attributes:
        opened: how many streams were opened, by protocol: the messages of request-and-answer protocols.
        opened_by: the same, by who opened them and the protocol.
        lookups: how often `closest_peers` was asked.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.opened: Counter[str] = Counter()
        self.opened_by: Counter[tuple[str, str]] = Counter()
        self.lookups = 0
        self._nursery = nursery
        self._peers: dict[str, MemoryNetwork] = {}
        self._delays: dict[str, float] = {}
        self._silent: set[str] = set()
        self._groups: dict[str, int] = {}
        self._changed = trio.Event()

    def network(self, seed: int | Identity) -> MemoryNetwork:
        """A peer of its own; the same seed gives the same peer id, so a killed peer can come back."""
        identity = seed if isinstance(seed, Identity) else identity_from_seed(hashlib.sha256(b"%d" % seed).digest())
        if (old := self._peers.get(identity.peer)) is not None and old.alive:
            raise BadInput(f"The peer {identity.peer} is in this network already.", hint="Kill it first.")
        number = len(self._peers) + 1 if old is None else old.number
        network = MemoryNetwork(self, identity, number)
        self._peers[identity.peer] = network
        return network

    def kill(self, peer: str) -> None:
        """Stop a peer at once, as `kill -9` would: its streams break, its handlers end, dialling it is refused."""
        self._peers[peer].die()

    def blackhole(self, peer: str) -> None:
        """Let nothing pass from or to a peer any more; the others notice only by its silence."""
        self._silent.add(peer)
        self._notice_silence()

    def partition(self, peers: Iterable[str]) -> None:
        """Let nothing pass between these peers and the others."""
        group = max(self._groups.values(), default=0) + 1
        self._groups.update(dict.fromkeys(peers, group))
        self._notice_silence()

    def heal(self) -> None:
        """Undo every `blackhole` and `partition`; connections that were not given up yet go on."""
        self._silent.clear()
        self._groups.clear()
        for network in self._peers.values():
            network.wake()
        self._wake()

    def slow(self, peer: str, seconds: float) -> None:
        """Make everything from and to a peer this much later, each way."""
        self._delays[peer] = seconds

    def delay_seconds(self, one: str, other: str) -> float | None:
        """How late bytes between two peers are; None when nothing passes."""
        if one != other and (
            one in self._silent or other in self._silent or self._groups.get(one) != self._groups.get(other)
        ):
            return None
        return self._delays.get(one, 0.0) + self._delays.get(other, 0.0)

    @property
    def living_count(self) -> int:
        return sum(network.alive for network in self._peers.values())

    def living(self, peer: str) -> MemoryNetwork | None:
        """A peer by its id, if it lives."""
        network = self._peers.get(peer)
        return network if network is not None and network.alive else None

    def at(self, addr: str) -> MemoryNetwork | None:
        """The living peer that listens at an address without `/p2p/…`."""
        return next((each for each in self._peers.values() if each.alive and each.listens == addr), None)

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task for as long as the network lasts."""
        self._nursery.start_soon(task)

    async def wait_changed(self) -> None:
        """Wait until silence has been healed or has cost a connection."""
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _notice_silence(self) -> None:
        async def give_up() -> None:
            await trio.sleep(SILENCE_SECONDS)
            for network in list(self._peers.values()):
                network.drop_silent()
            self._wake()

        self._nursery.start_soon(give_up)


class MemoryNetwork:
    """One peer's place in a `MemoryNet`; a `swarmnode.node.net.network.Network`."""

    def __init__(self, net: MemoryNet, identity: Identity, number: int) -> None:
        self._net = net
        self._identity = identity
        self._handlers: dict[str, StreamHandler] = {}
        self._links: dict[str, set[PipeStream]] = {}
        self._known: set[str] = set()
        self._running: set[trio.CancelScope] = set()
        self.alive = True
        self.is_relayed = False
        self.number = number
        self.listens = f"/ip4/10.0.{number // 250}.{number % 250 + 1}/tcp/4001"

    @property
    def peer(self) -> str:
        return self._identity.peer

    @property
    def addrs(self) -> tuple[str, ...]:
        return (f"{self.listens}/p2p/{self.peer}",)

    @property
    def connected(self) -> tuple[str, ...]:
        return tuple(self._links)

    @property
    def open_streams(self) -> int:
        return sum(map(len, self._links.values()))

    def link(self, peer: str) -> Link | None:
        if peer not in self._links:
            return None
        delay = self._net.delay_seconds(self.peer, peer)
        return Link(near=not delay, round_trip_seconds=2 * delay if delay else None)

    def sign(self, data: bytes) -> bytes:
        return self._identity.sign(data)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    async def connect(self, addr: str) -> str:
        where, _, peer = addr.rpartition("/p2p/")
        if not where or not peer:
            raise BadInput(f"{addr} does not name a peer.", hint="A full address ends in /p2p/ and the peer id.")
        await self._dial(peer, [where])
        return peer

    async def open_stream(self, peer: str, protocol: str, addrs: Sequence[str] = ()) -> Stream:
        self._net.opened[protocol] += 1
        self._net.opened_by[self.peer, protocol] += 1
        if peer == self.peer:
            return self._open(self, protocol)
        if peer not in self._links:
            known = self._net.living(peer) if peer in self._known else None
            await self._dial(peer, [known.listens] if known is not None else list(addrs))
        with trio.move_on_after(DIAL_SECONDS):
            while (delay := self._net.delay_seconds(self.peer, peer)) is None and peer in self._links:
                await self._net.wait_changed()
        other = self._net.living(peer)
        if delay is None or other is None or not self.alive:
            raise _unreachable(peer)
        await trio.sleep(2 * delay)
        return self._open(other, protocol)

    async def closest_peers(self, key: bytes, count: int) -> list[PeerAddrs]:
        await trio.lowlevel.checkpoint()
        self._net.lookups += 1
        found, edge = {self.peer}, [self]
        everybody = self._net.living_count
        while edge and len(found) < everybody:
            network = edge.pop()
            for peer in list(network._known - found):
                other = self._net.living(peer)
                if other is not None and self._net.delay_seconds(self.peer, peer) is not None and self.alive:
                    found.add(peer)
                    edge.append(other)
        self._known |= found - {self.peer}
        return self._with_addrs(closest(key, found, count))

    def known_closest(self, key: bytes, count: int) -> list[PeerAddrs]:
        return self._with_addrs(closest(key, {self.peer} | self._known, count))

    def die(self) -> None:
        """Break every stream and end every handler."""
        self.alive = False
        for scope in self._running:
            scope.cancel()
        for peer in list(self._links):
            self._unlink(peer)

    def wake(self) -> None:
        """Let every stream look again whether bytes pass."""
        for streams in self._links.values():
            for stream in streams:
                stream.wake()

    def drop_silent(self) -> None:
        """Give up the connections through which nothing passes."""
        for peer in list(self._links):
            if self._net.delay_seconds(self.peer, peer) is None:
                self._unlink(peer)

    def _with_addrs(self, peers: list[str]) -> list[PeerAddrs]:
        return [PeerAddrs(peer, (self._net._peers[peer].listens,)) for peer in peers]

    async def _dial(self, peer: str, addrs: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()
        plain = [addr.rpartition("/p2p/")[0] or addr for addr in addrs]
        other = next((found for addr in plain if (found := self._net.at(addr)) is not None), None)
        if peer == self.peer or not self.alive or other is None or other.peer != peer:
            self._known.discard(peer)
            raise _unreachable(peer)
        delay = self._net.delay_seconds(self.peer, peer)
        if delay is None:
            await trio.sleep(DIAL_SECONDS)
            self._known.discard(peer)
            raise _unreachable(peer)
        await trio.sleep(2 * delay)
        for one, two in ((self, other), (other, self)):
            one._links.setdefault(two.peer, set())
            one._known.add(two.peer)

    def _open(self, other: MemoryNetwork, protocol: str) -> PipeStream:
        handler = other._handlers.get(protocol)
        if handler is None:
            raise PeerRefused(
                f"{other.peer} does not speak {protocol}.",
                hint="It may run another version of swarmnode.",
                peer=other.peer,
            )
        net, us, them = self._net, self.peer, other.peer

        def forget(stream: PipeStream) -> None:
            for network in (self, other):
                network._links.get(stream.peer, set()).discard(stream)

        here, there = open_pipe(us, them, delay_seconds=lambda: net.delay_seconds(us, them), forget=forget)
        if other is not self:
            self._links[them].add(here)
            other._links[us].add(there)

        async def run() -> None:
            with trio.CancelScope() as scope:
                other._running.add(scope)
                try:
                    await answer(protocol, handler, there)
                finally:
                    other._running.discard(scope)

        net.start(run)
        return here

    def _unlink(self, peer: str) -> None:
        for stream in list(self._links.pop(peer, ())):
            stream.drop()
        other = self._net._peers[peer]
        if self.peer in other._links:
            other._unlink(self.peer)


def _unreachable(peer: str) -> PeerUnreachable:
    return PeerUnreachable(f"{peer} cannot be reached.", hint="Check its address, and that it is running.", peer=peer)


@asynccontextmanager
async def open_memory_net() -> AsyncIterator[MemoryNet]:
    """A network inside this process; leaving it ends all its handlers."""
    async with open_background() as nursery:
        yield MemoryNet(nursery)
