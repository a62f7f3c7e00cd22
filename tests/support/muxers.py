"""A connection of the transport in Rust, both ends of it in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from multiaddr import Multiaddr

from swarmnode.node.identity import create_identity
from swarmnode.node.net.addresses import listen_socket, listening_addrs
from swarmnode.node.net.native import NativeMuxer, NativeStream
from swarmnode.node.net.transport import Transport

__all__ = ["Pair", "pair"]


@dataclass
class Pair:
    here: NativeMuxer
    there: NativeMuxer
    addr: str

    async def streams(self) -> tuple[NativeStream, NativeStream]:
        """The two ends of a stream; a byte has to travel before the other end knows of it."""
        ours = await self.here.open()
        await ours.send_all(b"!")
        theirs = await self.there.accept()
        assert await theirs.receive_some(1) == b"!"
        return ours, theirs


@asynccontextmanager
async def pair(listen: str) -> AsyncIterator[Pair]:
    one, other = create_identity(), create_identity()
    dialler, listener = Transport(one), Transport(other)
    sock = listen_socket(listen)
    addr = f"{listening_addrs(sock)[0]}/p2p/{other.peer}"
    listener.listen(sock)
    try:
        async with trio.open_nursery() as nursery:
            found = (await dialler.dial(Multiaddr(addr))).muxer, (await listener.accept()).muxer
            for muxer in found:
                nursery.start_soon(muxer.run)
            yield Pair(*found, addr)
            nursery.cancel_scope.cancel()
    finally:
        dialler.close()
        listener.close()
