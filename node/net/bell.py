"""One wake-up for all that Rust has news of: tasks that wait for a token go on in the loop's turn that sees it ready.

Rust's thread never takes the interpreter's lock: it notes tokens and wakes the event loop. Knows no connection.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol, TypeVar

import trio
from trio.lowlevel import Abort, RaiseCancelT, RunVar

from swarmnode import _native

__all__ = ["Bell", "bell_of_this_run"]

READY_TURNS = 16
"""An operation that needs no waiting lets others run this often: rarely enough to cost nothing, often enough that a
task whose data never runs out does not keep the loop."""

_T = TypeVar("_T")
_the_bell: RunVar[Bell] = RunVar("swarmnode_bell")


class Operation(Protocol):
    """What is awaited: `_native.Operation`."""

    @property
    def token(self) -> int: ...
    def poll(self) -> object | None: ...


class Bell(trio.abc.Instrument):
    """The bell of one event loop.

    Attributes:
        native: what Rust rings.
    """

    def __init__(self) -> None:
        self._handle: _Handle = _EventFd() if hasattr(os, "eventfd") else _Pair()
        self.native = _native.Bell(self._handle.ring_fileno())
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._ready = 0

    async def until(self, token: int, poll: Callable[[], _T | None]) -> _T:
        """Poll until there is a result. Cancelling leaves things as the last poll left them."""
        result = poll()
        if result is None:
            while result is None:
                await self._wait(token)
                result = poll()
            return result
        self._ready += 1
        if self._ready % READY_TURNS:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        return result

    async def result(self, operation: Operation) -> object:
        """The result of an operation. Cancelling gives it up once nobody holds it."""
        return await self.until(operation.token, operation.poll)

    def after_io_wait(self, timeout: float) -> None:
        """What trio calls in each turn, before it runs what is ready."""
        for token in self.native.drain():
            task = self._waiting.pop(token, None)
            if task is not None:
                trio.lowlevel.reschedule(task)

    async def keep_awake(self) -> None:
        """Have the loop wake when the bell rings, for ever. What it rang for is seen to by `after_io_wait`."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._handle)
                self._handle.clear()
                self.after_io_wait(0.0)  # what rang between that and clearing would not ring again
        finally:
            self._handle.close()

    async def _wait(self, token: int) -> None:
        def abort(_: RaiseCancelT) -> Abort:
            del self._waiting[token]
            return Abort.SUCCEEDED

        self._waiting[token] = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)


class _Handle(Protocol):
    """What the loop sleeps on and Rust writes to."""

    def fileno(self) -> int: ...
    def ring_fileno(self) -> int: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...


class _EventFd:
    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def ring_fileno(self) -> int:
        return self._fd

    def clear(self) -> None:
        os.eventfd_read(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class _Pair:
    """Where there is no eventfd."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._there.setblocking(False)

    def fileno(self) -> int:
        return self._here.fileno()

    def ring_fileno(self) -> int:
        return self._there.fileno()

    def clear(self) -> None:
        self._here.recv(4096)

    def close(self) -> None:
        self._here.close()
        self._there.close()


def bell_of_this_run() -> Bell:
    """The one bell of the running event loop; it ends with the loop."""
    try:
        return _the_bell.get()
    except LookupError:
        bell = Bell()
        _the_bell.set(bell)
        trio.lowlevel.add_instrument(bell)
        trio.lowlevel.spawn_system_task(bell.keep_awake)
        return bell
