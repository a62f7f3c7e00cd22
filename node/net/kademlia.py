"""Who is close to a key: py-libp2p's Kademlia routing, its look-ups replaced by ours, its errors kept in here.

Knows nothing of how connections are made; `reach` makes them.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

import trio

from swarmnode.errors import PeerRefused, PeerUnreachable

from .lookup import look_up
from .p2p import KADEMLIA, DHTMode, KadDHT, PeerInfo, id_of, peer_of, peer_routing

__all__ = ["Kademlia"]

QUERY_SECONDS = 2.0
"""What one peer may take to answer one question of a look-up, dialling it included."""
SILENT_FOR_SECONDS = 20.0
"""A peer that did not answer a look-up is not asked again for so long."""
LOOKUP_SECONDS = 10.0
LOOKUP_WIDTH = 10
"""Of how many peers at least a look-up wants the answer. Each tells of the 20 closest that it knows."""
UPKEEP_SECONDS = 300.0
"""How often we look ourselves up, so that the peers near us know us; all other look-ups refresh what we know, too."""
SETTLE_SECONDS = (0.0, 5.0)
"""After joining, we look ourselves up sooner: the others may be joining too."""
UPKEEP_JITTER = 0.3
"""So much sooner or later, as a part of the wait: those who joined together are not to ask together for ever."""
MAX_QUESTIONS = 64
"""Kademlia questions answered at a time; py-libp2p resets the others, by default beyond 12."""

_log = logging.getLogger("swarmnode.network")

peer_routing.QUERY_TIMEOUT = QUERY_SECONDS + 1.0  # there is no way to set it per object; ours ends first


class Kademlia:
    """One node's routing table and its questions to others.

    Args:
        host: py-libp2p's.
        peer: our own peer id.
        connected: the peers with a connection now that others can reach, too.
        is_connected: whether there is a connection to a peer; quick, it is asked with every question.
        reach: have a connection to a peer, by the addresses known of it. Raises `PeerUnreachable`, `PeerRefused`.
    """

    def __init__(
        self,
        host: Any,
        peer: str,
        connected: Callable[[], Collection[str]],
        is_connected: Callable[[str], bool],
        reach: Callable[[str], Awaitable[None]],
    ) -> None:
        self._peer = peer
        self._connected = connected
        self._is_connected = is_connected
        self._reach = reach
        self._dht = KadDHT(
            # two peers of one subnet per bucket is too few for machines that stand together
            host,
            DHTMode.SERVER,
            enable_providers=False,
            enable_values=False,
            max_peers_per_subnet=0,
        )
        self._dht._inbound_limiter = trio.CapacityLimiter(MAX_QUESTIONS)
        host.set_stream_handler(KADEMLIA, self._dht.handle_stream)
        self._silent_until: dict[str, float] = {}
        self._joined = trio.Event()

    def known(self) -> set[str]:
        """The peers in the routing table."""
        return {peer for each in self._dht.routing_table.get_peer_ids() if (peer := peer_of(each)) is not None}

    async def add(self, info: PeerInfo) -> None:
        """Take a peer that speaks Kademlia into the table."""
        await self._dht.routing_table.add_peer(info)

    def forget(self, peer: str) -> None:
        """Take a peer out of the table."""
        self._dht.routing_table.remove_peer(id_of(peer))

    def joined(self) -> None:
        """There is a new way into the swarm: look ourselves up soon."""
        self._joined.set()

    async def look_up(self, key: bytes, width: int = LOOKUP_WIDTH) -> list[str]:
        """The peers other than us closest to a key, as many as wanted or a few more; each has just answered."""
        known = self.known().union(self._connected()) - {self._peer}
        return await look_up(key, known, max(width, LOOKUP_WIDTH), partial(self._ask, key), LOOKUP_SECONDS)

    async def reach_soon(self, peer: str) -> None:
        """Have a connection to a peer that did not disappoint us lately. Raises `PeerUnreachable`."""
        if self._is_connected(peer):
            return
        if self._silent_until.get(peer, 0.0) > trio.current_time():
            raise PeerUnreachable(f"{peer} did not answer lately.", peer=peer)
        try:
            with trio.fail_after(QUERY_SECONDS):
                await self._reach(peer)
        except (PeerUnreachable, PeerRefused, trio.TooSlowError) as error:
            self._note_silent(peer)
            raise PeerUnreachable(f"{peer} cannot be reached.", peer=peer) from error

    async def upkeep(self) -> None:
        """Keep the table, for ever."""
        ours = id_of(self._peer).to_bytes()
        waits = iter(SETTLE_SECONDS)
        while True:
            wait = next(waits, UPKEEP_SECONDS)
            with trio.move_on_after(wait * random.uniform(1 - UPKEEP_JITTER, 1 + UPKEEP_JITTER)):
                await self._joined.wait()
            if self._joined.is_set():
                self._joined = trio.Event()
                waits = iter(SETTLE_SECONDS)
            elif self._connected() or self._dht.routing_table.size():
                for key in (ours, os.urandom(32)) if wait == UPKEEP_SECONDS else (ours,):
                    await self.look_up(key)

    async def _ask(self, key: bytes, peer: str) -> set[str] | None:
        """Whom a peer knows close to a key; None when it does not answer."""
        try:
            with trio.fail_after(QUERY_SECONDS):
                found = await self._dht.peer_routing._query_peer_for_closest(id_of(peer), key)
        except trio.TooSlowError:
            if not self._is_connected(peer):
                self._note_silent(peer)
            return None
        except Exception as error:  # noqa: BLE001 - foreign code fed by a peer: it may raise anything
            _log.debug("%s was asked in vain: %r", peer, error)
            return None
        if not found and not self._is_connected(peer):
            return None  # that is how py-libp2p tells of a failure; who truly knows nobody is still connected
        return {each for peer_id in found if (each := peer_of(peer_id)) not in (None, self._peer)}

    def _note_silent(self, peer: str) -> None:
        now = trio.current_time()
        self._silent_until = {each: until for each, until in self._silent_until.items() if until > now}
        self._silent_until[peer] = now + SILENT_FOR_SECONDS
        self.forget(peer)
