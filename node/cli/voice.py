"""How the program speaks: events to programs, text to people; one of two voices, chosen by `--json`."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Final, Protocol

from .events import Event, Failed, Progress, json_line

__all__ = ["JsonVoice", "Voice"]

# A loader reports each tensor; a reader of events wants to see movement, not a flood.
PROGRESS_SECONDS: Final = 0.25
# How long last words wait for a line that another thread is writing.
LAST_LOCK_SECONDS: Final = 0.1


class Voice(Protocol):
    """Where a command says what happens. May be called from any thread."""

    def say(self, event: Event) -> None:
        """Tell an event. Raises `BrokenPipeError` when nobody reads any more."""

    def note(self, text: str) -> None:
        """Tell people something that programs have no use for."""

    def last_words(self, failed: Failed) -> None:
        """The same as `say` where the process ends at once, even inside a signal handler. Never raises."""

    def close(self) -> None:
        """Take down what is still drawn. Never raises."""


class JsonVoice:
    """One JSON object a line on standard output."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._said_seconds: dict[tuple[str, str], float] = {}

    def say(self, event: Event) -> None:
        if isinstance(event, Progress) and not self._wanted(event):
            return
        with self._lock:
            sys.stdout.write(json_line(event) + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Nothing: programs are told by events."""

    def last_words(self, failed: Failed) -> None:
        write_last(1, json_line(failed) + "\n", self._lock)

    def close(self) -> None:
        """Nothing is drawn."""

    def _wanted(self, event: Progress) -> bool:
        key = (event.stage, event.what)
        now = time.monotonic()
        is_end = event.done == event.total
        if self._quiet or (not is_end and now - self._said_seconds.get(key, -PROGRESS_SECONDS) < PROGRESS_SECONDS):
            return False
        self._said_seconds[key] = now
        return True


def write_last(descriptor: int, text: str, lock: threading.Lock) -> None:
    """Write past Python's buffers, which may be in use by the code that a signal interrupted."""
    held = lock.acquire(timeout=LAST_LOCK_SECONDS)
    with suppress(OSError):
        os.write(descriptor, text.encode(errors="replace"))
    if held:
        lock.release()
