"""Which pass of training goes on next, when it may, and who is let in. Pure: no torch, `now` is an argument.

Training has what sessions leave over: it goes on, one *stretch* (a group of rows in one block) at a time, while no
batch is under way and none has been lately; and once after `PATIENCE_BATCHES` of them in any case, so that it ends.
Sessions never wait for more than the stretch under way. Among peers it goes by turns; a group that was begun goes on to
its end, so that what is kept inside of one is held for one only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from swarmnode.node.defaults import MAX_TRAINING_PASSES, MAX_TRAINING_PASSES_PER_PEER, TRAINING_GRACE_SECONDS

from .busy import Busy, Lasting, busy_for
from .schedule import PATIENCE_BATCHES
from .turns import Turns

__all__ = ["TrainingLine"]

Work = TypeVar("Work")


@dataclass(slots=True)
class _Pass(Generic[Work]):
    peer: str
    bytes: int
    since: float
    groups: deque[tuple[Work, int]] = field(default_factory=deque)


class TrainingLine(Generic[Work]):
    """The passes of a server, by keys that their owner gives them.

    Attributes:
        bytes: foretold for all of them together.
    """

    def __init__(
        self,
        *,
        max_passes: int = MAX_TRAINING_PASSES,
        max_passes_per_peer: int = MAX_TRAINING_PASSES_PER_PEER,
        grace_seconds: float = TRAINING_GRACE_SECONDS,
    ) -> None:
        self.bytes = 0
        self._max_passes = max_passes
        self._max_passes_per_peer = max_passes_per_peer
        self._grace_seconds = grace_seconds
        self._passes: dict[Hashable, _Pass[Work]] = {}
        self._current: tuple[Hashable, Work] | None = None
        self._turns = Turns()
        self._passed_over = 0
        self._last_batch = -grace_seconds
        self._lasting = Lasting()

    @property
    def waiting(self) -> bool:
        """Whether there is anything to go on with."""
        return self._current is not None or any(each.groups for each in self._passes.values())

    def admit(self, key: Hashable, peer: str, bytes: int, room_bytes: int, now: float) -> Busy | None:
        """Take a new pass, or say why not now.

        Args:
            bytes: what it takes.
            room_bytes: what all passes together may take.
        """
        if len(self._passes) >= self._max_passes:
            return self._busy(f"This server already trains for its {self._max_passes} passes.", now)
        theirs = sum(each.peer == peer for each in self._passes.values())
        if theirs >= self._max_passes_per_peer:
            return self._busy(f"You already have {theirs} passes of training here, the most for one peer.", now)
        if self.bytes + bytes > room_bytes:
            return self._busy("The memory for training is taken.", now)
        self.bytes += bytes
        self._passes[key] = _Pass(peer, bytes, now)
        return None

    def release(self, key: Hashable, now: float) -> None:
        """The pass is over, and all that it held is freed."""
        over = self._passes.pop(key)
        self.bytes -= over.bytes
        if self._current is not None and self._current[0] == key:
            self._current = None
        self._lasting.ended(over.since, now)

    def add(self, key: Hashable, group: Work, tokens: int) -> None:
        """A group of a pass is there to be computed, behind the pass's others."""
        self._passes[key].groups.append((group, tokens))

    def batch_over(self, now: float) -> None:
        """A batch of sessions' steps has been run."""
        self._last_batch = now
        if self.waiting:
            self._passed_over += 1

    def next(self, *, busy: bool, now: float) -> Work | None:
        """The group to go on with, for one stretch; None when it is not training's turn.

        Args:
            busy: whether a batch of sessions' steps is under way.
        """
        if not self.waiting or not self._may_run(busy, now):
            return None
        self._passed_over = 0
        if self._current is None:
            self._turns.forget({each.peer for each in self._passes.values() if each.groups})
            ready = [key for key, each in self._passes.items() if each.groups]
            key = min(ready, key=lambda key: self._turns.level(self._passes[key].peer))
            group, tokens = self._passes[key].groups.popleft()
            self._turns.charge(self._passes[key].peer, tokens)
            self._current = key, group
        return self._current[1]

    def through(self, group: Work) -> None:
        """Nothing is left to do of a group, or nobody wants it any more."""
        if self._current is not None and self._current[1] == group:
            self._current = None

    def quiet_in(self, now: float) -> float:
        """How long it is until training may go on, if no batch comes meanwhile."""
        return max(0.0, self._last_batch + self._grace_seconds - now)

    def _may_run(self, busy: bool, now: float) -> bool:
        return self._passed_over >= PATIENCE_BATCHES or not (busy or self.quiet_in(now))

    def _busy(self, reason: str, now: float) -> Busy:
        """With the time after which, by how long passes last here, the next one should end."""
        oldest = max((now - each.since for each in self._passes.values()), default=0.0)
        return busy_for(reason, self._lasting.seconds - oldest)
