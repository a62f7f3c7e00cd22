"""Whether decode that could run waits a moment for sessions that are about to come. Pure: `now` is an argument.

A pass costs much for itself and little for each session, and clients send their next step soon after they got the last
result. A batch that began as soon as it could would leave out all whose answer is on its way: sessions would fall into
halves that run by turns, and each step would wait for two passes. So a batch waits for those that should have answered
by then, if that is sooner than what a pass costs for itself: nobody waits longer for the others than the pass that is
saved would have taken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from .rates import Pace

__all__ = ["Gathering"]

ANSWERS: Final = 5
"""So many of a session's last answers are known; the slowest of them does not count: somebody may have paused."""

LATE_TIMES: Final = 1.25
"""A session is late when its answer takes so many times as long as the slowest that counts."""

WORTH_WAITING: Final = 0.75
"""Of what a pass costs for itself: so long a batch waits at most. docs/DECISIONS.md has what 0.5 and 1 would do."""


@dataclass(slots=True)
class _Answers:
    """How long a session takes from a result to its next step.

    Attributes:
        since: when it was given a result that it has not answered yet.
        seconds: of its last answers.
        in_time: from a result, in seconds; infinite before the first answer.
    """

    since: float | None = None
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=ANSWERS))
    in_time: float = math.inf

    @property
    def due(self) -> float:
        """By when its next step should be here."""
        return math.inf if self.since is None else self.since + self.in_time

    def came(self, now: float) -> None:
        if self.since is not None:
            self.seconds.append(now - self.since)
            self.since = None
            self.in_time = LATE_TIMES * sorted(self.seconds)[max(0, len(self.seconds) - 2)]


class Gathering:
    """Who is about to come, and until when decode that waits gives them the time.

    Attributes:
        pace: tell it what each pass of decode took.
        until: when the batch that waits begins in any case; None while none waits.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self.until: float | None = None
        self._sessions: dict[bytes, _Answers] = {}
        self._missing: set[bytes] = set()

    def __len__(self) -> int:
        """How many sessions are remembered."""
        return len(self._sessions)

    def given(self, sessions: Iterable[bytes], now: float) -> None:
        """These sessions are given a result, and have no step here."""
        for session in sessions:
            self._sessions.setdefault(session, _Answers()).since = now

    def came(self, session: bytes, now: float) -> None:
        """A session's next step is here."""
        if session in self._sessions:
            self._sessions[session].came(now)
        self._missing.discard(session)

    def forget(self, session: bytes) -> None:
        """It has ended."""
        self._sessions.pop(session, None)
        self._missing.discard(session)

    def waits(self, now: float) -> bool:
        """Whether the batch that could begin waits: from when it is first asked until all have come, or are late."""
        if self.until is None:
            latest = now + WORTH_WAITING * self.pace.seconds(0, 1)
            due = {session: each.due for session, each in self._sessions.items() if now < each.due <= latest}
            self.until = max(due.values(), default=now)
            self._missing = set(due)
        return self.is_on(now)

    def is_on(self, now: float) -> bool:
        """Whether a batch waits for others now. Asked without consequences."""
        return self.until is not None and now < self.until and bool(self._missing)

    def begun(self) -> None:
        """The batch has begun."""
        self.until = None
        self._missing.clear()
