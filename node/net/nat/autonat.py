"""Asking others to dial us, and dialling those who ask: AutoNAT 1.0.0 of the libp2p specifications."""

from __future__ import annotations

import logging
import random

import trio

from swarmnode.errors import PeerFault
from swarmnode.node.net.circuits import without_peer
from swarmnode.node.net.network import Stream

from .ground import Ground
from .messages import AUTONAT, DialBack, DialledBack, in_time, receive_autonat, send_autonat
from .reachability import VERDICT_SECONDS, Reach, Verdict, dial_back_addrs, judge, presumed_addrs

__all__ = ["AutoNat"]

DIAL_SECONDS = 4.0
"""What one dial back may take."""
ANSWER_SECONDS = 15.0
"""The peer asked may take so long: it dials several addresses, one after the other at worst."""
ASKED_AT_ONCE = 3
"""Peers asked in one round; their majority counts."""
MAX_DIAL_BACKS = 8
"""Peers that we dial back at a time."""
DIAL_BACK_EVERY_SECONDS = 10.0
"""One peer may ask for it so often."""
MAX_REMEMBERED = 1024
"""Peers whose last dial back is remembered; beyond it, who asks first comes first."""
_OK, _DIAL_ERROR, _DIAL_REFUSED, _BAD_REQUEST = 0, 100, 101, 200

_log = logging.getLogger("swarmnode.nat")


class AutoNat:
    """Both sides of AutoNAT for one node."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._verdicts: dict[str, Verdict] = {}
        self._reached: dict[str, str] = {}
        self._dialled: dict[str, float] = {}
        self._busy = trio.CapacityLimiter(MAX_DIAL_BACKS)

    def open(self) -> None:
        """Dial back whoever asks from now on."""
        self._ground.handle(AUTONAT, self._answer)

    @property
    def reach(self) -> Reach:
        """What those asked so far found."""
        return judge(self._verdicts, trio.current_time())

    @property
    def open_addrs(self) -> tuple[str, ...]:
        """Where others have reached us, other than where we listen ourselves; none while the majority cannot."""
        if self.reach != "open":
            return ()
        return tuple(sorted(set(self._reached.values()) - set(self._ground.listens)))

    async def ask(self) -> None:
        """Let some peers dial us."""
        now = trio.current_time()
        self._verdicts = {peer: each for peer, each in self._verdicts.items() if now - each.at < VERDICT_SECONDS}
        self._reached = {peer: addr for peer, addr in self._reached.items() if peer in self._verdicts}
        peers = [peer for peer in self._ground.speakers(AUTONAT) if peer in self._ground.observed()]
        async with trio.open_nursery() as nursery:
            for peer in random.sample(peers, min(len(peers), ASKED_AT_ONCE)):
                nursery.start_soon(self._ask, peer)

    async def _ask(self, peer: str) -> None:
        addrs = presumed_addrs(self._ground.listens, self._ground.observed().values())
        try:
            with in_time(ANSWER_SECONDS, peer):
                stream = await self._ground.open_stream(peer, AUTONAT)
                try:
                    await send_autonat(stream, DialBack(self._ground.peer, tuple(addrs)))
                    answer = await receive_autonat(stream)
                finally:
                    with trio.CancelScope(shield=True):
                        await stream.aclose()
        except PeerFault as fault:
            _log.debug("%s did not say whether it can dial us: %s", peer, fault.message)
            return
        if isinstance(answer, DialledBack) and answer.status in (_OK, _DIAL_ERROR):
            self._verdicts[peer] = Verdict(answer.status == _OK, trio.current_time())
            self._reached.pop(peer, None)
            if answer.status == _OK and answer.addr in addrs:
                self._reached[peer] = answer.addr
            _log.debug("%s %s dial us", peer, "can" if answer.status == _OK else "cannot")

    async def _answer(self, stream: Stream) -> None:
        with in_time(DIAL_SECONDS, stream.peer):
            asked = await receive_autonat(stream)
        if not isinstance(asked, DialBack) or asked.peer != stream.peer:
            await send_autonat(stream, DialledBack(_BAD_REQUEST))
            return
        plain = [without_peer(addr) for addr in asked.addrs]
        addrs = dial_back_addrs(plain, self._ground.seen_at(stream.peer))
        if not addrs or not self._may(stream.peer, trio.current_time()):
            await send_autonat(stream, DialledBack(_DIAL_REFUSED))
            return
        async with self._busy:
            reached = await self._dial_back(stream.peer, addrs)
        await send_autonat(stream, DialledBack(_OK, reached) if reached else DialledBack(_DIAL_ERROR))

    async def _dial_back(self, peer: str, addrs: list[str]) -> str:
        """The first address at which the peer answers; empty when it does at none."""
        reached = ""
        async with trio.open_nursery() as nursery:

            async def dial(addr: str) -> None:
                nonlocal reached
                try:
                    await self._ground.dial_back(peer, addr)
                except PeerFault:
                    return
                reached = addr
                nursery.cancel_scope.cancel()

            nursery.cancel_scope.deadline = trio.current_time() + DIAL_SECONDS
            for addr in addrs:
                nursery.start_soon(dial, addr)
        return reached

    def _may(self, peer: str, now: float) -> bool:
        """Whether a peer may have us dial now."""
        self._dialled = {each: at for each, at in self._dialled.items() if now - at < DIAL_BACK_EVERY_SECONDS}
        if peer in self._dialled or len(self._dialled) >= MAX_REMEMBERED or self._busy.available_tokens == 0:
            return False
        self._dialled[peer] = now
        return True
