"""`swarmnode bootstrap`: a peer at a lasting address that others find the swarm through; it relays. Holds no blocks."""

from __future__ import annotations

from typing import Final

import trio

from swarmnode.node.identity import state_folder

from .call import Call
from .interrupts import SERVING_GRACE_SECONDS
from .place import best_address, open_standing_node

__all__ = ["DEFAULT_BOOTSTRAP_LISTEN", "run"]

# A port of its own, so that the address stays the same when the node starts again.
DEFAULT_BOOTSTRAP_LISTEN: Final = (
    "/ip4/0.0.0.0/udp/4737/quic-v1",
    "/ip4/0.0.0.0/tcp/4737",
    "/ip6/::/udp/4737/quic-v1",
    "/ip6/::/tcp/4737",
)


def run(call: Call) -> None:
    """Stand there until told to leave."""

    async def stand() -> None:
        # Not the key that a server on the same machine takes: whichever starts first, the address stays.
        own_key = state_folder() / "bootstrap.key"
        relays = not call.settings.no_relay
        async with open_standing_node(call, listen=DEFAULT_BOOTSTRAP_LISTEN, identity=own_key, relays=relays) as node:
            call.voice.note(f"others join with: --join {best_address(node.addrs)}")
            await trio.sleep_forever()

    call.run(stand, grace_seconds=SERVING_GRACE_SECONDS)
