"""`swarmnode serve`: hold blocks of a model for the swarm, and say truly when they are ready."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from swarmnode.node.adapters import parse_adapters
from swarmnode.node.defaults import DEFAULT_LISTEN

from .call import Call
from .events import Chosen, Joined, Load, Ready
from .interrupts import SERVING_GRACE_SECONDS
from .place import join_command, model_name, open_standing_node

if TYPE_CHECKING:
    from swarmnode.node.choosing import Choice
    from swarmnode.node.library import Node, ServerInfo

__all__ = ["run"]

LOAD_SECONDS = 0.5
"""How often a server looks whether its load has changed."""


def run(call: Call) -> None:
    """Serve until told to leave."""
    settings = call.settings
    adapters = parse_adapters(settings.adapter)

    async def stand() -> None:
        async with open_standing_node(call, listen=DEFAULT_LISTEN) as node, trio.open_nursery() as nursery:
            serve = partial(
                node.serve,
                settings.model,
                revision=settings.revision,
                blocks=settings.blocks,
                num_blocks=settings.num_blocks,
                max_memory=settings.max_memory,
                dtype=settings.dtype,
                quant=settings.quant,
                device=settings.device,
                offload=settings.offload,
                prefer_peers=settings.prefer_peer,
                cache_tokens=settings.cache_tokens,
                cache_memory=settings.cache_memory,
                prefill_chunk=settings.prefill_chunk,
                deterministic=settings.deterministic,
                prefix_cache=not settings.no_prefix_cache,
                share_prefixes=settings.share_prefixes,
                adapters=adapters,
                training_memory=settings.training_memory,
                public_name=settings.public_name or "",
                chosen=partial(_say_chosen, call),
                moved=partial(_say_ready, call),
            )
            info = await nursery.start(serve)
            call.voice.say(Joined(peers=len(node.network.connected)))
            _say_ready(call, info)
            call.voice.note(f"others use it with: {join_command(node, settings.model)}")
            call.voice.note("peers that run blocks can read the text that passes through them; Ctrl-C leaves the swarm")
            await _tell_load(call, node)

    call.run(stand, grace_seconds=SERVING_GRACE_SECONDS)


def _say_chosen(call: Call, choice: Choice) -> None:
    assert choice.need is not None, "what was chosen was fitted, too"
    call.voice.say(
        Chosen(
            blocks=choice.window,
            num_blocks=choice.num_blocks,
            why=choice.why,
            servers=choice.servers,
            weights_bytes=choice.need.weights,
            cache_bytes=choice.need.cache,
            work_bytes=choice.need.work,
            whole_bytes=choice.whole_bytes,
            limit_bytes=choice.limit_bytes,
            cache_tokens=choice.cache_tokens,
        )
    )


def _say_ready(call: Call, info: ServerInfo) -> None:
    call.voice.say(
        Ready(
            model=model_name(info.model),
            blocks=(info.start, info.end),
            num_blocks=info.num_blocks,
            dtype=info.dtype,
            quantisation=info.quantisation,
            device=info.device,
            cache_tokens=info.cache_tokens,
            cache_bytes=info.cache_bytes,
        )
    )


async def _tell_load(call: Call, node: Node) -> None:
    told = None
    while True:
        caches = node.cache_statistics()
        load = Load(
            sessions=node.sessions,
            cache_tokens_left=node.cache_tokens_left,
            cache_tokens_held=caches.held if caches else 0,
            waiting_steps=node.waiting_steps,
            evicted=caches.evicted_idle + caches.evicted_active if caches else 0,
            refused=caches.refused if caches else 0,
            saved_tokens=node.saved_tokens,
            streams=node.network.open_streams,
            peers=len(node.network.connected),
        )
        if load != told:
            call.voice.say(load)
            told = load
        await trio.sleep(LOAD_SECONDS)
