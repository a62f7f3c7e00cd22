"""A relay: peers reserve a place with us, others reach them through us. Circuit relay v2, the hop side.

It carries bytes that it cannot read: what flows is encrypted between the two ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from swarmnode.errors import PeerFault, PeerLost
from swarmnode.node.background import race, together
from swarmnode.node.net.circuits import holder_of
from swarmnode.node.net.network import Stream

from .ground import Ground
from .ledger import MAX_CIRCUIT_SECONDS, MAX_IDLE_SECONDS, RESERVATION_SECONDS, Ledger, Pace, Status
from .messages import (
    HOP,
    STOP,
    Connect,
    Limit,
    Reserve,
    Reserved,
    in_time,
    receive_hop,
    receive_stop,
    send_hop,
    send_stop,
)

__all__ = ["Relay"]

ASK_SECONDS = 10.0
"""A peer has said by then what it wants of us, or that it takes the connection which another wants to it."""
PIECE_BYTES = 64 * 1024
"""Read and passed on at once: what both ends' windows hold is all that a circuit can pile up."""
LIMIT = Limit(seconds=int(MAX_CIRCUIT_SECONDS))

_log = logging.getLogger("swarmnode.nat")


class Relay:
    """The relaying of one node. `open` it and let `sweep` run.

    Attributes:
        carried_bytes: in all circuits, both ways.
    """

    def __init__(self, ground: Ground, wall_clock: Callable[[], float] = time.time) -> None:
        self.ledger = Ledger()
        self.carried_bytes = 0
        self._ground = ground
        self._wall_clock = wall_clock

    def open(self) -> None:
        """Take reservations and carry circuits from now on."""
        self._ground.handle(HOP, self._answer)

    def gone(self, peer: str) -> None:
        """A peer has no direct connection to us any more: nobody can reach it through us."""
        self.ledger.release(peer)

    async def _answer(self, stream: Stream) -> None:
        with in_time(ASK_SECONDS, stream.peer):
            asked = await receive_hop(stream)
        seen = self._ground.seen_at(stream.peer)
        if not seen:  # a circuit within a circuit would hide who uses us
            await send_hop(stream, Reserved(Status.PERMISSION_DENIED))
        elif isinstance(asked, Reserve):
            await self._reserve(stream, holder_of(seen[0]))
        elif isinstance(asked, Connect):
            await self._connect(stream, asked.peer)
        else:
            await send_hop(stream, Reserved(Status.UNEXPECTED_MESSAGE))

    async def _reserve(self, stream: Stream, host: str) -> None:
        status = self.ledger.reserve(stream.peer, host, trio.current_time())
        if status != Status.OK:
            _log.info("no place for %s, which wants to be reached through us", stream.peer)
            await send_hop(stream, Reserved(status))
            return
        _log.debug("%s can be reached through us", stream.peer)
        expires_at = int(self._wall_clock() + RESERVATION_SECONDS)
        addrs = tuple(f"{addr}/p2p/{self._ground.peer}" for addr in self._ground.listens)
        await send_hop(stream, Reserved(status, expires_at, addrs, LIMIT))

    async def _connect(self, stream: Stream, target: str) -> None:
        source = stream.peer
        status = self.ledger.begin(source, target, trio.current_time())
        if status != Status.OK:
            _log.info("%s is not connected to %s: %s", source, target, status.name)
            await send_hop(stream, Reserved(status))
            return
        try:
            far = await self._stop(source, target)
            if far is None:
                await send_hop(stream, Reserved(Status.CONNECTION_FAILED))
                return
            try:
                await send_hop(stream, Reserved(Status.OK, limit=LIMIT))
                await self._splice(stream, far)
            finally:
                with trio.CancelScope(shield=True):
                    await far.reset()
        finally:
            self.ledger.end(source, target)

    async def _stop(self, source: str, target: str) -> Stream | None:
        """A stream to the peer that is wanted, once it has said yes."""
        try:
            with in_time(ASK_SECONDS, target):
                far = await self._ground.open_stream(target, STOP)
                try:
                    await send_stop(far, Connect(source, LIMIT))
                    answer = await receive_stop(far)
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await far.reset()
                    raise
        except PeerFault as error:
            _log.debug("%s cannot be had for %s: %s", target, source, error)
            return None
        if isinstance(answer, Reserved) and answer.status == Status.OK:
            return far
        await far.reset()
        return None

    async def _splice(self, one: Stream, other: Stream) -> None:
        """Carry bytes both ways until both ends have finished, or one is lost, or time is up."""
        last_bytes = trio.current_time()

        async def carry(source: Stream, sink: Stream) -> None:
            nonlocal last_bytes
            pace = Pace(trio.current_time())
            while piece := await source.receive_some(PIECE_BYTES):
                self.carried_bytes += len(piece)  # before its receiver can know
                await sink.send_all(piece)
                last_bytes = trio.current_time()
                if delay := pace.delay_seconds(len(piece), last_bytes):
                    await trio.sleep(delay)
            await sink.send_eof()

        async def watch() -> None:
            while (until := last_bytes + MAX_IDLE_SECONDS) > trio.current_time():  # noqa: ASYNC110 - it moves on
                await trio.sleep_until(until)

        def both_ways() -> Awaitable[None]:
            return together(lambda: carry(one, other), lambda: carry(other, one))

        with trio.move_on_after(MAX_CIRCUIT_SECONDS), suppress(PeerLost):
            await race(both_ways, watch)
