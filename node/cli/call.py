"""One call of the program: its settings, its voice, and how async work is run so that it can be interrupted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmnode.node.settings import Settings

from .interrupts import ASKING_GRACE_SECONDS, Interrupted, Interrupts
from .voice import Voice

if TYPE_CHECKING:
    from swarmnode.models.progress import ProgressEvent

__all__ = ["Call"]


@dataclass(frozen=True, slots=True)
class Call:
    """What every command gets."""

    settings: Settings
    voice: Voice
    interrupts: Interrupts

    def run(self, work: Callable[[], Awaitable[None]], *, grace_seconds: float = ASKING_GRACE_SECONDS) -> None:
        """Run `work` in trio until it ends or a signal cancels it.

        Raises:
            Interrupted: a signal came.
        """
        import trio

        async def cancellable() -> None:
            with trio.CancelScope() as scope, self.interrupts.cancels(scope, grace_seconds=grace_seconds):
                await work()

        try:
            trio.run(cancellable)
        except Exception as error:
            if self.interrupts.signal_number is None:
                raise
            # What breaks while everything is being taken down is no news to who asked for that.
            logging.getLogger(__name__).debug("on the way out", exc_info=error)
        if self.interrupts.signal_number is not None:
            raise Interrupted

    def progress(self, event: ProgressEvent) -> None:
        """Tell how far a download or load has come; may be called from any thread."""
        from .events import Progress

        self.voice.say(
            Progress(stage=event.stage, what=event.what, done=event.done, total=event.total, unit=event.unit)
        )
