"""Getting into a swarm by its peers' addresses, and back in after losing everybody."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from swarmnode.errors import NoPeers, PeerFault, PeerRefused

from .background import together
from .defaults import JOIN_SECONDS, NEIGHBOUR_SECONDS, REJOIN_SECONDS
from .net.network import Network

__all__ = ["join_swarm", "stay_joined", "wait_for_neighbours"]

MAX_SHOWN = 4


async def join_swarm(network: Network, addrs: Sequence[str]) -> None:
    """Connect to the peers at `addrs`, and return with the first that answers and those that were as quick.

    Raises:
        NoPeers: none answers; the message says which were tried.
        PeerRefused: none is left but one that answers no, and says why.
        BadInput: an address is none.
    """
    reasons: list[str] = []
    refusals: list[PeerRefused] = []
    reached = 0

    async def connect(addr: str, scope: trio.CancelScope) -> None:
        nonlocal reached
        try:
            await network.connect(addr)
        except PeerRefused as refusal:
            refusals.append(refusal)
            return
        except PeerFault as error:
            reasons.append(error.message)
            return
        reached += 1
        # The others are tried a little longer: several doors are better than one.
        scope.deadline = min(scope.deadline, trio.current_time() + NEIGHBOUR_SECONDS)

    with trio.move_on_after(JOIN_SECONDS) as scope:
        await together(*(partial(connect, addr, scope) for addr in addrs))
    if not reached and refusals:
        raise refusals[0]
    if not reached:
        shown = ", ".join(addrs[:MAX_SHOWN]) + (f" and {len(addrs) - MAX_SHOWN} more" if len(addrs) > MAX_SHOWN else "")
        raise NoPeers(
            f"No peer is reachable at {shown}" + (f": {reasons[0]}" if len(reasons) == 1 else "."),
            hint="Check the address and that its node is running (`swarmnode bootstrap` prints it).",
        )


async def stay_joined(network: Network, addrs: Sequence[str]) -> None:
    """Try `addrs` again whenever no peer is left. Runs for ever."""
    while True:
        await trio.sleep(REJOIN_SECONDS)
        for addr in addrs:
            if network.connected:
                break
            try:
                await network.connect(addr)
            except PeerFault:
                continue


async def wait_for_neighbours(network: Network) -> None:
    """Give the local network a moment to show its first peer. Returns without one, too."""
    with trio.move_on_after(NEIGHBOUR_SECONDS):
        while not network.connected:  # noqa: ASYNC110 - a network tells nobody of its new neighbours
            await trio.sleep(NEIGHBOUR_SECONDS / 20)
