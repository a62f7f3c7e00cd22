"""One node behind whatever it is behind: finds out, keeps places on relays when it must, punches when it can."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import trio

from swarmnode.errors import PeerFault, PeerUnreachable
from swarmnode.node.net.circuits import MARK, Circuit, is_private

from .autonat import AutoNat
from .ground import Ground
from .ledger import Status
from .messages import HOP, Connect, Reserved, in_time, receive_hop, send_hop
from .punching import Outcome, Puncher
from .reachability import Reach, behind_nat, mapping
from .relay import Relay
from .reserving import Reservations

__all__ = ["Keeper"]

LOOK_SECONDS = 1.0
"""How often a node that listens looks whether somebody sees it elsewhere than it is, until it knows."""
STEADY_SECONDS = 5.0
"""The same once it knows; also how soon a relay that has gone is noticed."""
RECHECK_SECONDS = 300.0
"""How often others are asked again whether they can dial us; sooner while nobody has answered."""
RETRY_SECONDS = 15.0
HOP_SECONDS = 12.0
"""A relay has connected us by then, or has said that it cannot: it gives the other end ten seconds."""
UNILATERAL_SECONDS = 2.0
"""A peer that came through a relay but says it has a public address is dialled there first, for so long."""

_log = logging.getLogger("swarmnode.nat")


class Keeper:
    """Relay, reservations, AutoNAT and punching of one node."""

    def __init__(self, ground: Ground, *, relays: bool) -> None:
        self._ground = ground
        self.relay = Relay(ground)
        self.reservations = Reservations(ground)
        self.autonat = AutoNat(ground)
        self.puncher = Puncher(ground)
        self._reach: Reach = "unknown"
        self._asked_at = float("-inf")
        if relays:
            self.relay.open()
        self.reservations.open()
        self.autonat.open()
        self.puncher.open()

    @property
    def reach(self) -> Reach:
        """Whether others can dial us, as far as we know."""
        return self._reach

    async def run(self) -> None:
        """Find out for ever whether we can be dialled, and hold places on relays while we cannot."""
        announced: tuple[str, ...] = ()
        while True:
            if (reach := await self._look()) != self._reach:
                self._reach = reach
                self._say()
            if reach == "closed":
                await self.reservations.check()
            else:
                self.reservations.drop()
            addrs = self.reservations.addrs or self.autonat.open_addrs
            if addrs != announced:
                announced = addrs
                self._ground.announce(addrs)
            await trio.sleep(LOOK_SECONDS if reach == "unknown" else STEADY_SECONDS)

    async def _look(self) -> Reach:
        """What is known now; asks others where that is worth it."""
        observed = self._ground.observed()
        if not observed:
            return "unknown"
        if not behind_nat(self._ground.listens, observed.values()) and not _is_public(observed.values()):
            return "open"  # a local network or one machine: those who see us are where we are
        now = trio.current_time()
        wait = RECHECK_SECONDS if self.autonat.reach != "unknown" else RETRY_SECONDS
        if now - self._asked_at >= wait:
            self._asked_at = now
            await self.autonat.ask()
        return self.autonat.reach

    async def dial(self, peer: str, circuit: Circuit) -> None:
        """Connect to a peer through a relay. Raises `PeerUnreachable`."""
        relay = circuit.relay
        if relay in (peer, self._ground.peer) or self._ground.relayed(relay):
            raise PeerUnreachable(f"{peer} cannot be reached through {relay}.", peer=peer)
        try:
            with in_time(HOP_SECONDS, relay):
                stream = await self._ground.open_stream(relay, HOP, [circuit.relay_addr])
                try:
                    await send_hop(stream, Connect(peer))
                    answer = await receive_hop(stream)
                    if not isinstance(answer, Reserved) or answer.status != Status.OK:
                        raise PeerUnreachable(f"The relay {relay} says {_named(answer)}.", peer=peer)
                    await self._ground.carry(stream, peer, relay, opened_by_us=True)
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await stream.reset()
                    raise
        except PeerFault as fault:
            raise PeerUnreachable(f"No way through the relay {relay}: {fault.message}", peer=peer) from fault

    async def came_through(self, peer: str, relay: str) -> None:
        """A peer has dialled us through a relay: try for a direct connection, and say how that went."""
        public = [addr for addr in self._ground.known_addrs(peer) if MARK not in addr and not is_private(addr)]
        with trio.move_on_after(UNILATERAL_SECONDS):
            await self._try(peer, public)
        outcome: Outcome = "direct" if not self._ground.relayed(peer) else await self.puncher.lead(peer)
        if outcome == "direct":
            _log.info("%s, which came through the relay %s, is connected directly now", peer, relay)
        else:
            _log.info("%s stays on the relay %s: %s", peer, relay, _WHY[outcome])

    def gone(self, peer: str) -> None:
        """The last direct connection to a peer has ended."""
        self.relay.gone(peer)

    async def _try(self, peer: str, addrs: Sequence[str]) -> None:
        for addr in addrs[:2]:
            try:
                await self._ground.dial(peer, addr)
            except PeerFault as fault:
                _log.debug("%s came through a relay and cannot be called back: %s", peer, fault.message)
                continue
            return

    def _say(self) -> None:
        if self._reach == "closed":
            kind = mapping(self._ground.observed().values())
            why = {"same": "behind a NAT", "varies": "behind a NAT that cannot be foreseen", "unknown": "behind a NAT"}
            _log.info("this node cannot be dialled: it is %s or a firewall; looking for relays", why[kind])
        elif self._reach == "open":
            _log.info("this node can be dialled")


_WHY: dict[Outcome, str] = {
    "direct": "",
    "no address": "one of the two does not know where it is seen over QUIC",
    "failed": "no packet came through in three attempts",
    "refused": "it does not punch",
}


def _is_public(addrs: Iterable[str]) -> bool:
    return any(not is_private(addr) for addr in addrs)


def _named(answer: object) -> str:
    known = {int(each): each.name for each in Status}
    return known.get(answer.status, str(answer.status)) if isinstance(answer, Reserved) else "something else"
