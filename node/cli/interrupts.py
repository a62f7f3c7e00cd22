"""Ctrl-C and SIGTERM in every phase: cancel what runs, wait a bounded time for a clean end, then leave all the same.

Heavy imports and torch cannot be cancelled, so the bound is kept by a thread that ends the process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    import trio

__all__ = ["Interrupted", "Interrupts"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
# How long a clean end may take before the process ends without it.
ASKING_GRACE_SECONDS: Final = 0.95
SERVING_GRACE_SECONDS: Final = 3.0


class Interrupted(BaseException):
    """The user or the system asked the program to end, and it has cleaned up."""


class Interrupts:
    """Who is told when a signal comes.

    Args:
        last_words: called once when the process ends without unwinding; must not block and not raise.

    Attributes:
        term_code: exit code after SIGTERM; 0 suits a node, which runs until it is told to leave.
        signal_number: the signal that came, if any.
    """

    def __init__(self, last_words: Callable[[], None]) -> None:
        self._last_words = last_words
        self.term_code = 128 + signal.SIGTERM
        self._cancel: Callable[[], None] | None = None
        self._cancel_answer: Callable[[], None] | None = None
        self._grace_seconds = 0.0
        self._before: dict[int, Any] = {}
        self.signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """What the process returns after the signal that came."""
        return self.term_code if self.signal_number == signal.SIGTERM else 128 + signal.SIGINT

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Answer signals while inside; outside the main thread Python allows no handlers and this does nothing."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextmanager
    def cancels(self, scope: trio.CancelScope, *, grace_seconds: float) -> Iterator[None]:
        """Inside `trio.run`: a signal cancels `scope`; what is not unwound after the grace is left as it is."""
        self._grace_seconds = grace_seconds
        self._cancel = _from_handler(scope)
        try:
            yield
        finally:
            self._cancel = None

    @contextmanager
    def cancels_answer(self, scope: trio.CancelScope) -> Iterator[None]:
        """Inside: Ctrl-C cancels `scope` only, once; the second one in the same answer ends the program."""
        self._cancel_answer = _from_handler(scope)
        try:
            yield
        finally:
            self._cancel_answer = None

    def leave(self) -> NoReturn:
        """End the process now, without unwinding."""
        self._last_words()
        os._exit(self.exit_code)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT and self._cancel_answer is not None:
            cancel, self._cancel_answer = self._cancel_answer, None
            cancel()
            return
        asked_before = self.signal_number is not None
        self.signal_number = number
        if asked_before or self._cancel is None:
            self.leave()
        else:
            watch = threading.Timer(self._grace_seconds, self.leave)
            watch.daemon = True
            watch.start()
            self._cancel()


def _from_handler(scope: trio.CancelScope) -> Callable[[], None]:
    """Cancel `scope` from a signal handler; safe after the run has ended, too."""
    import trio

    token = trio.lowlevel.current_trio_token()

    def cancel() -> None:
        try:
            token.run_sync_soon(scope.cancel)
        except trio.RunFinishedError:
            return

    return cancel
