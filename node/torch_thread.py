"""One operating system thread that runs everything torch, so that the event loop stays free. Knows no model.

One thread, because torch keeps a pool of its own for every thread that calls it, and because caches then need no locks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

import outcome
import trio

from .bell import bell_of_this_run
from .defaults import CLOSE_SECONDS, MAX_TORCH_JOBS

__all__ = ["TorchThread", "open_torch_thread"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Job:
    """One call, and who is told what came of it."""

    __slots__ = ("call", "done", "urgent")

    def __init__(
        self, call: Callable[[], Any], done: Callable[[outcome.Outcome[Any]], object], *, urgent: bool
    ) -> None:
        self.call = call
        self.done = done
        self.urgent = urgent


class TorchThread:
    """Runs calls one after the other, in the order they came. Made by `open_torch_thread`.

    A long call may let urgent ones run in its midst (`give_way`).
    """

    def __init__(self, *, max_jobs: int = MAX_TORCH_JOBS) -> None:
        self._bell = bell_of_this_run()
        self._room = trio.Semaphore(max_jobs, max_value=max_jobs)
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._ended = trio.Event()
        # A daemon: a load of minutes must not keep a cancelled program alive.
        self._thread = threading.Thread(target=self._work, name="swarmnode-torch", daemon=True)

    async def run(self, call: Callable[[*Ts], T], *args: *Ts, urgent: bool = False) -> T:
        """Run `call(*args)` on the thread and return what it returns or raise what it raises.

        Args:
            urgent: whether it may run in the midst of a call that gives way. Torch is in inference mode there, perhaps.

        Cancelling is safe: a call that has not begun never runs; one that has begun runs to its end and its result is
        thrown away. Raises `RuntimeError` when the thread has been closed.
        """
        await self._room.acquire()
        task = trio.lowlevel.current_task()
        given_up = False

        def done(result: outcome.Outcome[Any]) -> None:
            self._room.release()
            if not given_up:
                trio.lowlevel.reschedule(task, result)

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal given_up
            given_up = True
            with self._changed:
                waiting = job in self._jobs
                if waiting:
                    self._jobs.remove(job)
            if waiting:
                self._room.release()
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            job = self._add(lambda: call(*args), done, urgent=urgent)
        except RuntimeError:
            self._room.release()
            raise
        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    def start(
        self, call: Callable[[], T], done: Callable[[outcome.Outcome[T]], object], *, urgent: bool = False
    ) -> None:
        """Have `call` run after those that came before, and `done` called on the event loop with what came of it.

        `urgent` as for `run`.

        Nothing bounds how many calls wait but whoever makes them. Nobody is told of those that the end of the thread
        leaves behind. Raises `RuntimeError` when it has been closed.
        """
        self._add(call, done, urgent=urgent)

    def give_way(self) -> bool:
        """Run the urgent calls that wait now, and tell what came of them; whether there were any.

        To be called by a call on this thread, where others may run in its midst.
        """
        given = False
        for _ in range(len(self._jobs)):
            with self._changed:
                job = next((job for job in self._jobs if job.urgent), None)
                if job is None:
                    break
                self._jobs.remove(job)
            given = True
            self._tell(partial(job.done, outcome.capture(job.call)))
        return given

    @property
    def waiting(self) -> int:
        """How many calls have not begun."""
        return len(self._jobs)

    def _add(self, call: Callable[[], T], done: Callable[[outcome.Outcome[T]], object], *, urgent: bool) -> _Job:
        if self._closing:
            raise RuntimeError("the torch thread is closed")
        job = _Job(call, done, urgent=urgent)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closing:
                    self._changed.wait()
                if self._closing:
                    break
                job = self._jobs.popleft()
            result = outcome.capture(job.call)
            if not self._tell(partial(job.done, result)):
                return
            del job, result  # while waiting, hold no tensors of the last call
        self._tell(self._ended.set)

    def _tell(self, call: Callable[[], object]) -> bool:
        """Run `call` on the event loop soon; False when the loop has ended."""
        try:
            self._bell.soon(call)
        except trio.RunFinishedError:
            return False
        return True

    async def _close(self) -> None:
        with self._changed:
            self._closing = True
            self._jobs.clear()
            self._changed.notify()
        # A running call cannot be stopped; it is given a moment and then left behind.
        with trio.move_on_after(CLOSE_SECONDS) as scope:
            scope.shield = True
            await self._ended.wait()


@asynccontextmanager
async def open_torch_thread(*, max_jobs: int = MAX_TORCH_JOBS) -> AsyncIterator[TorchThread]:
    """The thread, for as long as the block runs. All tasks that use it must end within the block."""
    thread = TorchThread(max_jobs=max_jobs)
    thread._thread.start()
    try:
        yield thread
    finally:
        await thread._close()
