"""Swarmnode processes of our own: started, listened to, and gone when we are gone. Knows no model."""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import trio

from swarmnode.errors import MachineFault

from .waiting import Waiting

__all__ = ["OwnProcess", "listening_to"]

READ_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024
# What a process said on standard error, kept in case it fails.
KEPT_LOG_LINES: Final = 20
# Between asking processes to leave and making them; Ctrl-C is to be over within a second.
LEAVE_SECONDS: Final = 0.6
POLL_SECONDS: Final = 0.02

Json = dict[str, Any]


class OwnProcess:
    """One `swarmnode … --json` that ends when we end.

    Args:
        name: what to call it.
        waiting: the process, to be told what to run by `begin`.
    """

    def __init__(self, name: str, waiting: Waiting) -> None:
        self.name = name
        self._waiting = waiting
        self._log: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        self._happened: dict[str, Json] = {}
        self._changed = trio.Event()
        self._ended = False

    @property
    def pid(self) -> int:
        return self._waiting.pid

    def begin(self, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        """Run `swarmnode ARGUMENTS --json`."""
        self._waiting.tell([*arguments, "--json"], environ)

    async def wait_for(self, event: str) -> Json:
        """The first event of that name, now or when it comes.

        Raises:
            MachineFault: the process ended without it; the message is the process's own where it gave one.
        """
        while event not in self._happened:
            if self._ended:
                raise self._death()
            await self._changed.wait()
        return self._happened[event]

    async def listen(
        self, on_event: Callable[[OwnProcess, Json], None], on_log: Callable[[OwnProcess, str], None] | None = None
    ) -> None:
        """Read what the process says until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_log, on_log)
            async for line in _lines(self._waiting.stdout):
                with suppress(ValueError):
                    event = json.loads(line)
                    self._happened.setdefault(event["event"], event)
                    self._change()
                    on_event(self, event)
        self._ended = True
        self._change()

    def ask_to_leave(self) -> None:
        """SIGTERM."""
        self._waiting.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a power cut; `end` is still to come."""
        self._waiting.signal(signal.SIGKILL)

    def end(self) -> None:
        """SIGKILL to it and to all that it started; then it is no more."""
        self._waiting.end()

    @property
    def has_left(self) -> bool:
        return self._waiting.has_ended()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _death(self) -> MachineFault:
        error = self._happened.get("error")
        if error is not None:
            return MachineFault(f"{self.name} failed: {error['message']}", hint=str(error["hint"]))
        last = next((line for line in reversed(self._log) if line.strip()), "it said nothing")
        return MachineFault(
            f"{self.name} ended unexpectedly: {last.strip()}", hint="Run again with --debug to see more."
        )

    async def _read_log(self, on_log: Callable[[OwnProcess, str], None] | None) -> None:
        async for line in _lines(self._waiting.stderr):
            text = line.decode(errors="replace")
            self._log.append(text)
            if on_log is not None:
                on_log(self, text)


@asynccontextmanager
async def listening_to(
    processes: Sequence[OwnProcess],
    on_event: Callable[[OwnProcess, Json], None],
    on_log: Callable[[OwnProcess, str], None] | None = None,
) -> AsyncIterator[None]:
    """Hear the processes while inside; on leaving, none of them is left.

    Args:
        on_event: given every event of each.
        on_log: given every line that each says on standard error.
    """
    async with trio.open_nursery() as nursery:
        for process in processes:
            nursery.start_soon(process.listen, on_event, on_log)
        try:
            yield
        finally:
            await _leave(processes)
            nursery.cancel_scope.cancel()


async def _leave(processes: Sequence[OwnProcess]) -> None:
    """End them all: politely first, surely in the end. Takes a bounded time and cannot be cancelled."""
    with trio.CancelScope(shield=True):
        for process in processes:
            process.ask_to_leave()
        with trio.move_on_after(LEAVE_SECONDS):
            # No event tells of a child's end on every system, and the tasks that listen may be cancelled by now.
            while not all(process.has_left for process in processes):  # noqa: ASYNC110
                await trio.sleep(POLL_SECONDS)
    for process in processes:
        process.end()


async def _lines(descriptor: int) -> AsyncIterator[bytes]:
    """The lines of a pipe, bounded; closes its own copy of the descriptor."""
    held = b""
    async with trio.lowlevel.FdStream(os.dup(descriptor)) as pipe:
        while chunk := await pipe.receive_some(READ_BYTES):
            *lines, held = (held + chunk).split(b"\n")
            held = held[-MAX_LINE_BYTES:]
            for line in lines:
                yield line
