"""A nursery for what runs behind an `async with` block, so that the block's own exceptions come out bare."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["open_background"]


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
