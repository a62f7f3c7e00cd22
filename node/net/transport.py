"""The transport that is plugged in below py-libp2p's host: Rust's, over QUIC, over TCP, or inside of another stream.

Plain text is not spoken.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

import trio
from multiaddr import Multiaddr

from swarmnode import _native
from swarmnode.errors import BadInput
from swarmnode.node.bell import bell_of_this_run
from swarmnode.node.identity import Identity

from .addresses import Endpoint, parse_addr, resolve
from .connection import Connection
from .lost import WireLost
from .native import NativeMuxer, NativeStream
from .p2p import IListener, ITransport, create_new_key_pair

__all__ = ["Transport"]


class Transport(ITransport):  # type: ignore[misc]
    """All as one transport of py-libp2p's. Must be made inside of trio, and not before a fork: it starts a thread."""

    provides_native_muxing = True

    def __init__(self, identity: Identity) -> None:
        self.keys = create_new_key_pair(identity.seed)
        self._bell = bell_of_this_run()
        self._native = _native.Transport(identity.seed, self._bell.native)

    def protocols(self) -> list[str]:
        return ["quic-v1", "tcp"]

    def can_dial(self, maddr: Multiaddr) -> bool:
        try:
            return parse_addr(str(maddr))[1] is not None
        except BadInput:
            return False

    def can_listen(self, maddr: Multiaddr) -> bool:
        return False  # the listening sockets are bound before the host starts, so that errors can be told

    def create_listener(self, handler_function: object) -> IListener:
        raise NotImplementedError("the host listens on sockets of its own")

    async def dial(self, maddr: Multiaddr) -> Connection:
        """Connect to a full multiaddr. Raises `OSError`, `WireLost`, `BadInput`."""
        endpoint, peer = parse_addr(str(maddr))
        if peer is None:
            raise BadInput(f"{maddr} does not name a peer.", hint="A full address ends in /p2p/ and the peer id.")
        dial = self._native.dial if endpoint.transport == "quic" else self._native.dial_tcp
        return await self._connection(partial(dial, await resolve(endpoint), endpoint.port, peer))

    async def upgrade(self, stream: NativeStream, expected: str | None, relay: str) -> Connection:
        """Make a connection inside of a stream that a relay carries, which is not to be used otherwise any more.

        `expected` is the peer that we have reached by it, None when it has reached us. Raises `WireLost`.
        """
        return await self._connection(partial(self._native.upgrade, stream.native, expected), relay)

    def listen(self, sock: socket.socket) -> None:
        """Take over a bound UDP socket, or a listening TCP socket: connections come in over it.

        Over a UDP socket they also go out, and holes are punched from it.
        """
        listen = self._native.listen if sock.type == socket.SOCK_DGRAM else self._native.listen_tcp
        listen(sock.detach())

    async def accept(self) -> Connection:
        """The next connection that comes in. Raises `WireLost` once the transport is closed."""
        return await self._connection(self._native.accept)

    async def punch(self, endpoint: Endpoint, seconds: float) -> None:
        """Let in through our NAT, for so long, what comes from there. Raises `OSError`, `WireLost`."""
        host = await resolve(endpoint)
        try:
            self._native.punch(host, endpoint.port, seconds)
        except _native.TransportError as error:
            raise WireLost(str(error)) from error
        await trio.sleep(seconds)

    def close(self) -> None:
        """End all connections and say so."""
        self._native.close()

    async def _connection(self, begin: Callable[[], _native.Operation], relay: str | None = None) -> Connection:
        try:
            connection = await self._bell.result(begin())
        except _native.TransportError as error:
            raise WireLost(str(error)) from error
        assert isinstance(connection, _native.Connection)
        return Connection(NativeMuxer(connection, self._bell, relay))
