"""What the transport's benchmark compares, each behind the same few functions: messages both ways over a stream.

An empty message is the last one, so that nobody depends on how a transport tells of the end of a stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import trio
from multiaddr import Multiaddr

from swarmnode.node.identity import create_identity
from swarmnode.node.net.host import open_host
from swarmnode.node.net.network import Stream
from swarmnode.node.net.p2p import (
    ID,
    NOISE,
    NoiseTransport,
    PeerInfo,
    create_new_key_pair,
    create_noise_key_pair,
    new_host,
)

__all__ = ["CARRIERS", "Carrier", "OpenPipe", "Pipe"]

JOIN_BYTES = 64 * 1024
"""Up to this size length and body are one write, as in `node/streams.py`."""
READ_BYTES = 1 << 20
MAX_BODY_BYTES = 16 << 20
EMPTY_HEADER = b"\x80"
"""An empty map in msgpack: a frame must have a header."""


class Pipe(Protocol):
    """Messages both ways."""

    async def send(self, body: bytes | bytearray | memoryview) -> None: ...
    async def receive(self) -> bytes | bytearray | memoryview: ...


OpenPipe = Callable[[str], AbstractAsyncContextManager[Pipe]]
Handlers = Mapping[str, Callable[[Pipe], Awaitable[None]]]


class Carrier(Protocol):
    """A transport under test. Protocols are short texts."""

    def listening(self, handlers: Handlers) -> AbstractAsyncContextManager[str]:
        """Answer while the block runs; yields the address."""

    def dialling(self) -> AbstractAsyncContextManager[Callable[[str], Awaitable[OpenPipe]]]:
        """A fresh dialler; it connects to an address and gives what opens pipes there."""


class BytePipe:
    """Messages over a stream of bytes."""

    def __init__(self, write: Callable[[bytes], Awaitable[Any]], read: Callable[[int], Awaitable[bytes]]) -> None:
        self._write = write
        self._read = read

    async def send(self, body: bytes | bytearray | memoryview) -> None:
        head = len(body).to_bytes(8, "little")
        if len(body) <= JOIN_BYTES:
            await self._write(head + body)
        else:
            await self._write(head)
            await self._write(bytes(body))

    async def receive(self) -> bytearray:
        return await self._take(int.from_bytes(await self._take(8), "little"))

    async def _take(self, count: int) -> bytearray:
        taken, at = bytearray(count), 0
        while at < count:
            piece = await self._read(min(count - at, READ_BYTES))
            if not piece:
                raise EOFError("the stream ended in the middle of a message")
            taken[at : at + len(piece)] = piece
            at += len(piece)
        return taken


class MessagePipe:
    """Messages over our own message API."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send(self, body: bytes | bytearray | memoryview) -> None:
        await self._stream.send_message(EMPTY_HEADER, body)

    async def receive(self) -> memoryview:
        message = await self._stream.receive_message(MAX_BODY_BYTES)
        if message is None:
            raise EOFError("the stream ended")
        body: memoryview = message[1]
        return body


class Raw:
    """TCP under trio, no libp2p, nothing sealed; a pipe is a connection of its own."""

    @asynccontextmanager
    async def listening(self, handlers: Handlers) -> AsyncIterator[str]:
        names = dict(enumerate(handlers))

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                if which := await stream.receive_some(1):
                    await handlers[names[which[0]]](BytePipe(stream.send_all, stream.receive_some))

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
            yield f"{listeners[0].socket.getsockname()[1]} {' '.join(handlers)}"
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def dialling(self) -> AsyncIterator[Callable[[str], Awaitable[OpenPipe]]]:
        async def dial(addr: str) -> OpenPipe:
            port, *names = addr.split()
            await (await trio.open_tcp_stream("127.0.0.1", int(port))).aclose()

            @asynccontextmanager
            async def open_pipe(protocol: str) -> AsyncIterator[Pipe]:
                async with await trio.open_tcp_stream("127.0.0.1", int(port)) as stream:
                    await stream.send_all(bytes([names.index(protocol)]))
                    yield BytePipe(stream.send_all, stream.receive_some)

            return open_pipe

        yield dial


