"""Connections and streams in numbers, one after another and at once: no slot, memory, file or task stays behind.

`SWARMNODE_LEAKS=1` opens as many connections as a busy month would; by default it is a third of that.
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import psutil
import pytest
import trio
import trio.testing
from multiaddr import Multiaddr

from swarmnode.node.identity import create_identity
from swarmnode.node.net.connection import Connection
from swarmnode.node.net.host import open_host
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.net.transport import Transport

FULL = os.environ.get("SWARMNODE_LEAKS") == "1"  # read now: fixtures clear the environment
ONE_BY_ONE = 10_000 if FULL else 3_000
AT_ONCE = 200
STREAMS = 1_000
WARM_UP = 1_500 if FULL else 600
MOST_GROWTH_BYTES = 8 << 20
"""What may come on top behind the warm-up: allocators keep pages. 1 KiB of each of 10,000 would be more, 3 of 3,000."""
ECHO = "/test/echo/1"
PATIENCE_SECONDS = 60.0
SETTLED_LOOKS = 15

pytestmark = pytest.mark.timeout(1800 if FULL else 120)
listen = pytest.mark.parametrize("where", ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"], ids=["quic", "tcp"])


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


@asynccontextmanager
async def listening(where: str) -> AsyncIterator[Network]:
    async with open_host(create_identity(), listen=[where]) as network:
        network.handle(ECHO, echo)
        yield network


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what other tasks and threads bring about; nothing tells when it is done."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.02)


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


class Count:
    """What this process and run hold now, to be compared later."""

    def __init__(self) -> None:
        self.files = psutil.Process().num_fds()
        self.threads = psutil.Process().num_threads()
        self.tasks = trio.lowlevel.current_statistics().tasks_living

    def fits(self, other: Count) -> bool:
        return self.files <= other.files and self.threads <= other.threads and self.tasks <= other.tasks

    async def is_back(self) -> None:
        gc.collect()
        await until(lambda: Count().fits(self))


async def settled() -> Count:
    """The count once it has stopped falling."""
    gc.collect()
    count, same = Count(), 0
    while same < SETTLED_LOOKS:
        await trio.sleep(0.02)
        now = Count()
        same = same + 1 if count.fits(now) else 0
        count = now
    return count


async def come_and_go(transport: Transport, addr: str) -> None:
    """A whole connection, proved by both ends, and its end."""
    connection: Connection = await transport.dial(Multiaddr(addr))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.muxer.run)
        await connection.close()


@listen
async def test_connections_one_after_another_and_many_at_once(where: str) -> None:
    async with listening(where) as network:
        addr = network.addrs[0]
        stranger = Transport(create_identity())
        try:
            for _ in range(WARM_UP):
                await come_and_go(stranger, addr)
            await until(lambda: not network.connected)
            count, before = await settled(), resident_bytes()

            for _ in range(ONE_BY_ONE):
                await come_and_go(stranger, addr)
            await until(lambda: not network.connected)
            await count.is_back()
            grown = resident_bytes() - before
            assert grown < MOST_GROWTH_BYTES

            dialler = [Transport(create_identity()) for _ in range(AT_ONCE)]
            try:
                async with trio.open_nursery() as nursery:
                    for each in dialler:
                        nursery.start_soon(come_and_go, each, addr)
            finally:
                for each in dialler:
                    each.close()
            await until(lambda: not network.connected)
            await count.is_back()
            # there is still room for somebody who means it
            async with open_host(create_identity(), listen=()) as guest:
                assert await guest.connect(addr) == network.peer
        finally:
            stranger.close()


@listen
async def test_streams_one_after_another_and_many_at_once(where: str) -> None:
    async with listening(where) as network, open_host(create_identity(), listen=()) as guest:
        await guest.connect(network.addrs[0])

        async def talk(hold: trio.Event | None = None) -> None:
            stream = await guest.open_stream(network.peer, ECHO)
            await stream.send_all(b"x")
            assert await stream.receive_some(1) == b"x"
            if hold is not None:
                await hold.wait()
            await stream.aclose()

        for _ in range(WARM_UP // 3):
            await talk()
        await until(lambda: network.open_streams == guest.open_streams == 0)
        count, before = await settled(), resident_bytes()
        for _ in range(STREAMS):
            await talk()
        async with trio.open_nursery() as nursery:
            hold = trio.Event()
            for _ in range(200):
                nursery.start_soon(partial(talk, hold))
            await until(lambda: guest.open_streams >= 200)
            hold.set()
        await until(lambda: network.open_streams == guest.open_streams == 0)
        await count.is_back()
        assert resident_bytes() - before < MOST_GROWTH_BYTES
