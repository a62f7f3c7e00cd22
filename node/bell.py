"""One wake-up of the event loop for all that other threads have news of, seen to in the very turn that it wakes for.

Rust's thread never takes the interpreter's lock: it notes tokens and wakes the loop, and tasks that wait for a token go
on. Python's threads leave calls. Knows no connection and no model.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import trio
from trio.lowlevel import Abort, RaiseCancelT, RunVar

from swarmnode import _native

__all__ = ["Bell", "bell_of_this_run"]

_log = logging.getLogger("swarmnode.bell")

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
        handle: _Handle = _EventFd() if hasattr(os, "eventfd") else _Pair()
        self._handle: _Handle | None = handle
        self.native = _native.Bell(handle.ring_fileno())
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._calls: deque[Callable[[], object]] = deque()
        self._open = threading.Lock()
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

    def soon(self, call: Callable[[], object]) -> None:
        """Have the loop run `call`, from any thread. It must be quick and raise nothing.

        Raises `trio.RunFinishedError` once the loop has ended.
        """
        with self._open:
            if self._handle is None:
                raise trio.RunFinishedError
            self._calls.append(call)
            self._handle.ring()

    def after_io_wait(self, timeout: float) -> None:
        """What trio calls in each turn, before it runs what is ready."""
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:  # noqa: BLE001 - the edge of the other thread's call; trio would never call us again
                _log.exception("a call that another thread left for the event loop failed")
        for token in self.native.drain():
            task = self._waiting.pop(token, None)
            if task is not None:
                trio.lowlevel.reschedule(task)

    async def keep_awake(self) -> None:
        """Have the loop wake when the bell rings, for ever. What it rang for is seen to by `after_io_wait`."""
        handle = self._handle
        assert handle is not None
        try:
            while True:
                await trio.lowlevel.wait_readable(handle)
                handle.clear()
                self.after_io_wait(0.0)  # what rang between that and clearing would not ring again
        finally:
            with self._open:  # no thread rings what is somebody else's handle by then
                self._handle = None
                handle.close()

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
    def ring(self) -> None: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...


class _EventFd:
    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def ring_fileno(self) -> int:
        return self._fd

    def ring(self) -> None:
        os.eventfd_write(self._fd, 1)

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

    def ring(self) -> None:
        with suppress(BlockingIOError):  # it is full, and so wakes already
            self._there.send(b"!")

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
