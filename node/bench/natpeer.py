"""One peer of `scripts/bench nat`, in a process and a namespace of its own; says what it has to say in lines of JSON.

natpeer boot LISTEN                  a public node that relays
natpeer stand LISTEN JOIN            a server: finds out whether it can be dialled, and echoes
natpeer dial LISTEN JOIN PEER ADDR…  reaches a standing peer and measures the way there
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time

import trio

from swarmnode.node.identity import create_identity
from swarmnode.node.net.circuits import MARK
from swarmnode.node.net.host import open_host
from swarmnode.node.net.moving import MOVE_SECONDS, MovingStream
from swarmnode.node.net.network import Stream
from swarmnode.node.net.reaching import ReachingNetwork
from swarmnode.protocols.ids import SESSION

__all__: list[str] = []

SINK = "/swarmnode/bench/sink/1"
MESSAGE_BYTES = 5 * 1024
ROUND_TRIPS = 100
BULK_BYTES = 8 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
KNOW_SECONDS = 15.0
"""A dial back that does not get through takes four of them."""
PUNCH_SECONDS = 16.0
"""For so long a peer waits for the direct connection: two rounds of three attempts, five seconds between them."""


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


async def sink(stream: Stream) -> None:
    """Take everything, then say so."""
    while await stream.receive_some(PIECE_BYTES):
        pass
    await stream.send_all(b"\x01")


async def boot(network: ReachingNetwork) -> None:
    say(addr=network.addrs[0])
    await trio.sleep_forever()


async def stand(network: ReachingNetwork, join: str) -> None:
    begun = time.perf_counter()
    network.handle(SESSION, echo)
    network.handle(SINK, sink)
    await network.connect(join)
    await _know(network)
    say(
        peer=network.peer,
        addrs=network.addrs,
        reach=network.keeper.reach,
        known_after_seconds=time.perf_counter() - begun,
    )
    await trio.sleep_forever()


async def dial(network: ReachingNetwork, join: str, peer: str, addrs: list[str]) -> None:
    await network.connect(join)
    begun = time.perf_counter()
    stream = await network.open_stream(peer, SESSION, addrs)  # lasts, and so moves when there is something better
    await _round_trip(stream, b"x")
    connected = time.perf_counter() - begun
    relayed = network.relayed(peer)
    direct_after = await _wait_for_better(network, stream, begun) if relayed else None
    say(
        connect_seconds=round(connected, 3),
        how=_how(network, peer) if any(MARK in addr for addr in addrs) else "direct",
        direct_after_seconds=direct_after,
        stream_moved=isinstance(stream, MovingStream) and stream.moved,
        **await _measure(network, peer),
    )


async def _know(network: ReachingNetwork) -> None:
    """Wait until a node knows whether it can be dialled, and is known where it can be."""
    own = network.addrs
    with trio.move_on_after(KNOW_SECONDS):
        while network.addrs == own:  # noqa: ASYNC110 - the network tells of no event
            await trio.sleep(0.05)


def _how(network: ReachingNetwork, peer: str) -> str:
    """How a server that cannot be dialled is connected in the end; the look-ups of joining may have punched before."""
    if network.relayed(peer):
        return "relayed"
    return (
        "punched" if any(muxer.opened_by_us and not muxer.relay for muxer in network._muxers(peer)) else "called back"
    )


async def _wait_for_better(network: ReachingNetwork, stream: Stream, begun: float) -> float | None:
    """Use the stream until it runs over a direct connection, or for so long; the seconds until there was one."""
    direct_after = None
    number = 0
    while not (isinstance(stream, MovingStream) and stream.moved):
        moving = 0.0 if network.relayed(stream.peer) else MOVE_SECONDS
        if time.perf_counter() - begun > PUNCH_SECONDS + moving:
            break
        number += 1
        await _round_trip(stream, number.to_bytes(8, "big") * 100)
        if direct_after is None and not network.relayed(stream.peer):
            direct_after = round(time.perf_counter() - begun, 3)
        await trio.sleep(0.01)
    if direct_after is None and not network.relayed(stream.peer):
        direct_after = round(time.perf_counter() - begun, 3)
    for _ in range(10):
        await _round_trip(stream, number.to_bytes(8, "big") * 100)
    return direct_after


async def _measure(network: ReachingNetwork, peer: str) -> dict[str, float]:
    stream = await network.open_stream(peer, SESSION)
    samples = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        await _round_trip(stream, bytes(MESSAGE_BYTES))
        samples.append((time.perf_counter() - begun) * 1e3)
    await stream.aclose()
    stream = await network.open_stream(peer, SINK)
    begun = time.perf_counter()
    for _ in range(BULK_BYTES // PIECE_BYTES):
        await stream.send_all(bytes(PIECE_BYTES))
    await stream.send_eof()
    await stream.receive_some(1)
    seconds = time.perf_counter() - begun
    await stream.aclose()
    return {
        "round_trip_ms_p50": round(statistics.median(samples), 3),
        "round_trip_ms_max": round(max(samples), 3),
        "bulk_megabytes_per_second": round(BULK_BYTES / seconds / 1e6, 2),
    }


async def _round_trip(stream: Stream, message: bytes) -> None:
    await stream.send_all(message)
    answer = b""
    while len(answer) < len(message):
        answer += await stream.receive_some(len(message) - len(answer))
    assert answer == message, "what came back is not what was sent"


async def main(words: list[str]) -> None:
    role, listen, *rest = words
    async with open_host(create_identity(), listen=[listen], relays=role == "boot") as network:
        assert isinstance(network, ReachingNetwork)
        if role == "dial":
            await dial(network, rest[0], rest[1], rest[2:])
        elif role == "stand":
            await stand(network, rest[0])
        else:
            await boot(network)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    trio.run(main, sys.argv[1:])
