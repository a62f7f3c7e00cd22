"""Accepting TCP connections for ever: many handshakes side by side, the oldest gives way, no error ends it.

Knows neither libp2p nor what a handshake is.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import trio

from swarmnode.errors import PeerRefused

from .wire import Wire, WireLost

__all__ = ["accept_for_ever", "connect_wire"]

HANDSHAKE_SECONDS = 5.0
MAX_HANDSHAKES = 256
"""Unproved inbound connections of one listener at a time; the oldest makes room for a new one."""
ACCEPT_RETRY_SECONDS = 0.1
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger("swarmnode.network")


async def accept_for_ever(listener: socket.socket, welcome: Callable[[Wire], Awaitable[None]]) -> None:
    """Run `welcome` for each connection in a task of its own, which ends with the handshake."""
    handshakes: dict[trio.CancelScope, None] = {}

    async def greet(wire: Wire, scope: trio.CancelScope) -> None:
        welcomed = False
        try:
            with scope:
                await welcome(wire)
                welcomed = True
        except (WireLost, PeerRefused) as error:
            _log.debug("an inbound connection was not taken: %s", error)
        finally:
            handshakes.pop(scope, None)
            if not welcomed:
                wire.close()

    sock = trio.socket.from_stdlib_socket(listener)
    async with trio.open_nursery() as nursery:
        while True:
            try:
                accepted, _ = await sock.accept()
            except OSError as error:
                if error.errno in _NO_ROOM:
                    await trio.sleep(ACCEPT_RETRY_SECONDS)  # others may go meanwhile
                elif error.errno == errno.EBADF:
                    return  # the listener was closed
                continue
            except trio.ClosedResourceError:
                return
            if len(handshakes) >= MAX_HANDSHAKES:
                next(iter(handshakes)).cancel()
            scope = trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_SECONDS)
            handshakes[scope] = None
            nursery.start_soon(greet, Wire(_plain(accepted)), scope)


async def connect_wire(host: str, port: int, family: socket.AddressFamily) -> Wire:
    """A TCP connection to an address or a name. Raises `OSError`."""
    found = await trio.socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    sock = trio.socket.socket(family, kind, protocol)
    try:
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return Wire(_plain(sock))


def _plain(sock: trio.socket.SocketType) -> socket.socket:
    """The socket without trio round it."""
    family, kind, protocol = sock.family, sock.type, sock.proto
    return socket.socket(family, kind, protocol, fileno=sock.detach())
