"""Tasks side by side whose exceptions come out bare, not in an `ExceptionGroup`. Knows nothing of what they do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

__all__ = ["open_background", "race", "together"]


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled when the block ends.

    An exception of the block, `trio.Cancelled` too, leaves it as it is and not inside an `ExceptionGroup`, so that
    `except NoPeers` round an `async with` works. A task's exception is a bug and comes as the group that trio makes.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except BaseException as raised:  # noqa: BLE001 - raised again below, once the tasks are gone
            error = raised
        nursery.cancel_scope.cancel()
    if error is not None:
        try:
            raise error
        finally:
            del error  # the traceback holds this frame: no cycle through its variable


async def race(*tasks: Callable[[], Awaitable[object]]) -> None:
    """Run all until the first of them ends, then cancel the others.

    Raises what the first one to end raised, as it is. Exceptions of the others, on their way out, are only shown as its
    context: they are mostly echoes of the first.
    """
    errors: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def run(task: Callable[[], Awaitable[object]]) -> None:
            try:
                await task()
            except Exception as error:  # noqa: BLE001 - raised again below
                errors.append(error)
            nursery.cancel_scope.cancel()

        for task in tasks:
            nursery.start_soon(run, task)
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()


async def together(*tasks: Callable[[], Awaitable[object]]) -> None:
    """Run all to their ends. The first that raises cancels the others, and what it raised comes as it is."""
    left = len(tasks)
    done = trio.Event()

    async def run(task: Callable[[], Awaitable[object]]) -> None:
        nonlocal left
        await task()
        left -= 1
        if left:
            await done.wait()
        done.set()

    if tasks:
        await race(*(partial(run, task) for task in tasks))
