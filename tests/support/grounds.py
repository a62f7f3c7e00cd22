"""Hosts for the NAT rooms that are nothing but a name, some handlers and what a test says of them."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from swarmnode.errors import PeerFault, PeerLost, PeerRefused, PeerUnreachable
from swarmnode.node.identity import create_identity
from swarmnode.node.net.network import Stream, StreamHandler
from swarmnode.node.net.pipe import open_pipe

__all__ = ["FakeGround", "World"]


class World:
    """Where grounds find each other. `delay_seconds` is what a crossing takes; `dialable` who can be dialled where."""

    def __init__(self, nursery: trio.Nursery, delay_seconds: float = 0.01) -> None:
        self.nursery = nursery
        self.delay_seconds = delay_seconds
        self.grounds: dict[str, FakeGround] = {}
        self.dialable: dict[str, str] = {}

    def ground(self, *listens: str) -> FakeGround:
        ground = FakeGround(self, listens)
        self.grounds[ground.peer] = ground
        return ground

    def connect(self, one: FakeGround, other: FakeGround, *, direct: bool) -> None:
        for each, far in ((one, other), (other, one)):
            each.links.setdefault(far.peer, set()).add("direct" if direct else "relayed")
            each.tell()

    def part(self, one: FakeGround, other: FakeGround) -> None:
        for each, far in ((one, other), (other, one)):
            each.links.pop(far.peer, None)
            each.tell()


class FakeGround:
    """A `Ground`. What it was asked to do is in `dialled`, `punched`, `announced` and `carried`."""

    def __init__(self, world: World, listens: Sequence[str]) -> None:
        self.peer = create_identity().peer
        self.listens = tuple(listens)
        self.links: dict[str, set[str]] = {}
        self.handlers: dict[str, StreamHandler] = {}
        self.sees: dict[str, str] = {}
        self.seen: dict[str, str] = {}
        self.dialled: list[tuple[str, float]] = []
        self.dialled_back: list[str] = []
        self.punched: list[tuple[str, float]] = []
        self.announced: list[tuple[str, ...]] = []
        self.carried: list[tuple[str, str]] = []
        self._world = world
        self._changed = trio.Event()

    def tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        self.handlers[protocol] = handler

    async def open_stream(self, peer: str, protocol: str, addrs: Sequence[str] = ()) -> Stream:
        await trio.sleep(self._world.delay_seconds)
        if peer not in self.links:
            raise PeerUnreachable("no connection", peer=peer)
        handler = self._world.grounds[peer].handlers.get(protocol)
        if handler is None:
            raise PeerRefused("not spoken", peer=peer)
        here, there = open_pipe(self.peer, peer, delay_seconds=lambda: self._world.delay_seconds)

        async def answer() -> None:
            try:
                await handler(there)
            except PeerFault:
                await there.reset()
            else:
                await there.aclose()

        self._world.nursery.start_soon(answer)
        return here

    def seen_at(self, peer: str) -> tuple[str, ...]:
        return (self.sees[peer],) if peer in self.sees and "direct" in self.links.get(peer, ()) else ()

    def observed(self) -> dict[str, str]:
        return dict(self.seen)

    def speakers(self, protocol: str) -> tuple[str, ...]:
        directly = [peer for peer, kinds in self.links.items() if "direct" in kinds]
        return tuple(peer for peer in directly if protocol in self._world.grounds[peer].handlers)

    def known_addrs(self, peer: str) -> tuple[str, ...]:
        return self._world.grounds[peer].listens

    def relayed(self, peer: str) -> bool:
        return self.links.get(peer) == {"relayed"}

    async def direct(self, peer: str) -> None:
        while "direct" not in self.links.get(peer, ()):
            await self._changed.wait()

    async def carry(self, stream: Stream, peer: str, relay: str, *, opened_by_us: bool) -> None:
        self.carried.append((peer, relay))
        if opened_by_us:
            self._world.nursery.start_soon(stream.receive_some, 1)
            return
        try:
            while await stream.receive_some(1000):
                pass
        except PeerLost:
            pass

    async def dial(self, peer: str, addr: str) -> None:
        self.dialled.append((addr, trio.current_time()))
        await trio.sleep(2 * self._world.delay_seconds)
        if self._world.dialable.get(addr) != peer:
            raise PeerUnreachable("nobody there", peer=peer)
        self._world.connect(self, self._world.grounds[peer], direct=True)

    async def dial_back(self, peer: str, addr: str) -> None:
        self.dialled_back.append(addr)
        await trio.sleep(2 * self._world.delay_seconds)
        if self._world.dialable.get(addr) != peer:
            raise PeerUnreachable("nobody there", peer=peer)

    async def punch(self, addr: str, seconds: float) -> None:
        self.punched.append((addr, trio.current_time()))
        await trio.sleep(seconds)

    def announce(self, addrs: Sequence[str]) -> None:
        self.announced.append(tuple(addrs))
