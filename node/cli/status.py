"""`swarmnode status`: what the swarm serves, once or again and again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import trio

from .call import Call
from .events import ModelStatus, ServerStatus, Status
from .place import model_name, open_asking_node

if TYPE_CHECKING:
    from swarmnode.node import status as seen

__all__ = ["run", "told"]

WATCH_SECONDS: Final = 2.0
_CLEAR: Final = "\x1b[H\x1b[2J"


def run(call: Call) -> None:
    """Look once, or with `--watch` until told to stop."""
    settings = call.settings
    redraws = settings.watch and not settings.json and sys.stdout.isatty()

    async def look() -> None:
        async with open_asking_node(call) as node:
            while True:
                status = told(await node.status())
                if redraws:
                    sys.stdout.write(_CLEAR)
                call.voice.say(status)
                if not settings.watch:
                    return
                await trio.sleep(WATCH_SECONDS)

    call.run(look)


def told(status: seen.SwarmStatus) -> Status:
    """What the node saw, as the event that is told."""
    return Status(
        peer_id=status.peer,
        peers=len(status.connected),
        models=tuple(
            ModelStatus(
                model=model_name(model.model),
                num_blocks=model.num_blocks,
                available=model.available,
                gaps=model.gaps,
                servers=tuple(_server(server) for server in model.servers),
            )
            for model in status.models
        ),
    )


def _server(server: seen.ServerStatus) -> ServerStatus:
    return ServerStatus(
        peer_id=server.peer,
        blocks=(server.start, server.end),
        state=server.state,
        confirmed=server.confirmed,
        dtype=server.dtype,
        cache_tokens_left=server.cache_tokens_left,
        decode_tokens_per_second=server.decode_tokens_per_second,
        prefill_tokens_per_second=server.prefill_tokens_per_second,
        public_name=server.public_name,
        addrs=server.addrs,
        relayed=server.relayed,
        quantisation=server.quantisation,
        adapters=server.adapters,
    )
