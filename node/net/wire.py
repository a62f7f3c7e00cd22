"""One TCP connection as a run of bytes: writes never wait, reads wait for the kernel, a dead link is noticed by it.

Works on a non-blocking socket directly, so that a write is one system call and can never be cancelled half-way. Knows
neither encryption nor streams.
"""

from __future__ import annotations

import socket
from collections import deque
from contextlib import suppress

import trio

__all__ = ["Wire", "WireLost"]

MAX_BACKLOG_BYTES = 256 * 1024
"""A sender waits while more than this has not been taken by the kernel."""
MAX_REPLIES_BYTES = 1024 * 1024
"""So much may pile up when the other end makes us answer but does not read our answers; then it is shut out."""
RECEIVE_BYTES = 256 * 1024
# The kernel itself gives up a link whose other end is silent: data unacknowledged for so long, or, on an idle link,
# probes that nobody answers.
UNACKNOWLEDGED_SECONDS = 8
PROBE_AFTER_SECONDS = 10
PROBE_EVERY_SECONDS = 3
PROBES = 3


class WireLost(Exception):
    """The connection is gone."""


class Wire:
    """A connected TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self._more_to_write = trio.Event()
        self._room = trio.Event()
        self._closed = False
        with suppress(OSError):  # each is a help, none is needed; some systems lack some
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def remote_address(self) -> tuple[str, int] | None:
        """The other end's IP address and port."""
        try:
            host, port, *_ = self._socket.getpeername()
        except OSError:
            return None
        return host, port

    @property
    def near(self) -> bool:
        """Whether the other end is on this machine: both ends have the same address."""
        try:
            return bool(self._socket.getpeername()[0] == self._socket.getsockname()[0])
        except (OSError, IndexError):
            return False

    @property
    def congested(self) -> bool:
        """Whether a polite sender waits for `room` now."""
        return self._backlog_bytes > MAX_BACKLOG_BYTES

    def write(self, data: bytes) -> None:
        """Hand bytes to the kernel, or keep what it does not take. Raises `WireLost`."""
        if self._closed:
            raise WireLost("the connection is closed")
        if not self._backlog:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise self._lost(error) from error
            if sent == len(data):
                return
            self._more_to_write.set()
        else:
            sent = 0
        self._backlog.append(memoryview(data)[sent:])
        self._backlog_bytes += len(data) - sent
        if self._backlog_bytes > MAX_REPLIES_BYTES:
            self.close()
            raise WireLost("the other end does not read its answers")

    async def flush_for_ever(self) -> None:
        """Write what the kernel did not take at once. One task of the connection runs this. Raises `WireLost`."""
        while True:
            await self._more_to_write.wait()
            await self._wait_writable()
            while self._backlog:
                first = self._backlog[0]
                try:
                    sent = self._socket.send(first)
                except BlockingIOError:
                    break
                except OSError as error:
                    raise self._lost(error) from error
                self._backlog_bytes -= sent
                if sent == len(first):
                    self._backlog.popleft()
                else:
                    self._backlog[0] = first[sent:]
            else:
                self._more_to_write = trio.Event()
            if not self.congested:
                self._room.set()

    async def room(self) -> None:
        """Wait until the connection is not congested. Raises `WireLost`."""
        while self.congested:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()
        if self._closed:
            raise WireLost("the connection is closed")

    async def receive(self) -> bytes:
        """What has come, at least one byte; `b""` at the end. Raises `WireLost`."""
        await trio.lowlevel.checkpoint()
        while not self._closed:
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._lost(error) from error
            try:
                await trio.lowlevel.wait_readable(self._socket.fileno())
            except trio.ClosedResourceError:
                break
        raise WireLost("the connection is closed")

    def close(self) -> None:
        """Close the socket, at once; whoever waits on it gets `WireLost`."""
        if self._closed:
            return
        self._closed = True
        self._backlog.clear()
        self._backlog_bytes = 0
        trio.lowlevel.notify_closing(self._socket.fileno())
        self._socket.close()
        self._room.set()
        self._more_to_write.set()

    async def _wait_writable(self) -> None:
        if self._closed:
            raise WireLost("the connection is closed")
        try:
            await trio.lowlevel.wait_writable(self._socket.fileno())
        except trio.ClosedResourceError:
            raise WireLost("the connection is closed") from None

    def _lost(self, error: OSError) -> WireLost:
        self.close()
        return WireLost(error.strerror or "the connection broke")