class Stock:
    """A py-libp2p host as its own `new_host` makes it, with Noise and yamux over TCP, or with its QUIC."""

    def __init__(self, *, quic: bool) -> None:
        self._quic = quic

    def _host(self) -> Any:
        keys = create_new_key_pair()
        if self._quic:
            return new_host(keys, enable_quic=True)
        return new_host(keys, sec_opt={NOISE: NoiseTransport(keys, create_noise_key_pair().private_key)})

    @asynccontextmanager
    async def listening(self, handlers: Handlers) -> AsyncIterator[str]:
        host = self._host()
        where = Multiaddr("/ip4/127.0.0.1/udp/0/quic-v1" if self._quic else "/ip4/127.0.0.1/tcp/0")
        async with host.run([where]):
            for protocol, handler in handlers.items():

                async def answer(stream: Any, handler: Callable[[Pipe], Awaitable[None]] = handler) -> None:
                    await handler(BytePipe(stream.write, stream.read))
                    await stream.close()

                host.set_stream_handler(protocol, answer)
            yield str(host.get_addrs()[0])

    @asynccontextmanager
    async def dialling(self) -> AsyncIterator[Callable[[str], Awaitable[OpenPipe]]]:
        host = self._host()

        async def dial(addr: str) -> OpenPipe:
            where, _, peer = addr.partition("/p2p/")
            await host.connect(PeerInfo(ID.from_base58(peer), [Multiaddr(where)]))

            @asynccontextmanager
            async def open_pipe(protocol: str) -> AsyncIterator[Pipe]:
                stream = await host.new_stream(ID.from_base58(peer), [protocol])
                yield BytePipe(stream.write, stream.read)
                await stream.close()

            return open_pipe

        async with host.run([]):
            yield dial


class Ours:
    """Our own host, over one of its transports, by bytes or by whole messages."""

    def __init__(self, listen: Sequence[str], pipe: Callable[[Stream], Pipe]) -> None:
        self._listen = listen
        self._pipe = pipe

    @asynccontextmanager
    async def listening(self, handlers: Handlers) -> AsyncIterator[str]:
        async with open_host(create_identity(), listen=self._listen) as network:
            for protocol, handler in handlers.items():

                async def answer(stream: Stream, handler: Callable[[Pipe], Awaitable[None]] = handler) -> None:
                    await handler(self._pipe(stream))

                network.handle(protocol, answer)
            yield network.addrs[0]

    @asynccontextmanager
    async def dialling(self) -> AsyncIterator[Callable[[str], Awaitable[OpenPipe]]]:
        async with open_host(create_identity(), listen=()) as network:

            async def dial(addr: str) -> OpenPipe:
                peer = await network.connect(addr)

                @asynccontextmanager
                async def open_pipe(protocol: str) -> AsyncIterator[Pipe]:
                    stream = await network.open_stream(peer, protocol)
                    yield self._pipe(stream)
                    await stream.aclose()

                return open_pipe

            yield dial


def _bytes(stream: Stream) -> Pipe:
    return BytePipe(stream.send_all, stream.receive_some)


TCP = ("/ip4/127.0.0.1/tcp/0",)
QUIC = ("/ip4/127.0.0.1/udp/0/quic-v1",)

CARRIERS: dict[str, Callable[[], Carrier]] = {
    "raw_tcp": Raw,
    "stock_tcp": partial(Stock, quic=False),
    "stock_quic": partial(Stock, quic=True),
    "ours_quic": partial(Ours, QUIC, _bytes),
    "ours_quic_messages": partial(Ours, QUIC, MessagePipe),
    "ours_tcp": partial(Ours, TCP, _bytes),
    "ours_tcp_messages": partial(Ours, TCP, MessagePipe),
}
