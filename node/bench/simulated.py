"""A swarm in simulated time: servers that choose, settle and move by `placement.py`, without a network.

Deterministic by its seed. Records take a moment to be seen by others; blocks take time to load; a server that crashes
stays in the directory until its record ends.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from swarmnode.node.defaults import RECORD_LIFETIME_SECONDS
from swarmnode.node.placement import (
    LOOK_SECONDS,
    Coverage,
    Options,
    Patience,
    Share,
    Window,
    choose_window,
    coverage_of,
    settle,
    should_move,
)

__all__ = ["Pond", "Server", "make_server"]

SEEN_SECONDS: Final = 1.0
"""A record is seen by others within so long, each time after another part of it."""

BLOCK_SECONDS: Final = 2.0
"""To load a block."""


@dataclass(slots=True)
class Server:
    """One server: what it can hold, what it has announced, what it answers for.

    Attributes:
        share: announced; None while it is not there.
        online: whether its blocks are loaded.
        moves: how often it has left its blocks for others.
    """

    options: Options
    length: int
    phase: float
    patience: Patience
    share: Share | None = None
    online: bool = False
    moves: int = 0
    turn: int = 0  # what was planned for an earlier turn is void

    @property
    def peer(self) -> str:
        return self.options.peer


@dataclass(slots=True)
class Pond:
    """All of a simulation.

    Args:
        num_blocks: of the model.
        settling: whether newcomers look a second time, once they have announced what they chose.
        moving: whether running servers look and move.
        wavering: by which share at most a server's rate, as it measures itself, changes between two looks.

    Attributes:
        now: seconds.
        moved: when servers moved.
        log: at each change of what is online: the time, how many blocks nobody answers for, and the worst coverage.
    """

    num_blocks: int
    seed: int
    settling: bool = True
    moving: bool = True
    wavering: float = 0.0
    now: float = 0.0
    servers: dict[str, Server] = field(default_factory=dict)
    moved: list[float] = field(default_factory=list)
    log: list[tuple[float, int, int]] = field(default_factory=list)
    _rng: random.Random = field(init=False)
    _plans: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)
    _seen: dict[str, Share] = field(default_factory=dict)
    _version: int = 0
    _looks: dict[str, tuple[int, Window | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    # What happens from outside.

    def join(self, server: Server) -> None:
        """A server comes: it looks, chooses, announces, looks again, settles and loads."""
        self.servers[server.peer] = server
        self._take(server, choose_window(self._coverage_without(server.peer), server.options))
        self._after(LOOK_SECONDS * server.phase, server, lambda: self._look(server))

    def leave(self, peer: str, *, politely: bool) -> None:
        """A server goes; one that crashes is believed in for as long as its record lives."""
        server = self.servers.pop(peer)
        server.turn += 1
        server.share, server.online = None, False
        self._note()
        self._at(self.now + (self._delay() if politely else RECORD_LIFETIME_SECONDS), lambda: self._forget(peer))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self._plans and self._plans[0][0] <= until:
            self.now, _, plan = heapq.heappop(self._plans)
            plan()
        self.now = until

    # What is to be seen.

    @property
    def capacity(self) -> int:
        """How many blocks the servers could hold, each once."""
        return sum(server.length for server in self.servers.values())

    @property
    def announced(self) -> Coverage:
        """By what the servers hold or load."""
        return coverage_of((each.share for each in self.servers.values() if each.share is not None), self.num_blocks)

    @property
    def answered(self) -> Coverage:
        """By what is loaded."""
        online = (each.share for each in self.servers.values() if each.share is not None and each.online)
        return coverage_of(online, self.num_blocks)

    # What servers do.

    def _take(self, server: Server, window: Window) -> None:
        seen = frozenset(self._seen)
        self._announce(server, window)
        self._after(2 * SEEN_SECONDS, server, lambda: self._settle(server, seen))

    def _settle(self, server: Server, seen: frozenset[str]) -> None:
        assert server.share is not None
        others = [share for peer, share in self._seen.items() if peer != server.peer]
        new = [share for share in others if share.peer not in seen]
        old = [share for share in others if share.peer in seen]
        window = (server.share.start, server.share.end)
        if self.settling:
            window = settle(server.share, server.options, new, old, self.num_blocks)
        if window != (server.share.start, server.share.end):
            self._announce(server, window)
        self._after(BLOCK_SECONDS * server.length, server, lambda: self._go_online(server))

    def _go_online(self, server: Server) -> None:
        server.online = True
        self._note()

    def _look(self, server: Server) -> None:
        self._after(LOOK_SECONDS, server, lambda: self._look(server))
        if not self.moving or not server.online:
            return
        assert server.share is not None
        if self.wavering:
            self._announce(server, (server.share.start, server.share.end))
        window = self._wish(server, server.share)
        if server.patience.is_over(window is not None, self.now):
            assert window is not None
            server.online = False
            server.moves += 1
            self.moved.append(self.now)
            self._note()
            self._take(server, window)

    def _wish(self, server: Server, share: Share) -> Window | None:
        """`should_move` by what is seen now; reckoned again only when that has changed."""
        version, window = self._looks.get(server.peer, (-1, None))
        if version != self._version:
            others = [each for peer, each in self._seen.items() if peer != server.peer]
            window = should_move(share, server.options, others, self.num_blocks)
            self._looks[server.peer] = self._version, window
        return window

    def _announce(self, server: Server, window: Window) -> None:
        start, end = window
        rate = server.options.rate_of(end - start)
        if self.wavering:
            rate = max(1, round(rate * (1 + self.wavering * self._rng.uniform(-1, 1))))
        share = server.share = Share(server.peer, start, end, rate)

        def show() -> None:
            if server.share is share:
                self._seen[server.peer] = share
                self._version += 1

        self._at(self.now + self._delay(), show)

    def _forget(self, peer: str) -> None:
        if peer not in self.servers:
            self._seen.pop(peer, None)
            self._version += 1

    def _coverage_without(self, peer: str) -> Coverage:
        return coverage_of((share for share in self._seen.values() if share.peer != peer), self.num_blocks)

    def _note(self) -> None:
        answered = self.answered
        self.log.append((self.now, answered.count(0), min(answered)))

    def _delay(self) -> float:
        return SEEN_SECONDS * self._rng.random()

    def _after(self, seconds: float, server: Server, plan: Callable[[], None]) -> None:
        turn = server.turn

        def still() -> None:
            if server.turn == turn:
                plan()

        self._at(self.now + seconds, still)

    def _at(self, when: float, plan: Callable[[], None]) -> None:
        heapq.heappush(self._plans, (when, next(self._order), plan))


def make_server(name: str, num_blocks: int, length: int, block_rate: int, rng: random.Random) -> Server:
    """A server that can hold any `length` blocks at once and makes `block_rate / length` of them (see `worth`)."""
    windows = [(start, start + length) for start in range(num_blocks - length + 1)]
    options = Options(name, windows, lambda blocks: max(1, block_rate // blocks))
    return Server(options, length, rng.random(), Patience(name))
