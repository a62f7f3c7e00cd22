"""Reaching a peer: one attempt at a time for all who want it, several of its addresses side by side, bounded in time.

py-libp2p waits 250 ms before every dial and retries for long; this asks it for one address at a time. Knows no libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from swarmnode.errors import PeerRefused, PeerUnreachable

from .addresses import Endpoint, dialable
from .circuits import Circuit
from .lost import WireLost

__all__ = ["DIAL_SECONDS", "Dialler"]

DIAL_SECONDS = 5.0
"""To connect to a peer at the best of its addresses and prove who is who."""
STAGGER_SECONDS = 0.2
"""The next address of a peer is tried when the one before has not answered by then."""


@dataclass(slots=True)
class _Dial:
    """One attempt to reach a peer, shared by all who want it."""

    endpoints: tuple[Endpoint | Circuit, ...]
    done: trio.Event = field(default_factory=trio.Event)
    why: str = ""
    refusal: PeerRefused | None = None


class Dialler:
    """Makes connections to peers.

    Args:
        peer: our own peer id.
        nursery: where attempts run; they outlive a caller that is cancelled.
        connected: whether there is a connection to a peer.
        dial: connect to a peer at one endpoint. Raises `OSError`, `WireLost`, `PeerRefused`.
    """

    def __init__(
        self,
        peer: str,
        nursery: trio.Nursery,
        connected: Callable[[str], bool],
        dial: Callable[[str, Endpoint | Circuit], Awaitable[None]],
    ) -> None:
        self._peer = peer
        self._nursery = nursery
        self._connected = connected
        self._dial = dial
        self._under_way: dict[str, _Dial] = {}

    async def reach(self, peer: str, addrs: Iterable[str]) -> None:
        """Have a connection to a peer. Raises `PeerUnreachable`, `PeerRefused`."""
        endpoints = tuple(dialable(addrs, peer))
        why = "no address of it is known"
        tried: set[Endpoint | Circuit] = set()
        while peer != self._peer:
            if self._connected(peer):
                await trio.lowlevel.checkpoint()
                return
            dial = self._under_way.get(peer)
            if dial is None:
                if tried.issuperset(endpoints):
                    break
                dial = self._under_way[peer] = _Dial(endpoints)
                self._nursery.start_soon(self._run, peer, dial)
            await dial.done.wait()
            why = dial.why or why
            if (refusal := dial.refusal) is not None and not self._connected(peer):
                raise PeerRefused(refusal.message, hint=refusal.hint, peer=peer)
            tried.update(dial.endpoints)
        raise PeerUnreachable(
            f"{peer} cannot be reached: {why}.",
            hint="Check that it runs and that its address can be reached from here.",
            peer=peer,
        )

    async def _run(self, peer: str, dial: _Dial) -> None:
        try:
            with trio.move_on_after(DIAL_SECONDS) as scope:
                await self._race(peer, dial)
            if scope.cancelled_caught:
                dial.why = f"no answer within {DIAL_SECONDS:.0f} s"
        finally:
            del self._under_way[peer]
            dial.done.set()

    async def _race(self, peer: str, dial: _Dial) -> None:
        async with trio.open_nursery() as nursery:

            async def attempt(endpoint: Endpoint | Circuit, failed: trio.Event) -> None:
                try:
                    await self._dial(peer, endpoint)
                except (OSError, WireLost) as error:
                    dial.why = str(getattr(error, "strerror", None) or error)
                    failed.set()
                except PeerRefused as refusal:
                    dial.refusal = refusal
                    failed.set()
                else:
                    nursery.cancel_scope.cancel()

            for endpoint in dial.endpoints:
                failed = trio.Event()
                nursery.start_soon(attempt, endpoint, failed)
                with trio.move_on_after(STAGGER_SECONDS):
                    await failed.wait()
