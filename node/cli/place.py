"""This machine's place in the swarm, from the settings: who we are, where we listen, whom we join."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from swarmnode.errors import NoPeers
from swarmnode.node.identity import claim_identity
from swarmnode.node.library import Node, open_node

from .call import Call
from .events import Hop, Joined, Listening, ModelName

if TYPE_CHECKING:
    from swarmnode.node.routes import Route
    from swarmnode.protocols.records import ModelId

__all__ = [
    "best_address",
    "hops_of",
    "join_command",
    "model_name",
    "open_asking_node",
    "open_standing_node",
    "require_peers",
]

FIRST_PEER_SECONDS: Final = 5.0


@asynccontextmanager
async def open_standing_node(
    call: Call, *, listen: tuple[str, ...], identity: Path | None = None, relays: bool = False
) -> AsyncIterator[Node]:
    """A node that others find again: it keeps its key, listens, and says where.

    Args:
        listen: where, unless the settings say otherwise.
        identity: its key file, unless the settings say otherwise; None is the first free one of the state folder.
        relays: whether others may be reached through it.
    """
    settings = call.settings
    with claim_identity(settings.identity or identity) as own:
        async with open_node(
            join=settings.join,
            listen=settings.listen or listen,
            identity=own,
            mdns=_uses_mdns(call),
            swarm_key=settings.swarm_key,
            allow_peers=settings.allow_peer,
            deny_peers=settings.deny_peer,
            compression=settings.compression,
            relays=relays,
            progress=call.progress,
        ) as node:
            call.voice.say(Listening(peer_id=node.peer_id, addrs=tuple(node.addrs)))
            if settings.join:
                call.voice.say(Joined(peers=len(node.network.connected)))
            yield node


@asynccontextmanager
async def open_asking_node(call: Call) -> AsyncIterator[Node]:
    """A node that only asks: a fresh key each time unless one is named, and no port unless one is."""
    settings = call.settings
    named = claim_identity(settings.identity) if settings.identity is not None else nullcontext(None)
    with named as own:
        async with open_node(
            join=settings.join,
            listen=settings.listen,
            identity=own,
            mdns=_uses_mdns(call),
            swarm_key=settings.swarm_key,
            allow_peers=settings.allow_peer,
            deny_peers=settings.deny_peer,
            compression=settings.compression,
            progress=call.progress,
        ) as node:
            yield node


async def require_peers(call: Call, node: Node) -> None:
    """Wait until somebody is there to ask: the local network may take a moment to show its first peer.

    Raises:
        NoPeers: nobody came; said before seconds are spent on loading anything.
    """
    with trio.move_on_after(FIRST_PEER_SECONDS if _uses_mdns(call) else 0):
        while not node.network.connected:  # noqa: ASYNC110 - the network tells of no event
            await trio.sleep(FIRST_PEER_SECONDS / 50)
    if not node.network.connected:
        raise NoPeers(
            "There is no peer to ask: none was named, and the local network shows none."
            if _uses_mdns(call)
            else "There is no peer to ask: none was named, and the local network was not searched.",
            hint="Name a peer of the swarm with --join, or start a server with `swarmnode serve`.",
        )


def join_command(node: Node, model: str | None) -> str:
    """What somebody else types to use the swarm through this node; `model` as it was named here."""
    named = ["--model", model] if model is not None else []
    words = ["swarmnode", "generate", *named, "--prompt", "Once upon a time", "--join", best_address(node.addrs)]
    return shlex.join(words)


def best_address(addrs: tuple[str, ...]) -> str:
    """The address that most others can use: one that is not of this machine alone, where there is one."""
    return next((addr for addr in addrs if not addr.startswith(("/ip4/127.", "/ip6/::1/"))), addrs[0])


def model_name(model: ModelId) -> ModelName:
    return ModelName(name=model.name, revision=model.revision, digest=model.digest.hex())


def hops_of(route: Route) -> tuple[Hop, ...]:
    return tuple(Hop(peer_id=hop.peer, blocks=(hop.start, hop.end)) for hop in route.hops)


def _uses_mdns(call: Call) -> bool:
    """The local network is searched only where nobody said whom to join."""
    return not call.settings.no_mdns and not call.settings.join
