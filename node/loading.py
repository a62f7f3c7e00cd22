"""Long work on files, in a thread of its own, that can be given up at any time. Knows no model and no network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from swarmnode.models.progress import Progress, ProgressEvent

__all__ = ["Abandoned", "load"]

T = TypeVar("T")


class Abandoned(BaseException):
    """Raised inside the thread, where it reports progress, once nobody waits for it any more.

    No `Exception`, so that nothing on the way takes it for a fault of a file and handles it.
    """


async def load(work: Callable[[Progress], T], progress: Progress | None) -> T:
    """Run `work(tell)` in a thread and return its result.

    Cancelling returns at once; the thread goes on until it next tells of its progress, and ends there.

    Args:
        progress: is told what `work` tells, from that thread.
    """
    given_up = False

    def tell(event: ProgressEvent) -> None:
        if given_up:
            raise Abandoned
        if progress is not None:
            progress(event)

    try:
        return await trio.to_thread.run_sync(work, tell, abandon_on_cancel=True)
    finally:
        given_up = True
