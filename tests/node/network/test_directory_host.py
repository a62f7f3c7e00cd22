"""The directory over real libp2p hosts on loopback: the same promises, with real sockets and a real bootstrap peer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from swarmnode.errors import PeerFault, PeerUnreachable
from swarmnode.node.discovery.directory import Directory
from swarmnode.node.identity import create_identity
from swarmnode.node.net.host import open_host
from swarmnode.node.net.network import Network
from swarmnode.protocols.ids import RECORDS, ModelId
from swarmnode.protocols.records import ServerRecord

MODEL = ModelId("org/model", "r1", bytes(32))
LOOPBACK = ("/ip4/127.0.0.1/udp/0/quic-v1",)


def record_of(network: Network, start: int, end: int, sequence: int) -> ServerRecord:
    return ServerRecord(
        peer=network.peer,
        sequence=sequence,
        lifetime_seconds=45.0,
        model=MODEL,
        num_blocks=30,
        start=start,
        end=end,
        dtype="float32",
        quantisation="none",
        state="online",
        cache_tokens_left=1000,
        decode_tokens_per_second=10.0,
        prefill_tokens_per_second=100.0,
        addrs=tuple(addr.partition("/p2p/")[0] for addr in network.addrs),
        protocols=(RECORDS,),
    )


def offer(network: Network, number: int) -> Callable[[int], ServerRecord]:
    return lambda sequence: record_of(network, 10 * number, 10 * number + 10, sequence)


async def run_bootstrap(*, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    async with open_host(create_identity(), listen=LOOPBACK) as network:
        task_status.started(network.addrs[0])
        await Directory(network).run()


@asynccontextmanager
async def open_bootstrap() -> AsyncIterator[tuple[str, trio.CancelScope]]:
    """A peer that only keeps records: its address, and what ends it."""
    async with trio.open_nursery() as nursery:
        addr = await nursery.start(run_bootstrap)
        yield addr, nursery.cancel_scope
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_directories(count: int) -> AsyncIterator[list[tuple[Network, Directory]]]:
    async with AsyncExitStack() as stack:
        networks = [
            await stack.enter_async_context(open_host(create_identity(), listen=LOOPBACK)) for _ in range(count)
        ]
        async with trio.open_nursery() as nursery:
            directories = [Directory(network) for network in networks]
            for directory in directories:
                nursery.start_soon(directory.run)
            yield list(zip(networks, directories, strict=True))
            nursery.cancel_scope.cancel()


async def test_eight_hosts_find_servers_before_and_after_the_bootstrap_peer_dies() -> None:
    async with open_directories(8) as (*members, (newcomer, late)):
        async with open_bootstrap() as (door, _):
            for network, _ in members:
                await network.connect(door)
            for number, (network, directory) in enumerate(members[:3]):
                directory.publish(offer(network, number))
                await directory.announced()
            servers = [network.peer for network, _ in members[:3]]
            for _, directory in members:
                found = await directory.find_servers(MODEL.name)
                assert [record.peer for record in found] == servers
                assert await directory.find_models() == [(MODEL, 30)]
                for record in found:
                    assert (await directory.confirm(record)).sequence >= record.sequence
        for _, directory in members:
            assert [record.peer for record in await directory.find_servers(MODEL.name)] == servers
        with pytest.raises(PeerUnreachable):
            await newcomer.connect(door)
        await newcomer.connect(members[-1][0].addrs[0])
        found = await late.find_servers(MODEL.name)
        assert [record.peer for record in found] == servers
        members[0][1].publish(None)
        await members[0][1].announced()
        with pytest.raises(PeerFault):
            await late.confirm(found[0])
