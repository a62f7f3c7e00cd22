"""How long and how many messages it takes to find a model's servers, by the number of libp2p nodes in one process."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from swarmnode.node.discovery.directory import Directory
from swarmnode.node.identity import create_identity
from swarmnode.node.net.host import open_host
from swarmnode.node.net.network import Network, Stream, StreamHandler
from swarmnode.protocols.ids import RECORDS, ModelId
from swarmnode.protocols.records import ServerRecord

from .report import spread

__all__ = ["run"]

NODES = (10, 50, 150)
SERVERS = 6
LOOKUPS = 20
ROUND_TRIPS = 50
QUIET_SECONDS = 3.0
MAX_SETTLE_SECONDS = 90.0
"""The look-ups of the nodes that have just joined are waited for at most so long."""
LOOPBACK = ("/ip4/127.0.0.1/udp/0/quic-v1",)
ECHO = "/swarmnode/bench/echo/1"
MODEL = ModelId("bench/model", "1", bytes(32))


@dataclass(frozen=True, slots=True)
class _Node:
    network: Network
    directory: Directory


class _Counting:
    """A network that counts the streams which its node opens: one for each request of the directory."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.opened = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._network, name)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """The node goes on answering as before: what it keeps is not to be lost."""

    async def open_stream(self, peer: str, protocol: str, addrs: Sequence[str] = ()) -> Stream:
        self.opened += 1
        return await self._network.open_stream(peer, protocol, addrs)


def run(argv: list[str]) -> dict[str, object]:
    """Measure for each number of nodes. Arguments: `--nodes 10 50 150`, `--lookups 20`."""
    parser = argparse.ArgumentParser(prog="scripts/bench discovery", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES))
    parser.add_argument("--lookups", type=int, default=LOOKUPS)
    options = parser.parse_args(argv)
    results: dict[str, object] = {}
    for nodes in options.nodes:
        results[str(nodes)] = trio.run(_measure, nodes, options.lookups)
    return {"nodes": results}


async def _measure(count: int, lookups: int) -> dict[str, object]:
    rng = random.Random(count)
    async with _open_nodes(count) as nodes:
        for number, node in enumerate(nodes[1 : SERVERS + 1]):
            node.directory.publish(_Offer(node.network, number).record)
        for node in nodes[1 : SERVERS + 1]:
            await node.directory.announced()
        servers = {node.network.peer for node in nodes[1 : SERVERS + 1]}
        await _quiet(nodes)
        round_trip = await _round_trip(nodes[0].network, nodes[-1].network)
        cold, warm, requests, questions, complete = [], [], [], [], 0
        for _ in range(lookups):
            counting = _Counting(rng.choice(nodes).network)
            # a directory of its own: nothing is known from an earlier look-up
            directory = Directory(counting)  # type: ignore[arg-type]
            before = _questions(nodes)
            seconds, found = await _timed(directory)
            cold.append(seconds)
            requests.append(counting.opened)
            questions.append(_questions(nodes) - before)
            complete += found == servers
            warm.append((await _timed(directory))[0])
    return {
        "cold_lookup_ms": spread([1000 * each for each in cold], 1),
        "warm_lookup_ms": spread([1000 * each for each in warm], 1),
        "records_requests_per_lookup": spread(requests),
        "kademlia_questions_per_lookup": spread(questions),
        "lookups_that_found_all_servers": f"{complete}/{lookups}",
        "round_trip_ms": spread([1000 * each for each in round_trip], 3),
        "cold_lookup_in_round_trips": round(sorted(cold)[len(cold) // 2] / sorted(round_trip)[len(round_trip) // 2], 1),
        "warm_lookup_in_round_trips": round(sorted(warm)[len(warm) // 2] / sorted(round_trip)[len(round_trip) // 2], 1),
    }


@asynccontextmanager
async def _open_nodes(count: int) -> AsyncIterator[list[_Node]]:
    async with AsyncExitStack() as stack:
        hosts = [open_host(create_identity(), listen=LOOPBACK) for _ in range(count)]
        networks = [await stack.enter_async_context(host) for host in hosts]
        async with trio.open_nursery() as nursery:
            nodes = [_Node(network, Directory(network)) for network in networks]
            for node in nodes:
                nursery.start_soon(node.directory.run)
                if node is not nodes[0]:
                    await node.network.connect(networks[0].addrs[0])
            _tell(f"{count} nodes joined")
            await _quiet(nodes)
            yield nodes
            nursery.cancel_scope.cancel()


async def _quiet(nodes: Sequence[_Node]) -> None:
    """Wait until the nodes' own look-ups are over, so that they are not measured too."""
    asked = -1
    with trio.move_on_after(MAX_SETTLE_SECONDS) as patience:
        while asked != (asked := _questions(nodes)):  # noqa: ASYNC110 - there is no event for "nothing happens"
            await trio.sleep(QUIET_SECONDS)
    _tell("the nodes did not become quiet" if patience.cancelled_caught else "the nodes are quiet")


async def _timed(directory: Directory) -> tuple[float, set[str]]:
    start = time.perf_counter()
    found = await directory.find_servers(MODEL.name)
    return time.perf_counter() - start, {record.peer for record in found}


async def _round_trip(one: Network, other: Network) -> list[float]:
    """Seconds of single requests over an open stream: what the look-ups are compared with."""

    async def echo(stream: Stream) -> None:
        while data := await stream.receive_some(4096):
            await stream.send_all(data)

    other.handle(ECHO, echo)
    stream = await one.open_stream(other.peer, ECHO, other.addrs)
    samples = []
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        await stream.send_all(b"x")
        await stream.receive_some(1)
        samples.append(time.perf_counter() - start)
    await stream.aclose()
    return samples


def _questions(nodes: Sequence[_Node]) -> int:
    return sum(int(getattr(node.network, "questions", 0)) for node in nodes)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class _Offer:
    network: Network
    number: int

    def record(self, sequence: int) -> ServerRecord:
        return ServerRecord(
            peer=self.network.peer,
            sequence=sequence,
            lifetime_seconds=45.0,
            model=MODEL,
            num_blocks=10 * SERVERS,
            start=10 * self.number,
            end=10 * self.number + 10,
            dtype="float32",
            quantisation="none",
            state="online",
            cache_tokens_left=1000,
            decode_tokens_per_second=10.0,
            prefill_tokens_per_second=100.0,
            addrs=tuple(addr.partition("/p2p/")[0] for addr in self.network.addrs),
            protocols=(RECORDS,),
        )
