"""go-libp2p and rust-libp2p dial us and we them: identify, ping, 5 MiB echoed, half-closes; who refuses whom."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from support.gated import KEY, PLAIN, lines
from support.loopback import CARRIERS
from swarmnode.errors import PeerRefused, PeerUnreachable
from swarmnode.node.identity import create_identity
from swarmnode.node.net.circuits import host_of, without_peer
from swarmnode.node.net.gate import Gate
from swarmnode.node.net.host import open_host
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.net.reaching import ReachingNetwork
from swarmnode.protocols.swarm_key import SwarmKey

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]  # the first test may have to build a peer

ECHO = "/swarmnode/interop/echo/1"
HALF = "/swarmnode/interop/half/1"
PING = "/ipfs/ping/1.0.0"
ECHO_BYTES = 5 << 20
QUIET_SECONDS = 60.0

carrier = pytest.mark.parametrize("where", CARRIERS)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_eof()


async def half(stream: Stream) -> None:
    taken = await read_all(stream)
    await stream.send_all(backwards(taken))
    await stream.send_eof()


def backwards(taken: bytes) -> bytes:
    return b"%d\n" % len(taken) + taken[::-1]


async def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some(1 << 20):
        data += piece
    return bytes(data)


@asynccontextmanager
async def our_host(where: str, key: SwarmKey | None = None) -> AsyncIterator[Network]:
    identity = create_identity()
    async with open_host(identity, listen=[where], gate=Gate(identity.peer, key)) as network:
        network.handle(ECHO, echo)
        network.handle(HALF, half)
        yield network


@asynccontextmanager
async def their_host(peer: str, where: str) -> AsyncIterator[str]:
    """The address of a foreign peer that listens."""
    process = await trio.lowlevel.open_process([peer, "listen", where], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        said = b""
        with trio.fail_after(QUIET_SECONDS):
            while b"\n" not in said:
                more = await process.stdout.receive_some()
                assert more, "it ended before it listened"
                said += more
        yield json.loads(said.splitlines()[0])["addrs"][0]
    finally:
        process.kill()
        await process.wait()


async def they_dial(peer: str, addr: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Their exit code, and what they said by event."""
    with trio.fail_after(QUIET_SECONDS):
        done = await trio.run_process([peer, "dial", addr], capture_stdout=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {line["event"]: line for line in lines}


@carrier
async def test_they_dial_us(peer: str, where: str) -> None:
    async with our_host(where) as network:
        code, said = await they_dial(peer, network.addrs[0])
        assert code == 0, said
    assert said["connected"]["peer"] == network.peer
    assert {ECHO, HALF, PING} <= set(said["identified"]["protocols"])
    assert 0 < said["pinged"]["seconds"] < QUIET_SECONDS
    assert said["echoed"] == {"event": "echoed", "bytes": ECHO_BYTES, "equal": True}
    assert said["halved"]["equal"] is True
    assert "done" in said


@carrier
async def test_we_dial_them(peer: str, where: str) -> None:
    payload = random.Random(5).randbytes(ECHO_BYTES)
    async with their_host(peer, where) as addr, our_host(where) as network:
        with trio.fail_after(QUIET_SECONDS):
            theirs = addr.rpartition("/")[2]
            assert await network.connect(addr) == theirs  # which waits for identify
            assert network.connected == (theirs,)
            assert isinstance(network, ReachingNetwork)
            for protocol in (ECHO, HALF, PING):
                assert network.speakers(protocol) == (theirs,)
            assert without_peer(addr) in network.known_addrs(theirs)
            assert host_of(network.observed()[theirs]) == "127.0.0.1"

            ping = await network.open_stream(theirs, PING)
            await ping.send_all(payload[:32])
            answer = b""
            while len(answer) < 32:
                answer += await ping.receive_some(32)
            assert answer == payload[:32]
            await ping.aclose()

            stream = await network.open_stream(theirs, ECHO)
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await stream.send_all(payload)
                    await stream.send_eof()

                nursery.start_soon(send)
                assert await read_all(stream) == payload
            await stream.aclose()

            stream = await network.open_stream(theirs, HALF)
            await stream.send_all(payload[:100_000])
            await stream.send_eof()
            assert await read_all(stream) == backwards(payload[:100_000])
            await stream.aclose()


@carrier
async def test_they_refuse_us_under_another_name(peer: str, where: str) -> None:
    async with our_host(where) as network:
        other = create_identity().peer
        code, said = await they_dial(peer, network.addrs[0].replace(network.peer, other))
    assert code == 1
    assert "done" not in said
    assert "connected" not in said


@carrier
async def test_we_refuse_them_under_another_name(peer: str, where: str) -> None:
    other = create_identity().peer
    async with their_host(peer, where) as addr, our_host(where) as network:
        theirs = addr.rpartition("/")[2]
        with trio.fail_after(QUIET_SECONDS), pytest.raises(PeerUnreachable):
            await network.connect(addr.replace(theirs, other))
        assert network.connected == ()


@carrier
async def test_they_get_nothing_of_a_private_swarm(peer: str, where: str, caplog: pytest.LogCaptureFixture) -> None:
    async with our_host(where, KEY) as network:
        code, said = await they_dial(peer, network.addrs[0])
        assert code == 1
        assert said.keys() <= {"connected", "failed"}
        assert network.connected == ()
    [line] = lines(caplog)
    assert line.startswith("No connection with ")
    assert line.endswith(PLAIN)


@carrier
async def test_a_member_of_a_private_swarm_does_not_speak_with_them(
    peer: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with their_host(peer, where) as addr, our_host(where, KEY) as network:
        with trio.fail_after(QUIET_SECONDS), pytest.raises(PeerRefused, match=PLAIN) as refused:
            await network.connect(addr)
        assert network.connected == ()
        assert lines(caplog) == [refused.value.message]
