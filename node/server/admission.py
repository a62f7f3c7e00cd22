"""Which sessions a server takes: a budget of cache tokens, promised and grown. Pure: `now` is an argument."""

from __future__ import annotations

from dataclasses import dataclass

from swarmnode.node.defaults import (
    GROWTH_TOKENS,
    MAX_RETRY_AFTER_SECONDS,
    MAX_SESSIONS,
    MAX_SESSIONS_PER_PEER,
)

from .busy import Busy, busy_for

__all__ = ["Admission"]

FIRST_GUESS_SECONDS = 10.0
"""How long sessions are taken to last while none has ended yet."""

WEIGHT = 0.2
"""Of the newest session in the mean of how long sessions last."""


@dataclass(slots=True)
class _Promise:
    peer: str
    tokens: int
    since: float


class Admission:
    """Counts sessions and the cache tokens promised to them. Memory grows with use; only the sum is held to the budget.

    Args:
        cache_tokens: what all sessions together may hold.
    """

    def __init__(
        self, cache_tokens: int, *, max_sessions: int = MAX_SESSIONS, max_sessions_per_peer: int = MAX_SESSIONS_PER_PEER
    ) -> None:
        self.cache_tokens = cache_tokens
        self._max_sessions = max_sessions
        self._max_sessions_per_peer = max_sessions_per_peer
        self._promises: dict[bytes, _Promise] = {}
        self._promised_tokens = 0
        self._lasting_seconds = FIRST_GUESS_SECONDS

    @property
    def sessions(self) -> int:
        return len(self._promises)

    @property
    def tokens_left(self) -> int:
        return self.cache_tokens - self._promised_tokens

    def knows(self, session: bytes) -> bool:
        """Whether this session is admitted already."""
        return session in self._promises

    def admit(self, session: bytes, peer: str, tokens: int, now: float) -> Busy | None:
        """Promise `tokens` to a new session of `peer`; or say why not."""
        if len(self._promises) >= self._max_sessions:
            return self._busy(f"This server already runs its {self._max_sessions} sessions.", now)
        theirs = sum(promise.peer == peer for promise in self._promises.values())
        if theirs >= self._max_sessions_per_peer:
            return self._busy(f"You already have {theirs} sessions here, the most for one peer.", now, peer)
        if tokens > self.tokens_left:
            return self._busy(
                f"The cache has room for {self.tokens_left} of {self.cache_tokens} tokens; {tokens} are wanted.", now
            )
        self._promises[session] = _Promise(peer, tokens, now)
        self._promised_tokens += tokens
        return None

    def grow(self, session: bytes, tokens: int, now: float) -> Busy | None:
        """Make sure that an admitted session may hold `tokens`; or say why not, leaving it as it was."""
        promise = self._promises[session]
        more = tokens - promise.tokens
        if more <= 0:
            return None
        more = min(-(-more // GROWTH_TOKENS) * GROWTH_TOKENS, max(more, self.tokens_left))
        if more > self.tokens_left:
            return self._busy(f"The session wants to hold {tokens} tokens and the cache is full.", now)
        promise.tokens += more
        self._promised_tokens += more
        return None

    def release(self, session: bytes, now: float) -> None:
        """Take back what was promised."""
        promise = self._promises.pop(session)
        self._promised_tokens -= promise.tokens
        self._lasting_seconds += WEIGHT * (max(0.0, now - promise.since) - self._lasting_seconds)

    def _busy(self, reason: str, now: float, peer: str | None = None) -> Busy:
        """With the time after which, by how long sessions last here, the next one should end."""
        ages = [now - each.since for each in self._promises.values() if peer in (None, each.peer)]
        if not ages:  # wanted more than the whole budget: waiting does not help soon
            return busy_for(reason, MAX_RETRY_AFTER_SECONDS)
        wait = max(self._lasting_seconds - max(ages), self._lasting_seconds / len(ages))
        return busy_for(reason, wait)
