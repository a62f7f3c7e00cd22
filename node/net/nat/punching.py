"""From a relayed connection to a direct one: DCUtR of the libp2p specifications, for QUIC.

Who was dialled through the relay leads: it measures the way through the relay, so that the other's first packet and its
own leave at the same moment. On SYNC the other dials, as QUIC's client. The leader sends packets that mean nothing from
its listening socket, which makes its own NAT let the client's in, and accepts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import trio

from swarmnode.errors import PeerFault, PeerLost, ProtocolViolation
from swarmnode.node.net.network import Stream

from .ground import Ground
from .messages import DCUTR, Kind, Punch, in_time, receive_punch, send_punch
from .reachability import MAX_PUNCH_ADDRS, punch_addrs

__all__ = ["ATTEMPTS", "Outcome", "Puncher"]

ATTEMPTS = 3
"""As often as the specification says; a fourth try succeeds about never."""
ATTEMPT_SECONDS = 2.5
"""A punch that works does so within a second; behind a slow relay the two sides are late for each other."""
PUNCH_SECONDS = 1.5
"""For so long the leader keeps its NAT open in one attempt."""
TALK_SECONDS = 10.0
"""One message through the relay takes no longer."""
MAX_HALF_TRIP_SECONDS = 2.0
"""Nobody makes us wait longer before we begin, whatever it does to the time we measure."""

Outcome = Literal["direct", "no address", "failed", "refused"]

_log = logging.getLogger("swarmnode.nat")


class Puncher:
    """Both roles, for one node."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def open(self) -> None:
        """Follow whoever leads from now on."""
        self._ground.handle(DCUTR, self._follow)

    async def lead(self, peer: str) -> Outcome:
        """Try for a direct connection to a peer that dialled us through a relay. Raises nothing."""
        try:
            with in_time(TALK_SECONDS, peer):
                stream = await self._ground.open_stream(peer, DCUTR)
            try:
                return await self._attempts(stream, peer)
            finally:
                with trio.CancelScope(shield=True):
                    await stream.aclose()
        except PeerFault as fault:
            _log.debug("no punching with %s: %s", peer, fault.message)
            return "refused"

    async def _attempts(self, stream: Stream, peer: str) -> Outcome:
        for _ in range(ATTEMPTS):
            if not (ours := self._own()):
                return "no address"
            asked_at = trio.current_time()
            with in_time(TALK_SECONDS, peer):
                await send_punch(stream, Punch(Kind.CONNECT, tuple(ours)))
                answer = await receive_punch(stream)
            if answer is None or answer.kind != Kind.CONNECT:
                raise ProtocolViolation(f"{peer} did not answer CONNECT with CONNECT.", peer=peer)
            half_trip = min((trio.current_time() - asked_at) / 2, MAX_HALF_TRIP_SECONDS)
            if not (theirs := punch_addrs(answer.addrs)):
                return "no address"
            await send_punch(stream, Punch(Kind.SYNC))
            await trio.sleep(half_trip)
            if await self._let_in(peer, theirs):
                return "direct"
        return "failed"

    async def _let_in(self, peer: str, addrs: Sequence[str]) -> bool:
        """Open our NAT towards these addresses; whether the peer has come in."""
        with trio.move_on_after(ATTEMPT_SECONDS):
            async with trio.open_nursery() as nursery:
                for addr in addrs:
                    nursery.start_soon(self._ground.punch, addr, PUNCH_SECONDS)
                await self._ground.direct(peer)
                nursery.cancel_scope.cancel()
        return not self._ground.relayed(peer)

    async def _follow(self, stream: Stream) -> None:
        """Answer a leader: tell where we are seen, and dial it when it says so."""
        peer = stream.peer
        if not self._ground.relayed(peer):
            raise PeerLost(f"{peer} wants to punch, but is connected directly.", peer=peer)
        for _ in range(ATTEMPTS):
            with in_time(TALK_SECONDS + ATTEMPT_SECONDS, peer):
                asked = await receive_punch(stream)
            if asked is None:
                return
            if asked.kind != Kind.CONNECT:
                raise ProtocolViolation(f"{peer} began with something else than CONNECT.", peer=peer)
            theirs = punch_addrs(asked.addrs)
            with in_time(TALK_SECONDS, peer):
                await send_punch(stream, Punch(Kind.CONNECT, tuple(self._own())))
                if await receive_punch(stream) != Punch(Kind.SYNC):
                    return
            if await self._dial_in(peer, theirs):
                return

    async def _dial_in(self, peer: str, addrs: Sequence[str]) -> bool:
        """Dial a leader at all of its addresses at once; whether that made a direct connection."""

        async def dial(addr: str) -> None:
            try:
                await self._ground.dial(peer, addr)
            except PeerFault as fault:
                _log.debug("not through to %s at %s: %s", peer, addr, fault.message)
            else:
                nursery.cancel_scope.cancel()

        with trio.move_on_after(ATTEMPT_SECONDS):
            async with trio.open_nursery() as nursery:
                for addr in addrs[:MAX_PUNCH_ADDRS]:
                    nursery.start_soon(dial, addr)
        return not self._ground.relayed(peer)

    def _own(self) -> list[str]:
        return punch_addrs(self._ground.observed().values())
