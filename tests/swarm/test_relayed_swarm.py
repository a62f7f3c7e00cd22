"""A generation whose session begins on a relay and leaves it while tokens come: the text is as if nothing had been."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio

from support.circuits import circuits_end
from support.hearing import hearing
from support.loopback import QUIC
from support.tiny_swarm import PROMPT, TOKENS, Tiny
from swarmnode.node.background import open_background
from swarmnode.node.library import Node, open_node
from swarmnode.node.net import reaching
from swarmnode.node.net.addresses import listen_socket, listening_addrs
from swarmnode.node.net.moving import MovingMessages
from swarmnode.node.net.reaching import ReachingNetwork

HANG_SECONDS = 120.0
"""Nothing here takes so long, whatever else the machine does."""
MOVE_AT = 5
"""Of the tokens, so many come through the relay."""


def network_of(node: Node) -> ReachingNetwork:
    assert isinstance(node.network, ReachingNetwork)
    return node.network


async def serve_behind_nat(folder: str, blocks: str, join: tuple[str, ...], task_status: Any) -> None:
    """A server that nobody can dial, with a place on the relay it joins by."""
    async with open_node(listen=(), join=join) as node, open_background() as own:
        network = network_of(node)
        await network.keeper.reservations.check()
        network.announce(network.keeper.reservations.addrs)
        await own.start(partial(node.serve, folder, blocks=blocks))
        task_status.started(node)
        await trio.sleep_forever()


async def run_relay(task_status: Any) -> None:
    with trio.CancelScope() as scope:
        async with open_node(listen=(QUIC,), relays=True) as node:
            task_status.started((node, scope))
            await trio.sleep_forever()


async def test_a_generation_goes_on_where_its_session_moves_off_the_relay(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaching, "LINGER_SECONDS", 0.1)
    async with open_background() as nursery:
        relay, relay_scope = await nursery.start(run_relay)
        server: Node = await nursery.start(serve_behind_nat, str(llama.folder), "0:4", relay.addrs[:1])
        ledger = network_of(relay).keeper.relay.ledger
        ended = circuits_end(ledger, monkeypatch)
        async with open_node(listen=(), join=relay.addrs[:1], compression="lossless") as client:
            ours, theirs = network_of(client), network_of(server)
            model = await client.load(str(llama.folder))
            with trio.fail_after(HANG_SECONDS), hearing() as heard:
                async with model.generate(PROMPT, max_new_tokens=TOKENS) as generation:
                    async for _ in generation:
                        if len(generation.ids) < MOVE_AT or ended.is_set():
                            continue
                        assert ours.relayed(server.peer_id)
                        [session] = ours._movers._ours[server.peer_id]
                        assert (type(session), session.moved) == (MovingMessages, False)
                        # From now on the client can be dialled.
                        door = listen_socket(QUIC)
                        [addr] = listening_addrs(door)
                        ours._transport.listen(door)
                        await theirs.dial(client.peer_id, addr)
                        await heard.line_with(f"what ran to {server.peer_id} through a relay runs directly now")
                        await ended.wait()
                        assert (session.moved, ledger.circuits) == (True, 0)
                        assert len(generation.ids) < TOKENS
                        relay_scope.cancel()
            assert ended.is_set()
            assert len(generation.ids) == TOKENS
            assert generation.ids == llama.greedy(generation.prompt_ids, TOKENS)
