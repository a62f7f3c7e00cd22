"""Swarmnode processes of our own: started, listened to, and gone when we are gone. Knows no model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import trio

from swarmnode.errors import MachineFault

__all__ = ["OwnProcess", "open_processes"]

READ_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024
# What a process said on standard error, kept in case it fails.
KEPT_LOG_LINES: Final = 20
# Between asking processes to leave and making them; Ctrl-C is to be over within a second.
LEAVE_SECONDS: Final = 0.6
POLL_SECONDS: Final = 0.02

Json = dict[str, Any]


class OwnProcess:
    """One `swarmnode … --json` that ends when we end. Made by `OwnProcesses.start`."""

    def __init__(self, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        # Not through trio, which starts processes from a thread: the kernel ties a child to the *thread* that made it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "swarmnode.node.cli.tied", str(os.getpid()), *arguments, "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,  # so that Ctrl-C on the terminal is ours to pass on
        )
        self._log: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        self._happened: dict[str, Json] = {}
        self._changed = trio.Event()
        self._ended = False

    @property
    def pid(self) -> int:
        return self._process.pid

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

    async def listen(self, on_event: Callable[[OwnProcess, Json], None]) -> None:
        """Read what the process says until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_log)
            assert self._process.stdout is not None
            async for line in _lines(self._process.stdout.fileno()):
                with suppress(ValueError):
                    event = json.loads(line)
                    self._happened.setdefault(event["event"], event)
                    self._change()
                    on_event(self, event)
        self._ended = True
        self._change()

    def ask_to_leave(self) -> None:
        """SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it and to all that it started; then it is no more."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    @property
    def has_left(self) -> bool:
        return self._process.poll() is not None

    def _signal(self, number: int) -> None:
        if not self.has_left:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

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

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in _lines(self._process.stderr.fileno()):
            self._log.append(line.decode(errors="replace"))


class OwnProcesses:
    """All processes of one run."""

    def __init__(self, nursery: trio.Nursery, on_event: Callable[[OwnProcess, Json], None]) -> None:
        self._nursery = nursery
        self._on_event = on_event
        self.all: list[OwnProcess] = []

    def start(self, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> OwnProcess:
        """Start `swarmnode ARGUMENTS --json` under a name for people."""
        process = OwnProcess(name, arguments, environ)
        self.all.append(process)
        self._nursery.start_soon(process.listen, self._on_event)
        return process

    async def leave(self) -> None:
        """End them all: politely first, surely in the end. Takes a bounded time and cannot be cancelled."""
        with trio.CancelScope(shield=True):
            for process in self.all:
                process.ask_to_leave()
            with trio.move_on_after(LEAVE_SECONDS):
                # No event tells of a child's end on every system, and the tasks that listen are cancelled by now.
                while not all(process.has_left for process in self.all):  # noqa: ASYNC110
                    await trio.sleep(POLL_SECONDS)
        for process in self.all:
            process.kill()


@asynccontextmanager
async def open_processes(on_event: Callable[[OwnProcess, Json], None]) -> AsyncIterator[OwnProcesses]:
    """A place to start processes in; on leaving it none of them is left.

    Must be used from the main thread. `on_event` gets every event that a process prints.
    """
    async with trio.open_nursery() as nursery:
        processes = OwnProcesses(nursery, on_event)
        try:
            yield processes
        finally:
            await processes.leave()
            nursery.cancel_scope.cancel()


async def _lines(descriptor: int) -> AsyncIterator[bytes]:
    """The lines of a pipe, bounded; closes its own copy of the descriptor."""
    held = b""
    async with trio.lowlevel.FdStream(os.dup(descriptor)) as pipe:
        while chunk := await pipe.receive_some(READ_BYTES):
            *lines, held = (held + chunk).split(b"\n")
            held = held[-MAX_LINE_BYTES:]
            for line in lines:
                yield line
