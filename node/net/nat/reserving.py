"""A place on several relays, kept for as long as we need one. Circuit relay v2, the side that wants to be reached."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from swarmnode.errors import PeerFault, PeerRefused
from swarmnode.node.net.circuits import MARK, host_of, is_private, without_peer
from swarmnode.node.net.network import Stream

from .ground import Ground
from .ledger import Status
from .messages import (
    HOP,
    STOP,
    Connect,
    Reserve,
    Reserved,
    in_time,
    receive_hop,
    receive_stop,
    send_hop,
    send_stop,
)

__all__ = ["Held", "Reservations", "renew_at", "wanted"]

RELAYS_WANTED = 3
"""One may go down while another is busy; each more is one more address to try and one more place taken."""
MAX_RELAY_ADDRS = 2
"""Of one relay's addresses, those that go into our record: one of each transport."""
RESERVE_SECONDS = 5.0
RETRY_SECONDS = 60.0
"""A relay that said no is asked again after so long."""
MIN_RENEW_SECONDS = 30.0
MAX_RENEW_SECONDS = 1200.0
"""A third of what relays of libp2p promise: two renewals may fail. It also bounds what a wrong clock can do."""

_log = logging.getLogger("swarmnode.nat")


@dataclass(frozen=True, slots=True)
class Held:
    """A place on a relay.

    Attributes:
        addrs: where the relay is, with its peer id.
        renew_at: when it is time to ask again, in trio's time.
    """

    addrs: tuple[str, ...]
    renew_at: float


def renew_at(lasts_seconds: float, now: float) -> float:
    """When to renew what a relay promises for so long: halfway, whatever its clock says beside ours."""
    return now + min(max(lasts_seconds / 2, MIN_RENEW_SECONDS), MAX_RENEW_SECONDS)


def wanted(
    held: Mapping[str, Held], relays: Iterable[str], refused: Mapping[str, float], now: float
) -> tuple[list[str], list[str]]:
    """Which relays to ask now, and which of those held have gone.

    Args:
        relays: those we have a direct connection to, best first.
        refused: which of them said no, and until when they are left alone.
    """
    here = list(relays)
    gone = [relay for relay in held if relay not in here]
    due = [relay for relay, each in held.items() if relay in here and each.renew_at <= now]
    missing = RELAYS_WANTED - (len(held) - len(gone))
    new = [relay for relay in here if relay not in held and refused.get(relay, 0.0) <= now]
    return due + new[: max(0, missing)], gone


class Reservations:
    """Our places on relays. `check` keeps them; those who come through them are let in after `open`."""

    def __init__(self, ground: Ground, wall_clock: Callable[[], float] = time.time) -> None:
        self._ground = ground
        self._wall_clock = wall_clock
        self._held: dict[str, Held] = {}
        self._refused: dict[str, float] = {}

    @property
    def relays(self) -> tuple[str, ...]:
        """The relays we can be reached through now."""
        return tuple(self._held)

    @property
    def addrs(self) -> tuple[str, ...]:
        """Our relayed addresses, one of each relay first."""
        ranked = [each.addrs[rank : rank + 1] for rank in range(MAX_RELAY_ADDRS) for each in self._held.values()]
        return tuple(f"{addr}{MARK}" for some in ranked for addr in some)

    def open(self) -> None:
        """Take the connections that come through relays from now on."""
        self._ground.handle(STOP, self._answer)

    def drop(self) -> None:
        """Let all places lapse: we need none any more."""
        self._held.clear()

    async def check(self) -> None:
        """Ask the relays that it is time to ask. To be called every few seconds while places are wanted."""
        now = trio.current_time()
        self._refused = {relay: until for relay, until in self._refused.items() if until > now}
        ask, gone = wanted(self._held, self._ground.speakers(HOP), self._refused, now)
        for relay in gone:
            _log.info("the relay %s has gone", relay)
            del self._held[relay]
        async with trio.open_nursery() as nursery:
            for relay in ask:
                nursery.start_soon(self._reserve, relay)

    async def _reserve(self, relay: str) -> None:
        try:
            with in_time(RESERVE_SECONDS, relay):
                stream = await self._ground.open_stream(relay, HOP)
                try:
                    await send_hop(stream, Reserve())
                    answer = await receive_hop(stream)
                finally:
                    with trio.CancelScope(shield=True):
                        await stream.aclose()
            if not isinstance(answer, Reserved) or answer.status != Status.OK:
                raise PeerRefused("it has no place for us", peer=relay)
        except PeerFault as error:
            _log.info("the relay %s does not take us: %s", relay, error)
            self._refused[relay] = trio.current_time() + RETRY_SECONDS
            self._held.pop(relay, None)
            return
        if relay not in self._held:
            _log.info("this node can be reached through the relay %s", relay)
        addrs = _usable(relay, answer.addrs, self._ground.seen_at(relay))
        lasts = answer.expires_at - self._wall_clock()
        self._held[relay] = Held(addrs, renew_at(lasts, trio.current_time()))

    async def _answer(self, stream: Stream) -> None:
        """Somebody wants us through a relay; the stream becomes a connection for as long as it lasts."""
        relay = stream.peer
        with in_time(RESERVE_SECONDS, relay):
            asked = await receive_stop(stream)
            if not isinstance(asked, Connect):
                await send_stop(stream, Reserved(Status.UNEXPECTED_MESSAGE))
                return
            if relay not in self._held or asked.peer == self._ground.peer:
                await send_stop(stream, Reserved(Status.PERMISSION_DENIED))
                return
            await send_stop(stream, Reserved(Status.OK))
        await self._ground.carry(stream, asked.peer, relay, opened_by_us=False)


def _usable(relay: str, claimed: Sequence[str], seen: Collection[str]) -> tuple[str, ...]:
    """A relay's addresses for others: what it claims, the public first; where we see it ourselves, if nothing else."""
    plain = list(dict.fromkeys(without_peer(addr) for addr in claimed if MARK not in addr))
    public = [addr for addr in plain if not is_private(addr)]
    hosts = {host_of(addr) for addr in seen}
    chosen = public or [addr for addr in plain if host_of(addr) in hosts] or list(seen) or plain
    return tuple(f"{addr}/p2p/{relay}" for addr in chosen[:MAX_RELAY_ADDRS])
