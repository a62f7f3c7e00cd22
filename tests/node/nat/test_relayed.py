"""Real hosts on loopback with a relay between: reached through it, refused by it, and off it again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio

from support.circuits import circuits_end
from support.hearing import hearing
from swarmnode.errors import PeerLost, PeerRefused, PeerUnreachable
from swarmnode.node.identity import create_identity
from swarmnode.node.net import reaching
from swarmnode.node.net.gate import Gate
from swarmnode.node.net.host import open_host
from swarmnode.node.net.moving import MovingStream
from swarmnode.node.net.nat.messages import HOP, STOP, Connect, Reserved, receive_hop, receive_stop, send_hop, send_stop
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.net.reaching import ReachingNetwork
from swarmnode.protocols.ids import SESSION
from swarmnode.protocols.swarm_key import SwarmKey

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
ECHO = "/test/echo/1"
HANG_SECONDS = 60.0
"""Nothing here takes so long, whatever else the machine does."""


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_eof()


@asynccontextmanager
async def three(key: SwarmKey | None = None) -> AsyncIterator[tuple[ReachingNetwork, ReachingNetwork, ReachingNetwork]]:
    """A relay; a server that does not listen and holds a place there; and a client that knows nobody."""
    async with AsyncExitStack() as stack:

        async def host(listen: tuple[str, ...], *, relays: bool = False) -> ReachingNetwork:
            identity = create_identity()
            gate = Gate(identity.peer, key)
            network = await stack.enter_async_context(open_host(identity, listen=listen, gate=gate, relays=relays))
            assert isinstance(network, ReachingNetwork)
            return network

        relay, server, client = await host(LOOPBACK, relays=True), await host(()), await host(LOOPBACK)
        await server.connect(relay.addrs[0])
        await server.keeper.reservations.check()
        server.announce(server.keeper.reservations.addrs)
        for protocol in (ECHO, SESSION):
            server.handle(protocol, echo)
        yield relay, server, client


async def ask(network: Network, peer: str, question: bytes, protocol: str = ECHO, addrs: tuple[str, ...] = ()) -> bytes:
    stream = await network.open_stream(peer, protocol, addrs)
    answer = bytearray()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(question)
            await stream.send_eof()

        nursery.start_soon(send)
        while piece := await stream.receive_some(65536):
            answer += piece
    await stream.aclose()
    return bytes(answer)


@pytest.mark.parametrize("protocol", [ECHO, SESSION])
async def test_a_server_that_cannot_be_dialled_is_reached_through_its_relay(protocol: str) -> None:
    payload = random.Random(1).randbytes(3_000_000)
    async with three() as (relay, server, client):
        (addr,) = server.addrs
        assert addr == f"{relay.addrs[0]}/p2p-circuit/p2p/{server.peer}"
        assert server.is_relayed
        assert not client.is_relayed
        assert await ask(client, server.peer, payload, protocol, (addr.removesuffix(f"/p2p/{server.peer}"),)) == payload
        assert client.relayed(server.peer)
        assert server.relayed(client.peer)
        assert relay.keeper.relay.carried_bytes > 2 * len(payload)
        assert relay.keeper.relay.ledger.circuits == 1


async def test_one_joins_through_a_relayed_address() -> None:
    async with three() as (_, server, client):
        assert await client.connect(server.addrs[0]) == server.peer
        assert await ask(client, server.peer, b"hello") == b"hello"


async def test_a_session_moves_to_the_direct_connection_and_the_circuit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "LINGER_SECONDS", 0.1)
    async with three() as (relay, server, client):
        await client.connect(server.addrs[0])
        ledger = relay.keeper.relay.ledger
        ended = circuits_end(ledger, monkeypatch)
        stream = await client.open_stream(server.peer, SESSION)
        await stream.send_all(b"through the relay")
        assert await stream.receive_some(100) == b"through the relay"
        assert isinstance(stream, MovingStream)
        assert (stream.moved, ledger.circuits) == (False, 1)
        await server.dial(client.peer, client.listens[0])
        with trio.fail_after(HANG_SECONDS):
            # What is sent over the old stream until the move is agreed on comes back, too.
            for number in range(100):
                question = b"%4d" % number
                await stream.send_all(question)
                answer = b""
                while len(answer) < len(question):
                    answer += await stream.receive_some(100)
                assert answer == question
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive_some, 100)  # who reads meets the old stream's end
                await ended.wait()
                assert (stream.moved, ledger.circuits) == (True, 0)
                await stream.send_all(b"directly")
        await stream.aclose()


async def test_the_relay_goes_and_the_circuit_with_it() -> None:
    async with three() as (relay, server, client):
        await client.connect(server.addrs[0])
        stream = await client.open_stream(server.peer, ECHO)
        await stream.send_all(b"still there")
        assert await stream.receive_some(100) == b"still there"
        relay.close()
        with pytest.raises(PeerLost):
            await stream.receive_some(100)


async def test_nobody_is_reached_without_a_place() -> None:
    async with three() as (relay, server, client):
        relay.keeper.relay.gone(server.peer)
        with pytest.raises(PeerUnreachable, match="NO_RESERVATION"):
            await client.connect(server.addrs[0])


async def test_a_relay_cannot_bring_one_peer_under_anothers_name() -> None:
    async with three() as (relay, server, client):
        await client.connect(relay.addrs[0])
        claimed = create_identity().peer
        stream = await relay.open_stream(server.peer, STOP)
        await send_stop(stream, Connect(claimed))
        answer = await receive_stop(stream)
        assert isinstance(answer, Reserved)
        assert answer.status == 100
        with hearing() as heard, trio.fail_after(HANG_SECONDS):
            with suppress(PeerUnreachable):  # the server may be quicker to leave than we to find all well
                await client.carry(stream, server.peer, relay.peer, opened_by_us=True)
            await heard.line_with("another peer than the relay said")
        assert claimed not in server.connected


async def test_only_a_relay_of_ours_may_bring_somebody() -> None:
    async with three() as (relay, server, client):
        await client.connect(relay.addrs[0])
        await server.dial(client.peer, client.listens[0])
        await client.direct(server.peer)
        stream = await client.open_stream(server.peer, STOP)
        await send_stop(stream, Connect(relay.peer))
        answer = await receive_stop(stream)
        assert isinstance(answer, Reserved)
        assert answer.status == 202


async def test_a_circuit_leads_nowhere_from_inside_a_circuit() -> None:
    async with three() as (relay, server, client):
        await client.connect(server.addrs[0])
        server.keeper.relay.open()
        stream = await client.open_stream(server.peer, HOP)
        await send_hop(stream, Connect(relay.peer))
        answer = await receive_hop(stream)
        assert isinstance(answer, Reserved)
        assert answer.status == 202


async def test_a_private_swarm_is_private_through_its_relay() -> None:
    async with three(key=SwarmKey(bytes(range(32)))) as (relay, server, client):
        await client.connect(relay.addrs[0])
        client._gate = Gate(client.peer)  # it knew the key when it came to the relay, and does not at the server
        with hearing() as heard, trio.fail_after(HANG_SECONDS):
            with pytest.raises((PeerUnreachable, PeerRefused)):
                await client.connect(server.addrs[0])
            await heard.line_with("this swarm is private")
        assert client.peer not in server.connected
