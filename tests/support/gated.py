"""Nodes of a private swarm and strangers to it, over real sockets: what every test of the gate needs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio

from support.links import until_links
from swarmnode.node.identity import Identity, create_identity
from swarmnode.node.net.gate import Gate, Gated
from swarmnode.node.net.host import open_host
from swarmnode.node.net.moving import MOVING
from swarmnode.node.net.nat.messages import AUTONAT, DCUTR, HOP, STOP
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.net.p2p import KADEMLIA
from swarmnode.protocols.ids import SPOKEN
from swarmnode.protocols.swarm_key import SwarmKey

__all__ = [
    "ECHO",
    "EVERYTHING",
    "HANG_SECONDS",
    "IDENTIFY",
    "KEY",
    "NO_KEY",
    "OTHER_KEY",
    "PLAIN",
    "WANTED",
    "WRONG_KEY",
    "Indulgent",
    "ask",
    "echo",
    "is_alone",
    "line",
    "lines",
    "node",
    "two",
]

HANG_SECONDS: Final = 60.0
"""Nothing of this takes so long, whatever else the machine does."""

ECHO: Final = "/test/echo/1"
IDENTIFY: Final = "/ipfs/id/1.0.0"
PING: Final = "/ipfs/ping/1.0.0"
EVERYTHING: Final = (ECHO, IDENTIFY, PING, KADEMLIA, HOP, STOP, AUTONAT, DCUTR, MOVING, *SPOKEN)
"""All that a node speaks, libp2p's protocols and ours; but not the gate's own."""

KEY: Final = SwarmKey(bytes(range(32)))
OTHER_KEY: Final = SwarmKey(bytes(range(1, 33)))

WANTED: Final = "it belongs to a private swarm, and this node has no swarm key."
NO_KEY: Final = "this swarm is private, and it has no swarm key."
WRONG_KEY: Final = "it has another swarm key than this node."
PLAIN: Final = "this swarm is private, and it speaks plain libp2p."


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_eof()


@asynccontextmanager
async def node(
    listen: str | None, gate: Gate | SwarmKey | None, identity: Identity | None = None, *, relays: bool = False
) -> AsyncIterator[Network]:
    """A node that echoes, with a gate of its own making or with one for this key."""
    identity = identity or create_identity()
    if not isinstance(gate, Gate):
        gate = Gate(identity.peer, gate)
    where = [listen] if listen is not None else []
    async with open_host(identity, listen=where, gate=gate, relays=relays) as network:
        network.handle(ECHO, echo)
        yield network


@asynccontextmanager
async def two(listen: str, one: SwarmKey | None, other: SwarmKey | None) -> AsyncIterator[tuple[Network, Network]]:
    async with node(listen, one) as first, node(listen, other) as second:
        yield first, second


class Indulgent(Gate):
    """A node that lets some peers pass unasked, against the rules."""

    def __init__(self, peer: str, key: SwarmKey | None, friends: Collection[str]) -> None:
        super().__init__(peer, key)
        self._friends = friends

    async def admit(self, connection: Gated, *, opened_by_us: bool) -> None:
        if connection.peer in self._friends:
            await trio.lowlevel.checkpoint()
        else:
            await super().admit(connection, opened_by_us=opened_by_us)


async def ask(network: Network, peer: str, question: bytes, addrs: tuple[str, ...] = ()) -> bytes:
    stream = await network.open_stream(peer, ECHO, addrs)
    await stream.send_all(question)
    await stream.send_eof()
    answer = b""
    while piece := await stream.receive_some(65536):
        answer += piece
    await stream.aclose()
    return answer


async def is_alone(network: Network, but_for: tuple[str, ...] = ()) -> bool:
    """Whether a node ends up without a connection, but for those to these peers."""
    with trio.move_on_after(HANG_SECONDS):
        await until_links(network, lambda: network.connected == but_for)
    return network.connected == but_for


def line(peer: str, why: str) -> str:
    """What a node's log says of a peer that it has no connection with."""
    return f"No connection with {peer}: {why}"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What all nodes of a test have put into their logs for people to see, sorted."""
    return sorted(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


async def said(caplog: pytest.LogCaptureFixture, *expected: str) -> list[str]:
    """`lines`, once there are as many as expected: two nodes that part say so each in its own time."""
    with trio.move_on_after(HANG_SECONDS):
        while len(lines(caplog)) < len(expected):  # noqa: ASYNC110 - nothing tells when a node has logged
            await trio.sleep(0.02)
    return lines(caplog)
