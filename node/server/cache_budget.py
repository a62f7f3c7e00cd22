"""Who may hold how much KV cache: nothing is promised but the next step, and the sum stays in the budget. Pure.

A session is charged what its cache has really allocated, which grows as it is used. When the budget is spent, a step
that needs more waits in line, and room is made for it in this order:

1. At once, from idle sessions of its class or a lower one: lowest class first, in it surplus ones, then longest idle.
2. After `patience_seconds`, from sessions with a weaker *claim*, active or not, weakest first.
3. If all these are not enough, the step's own session is refused: its client knows, and its cache helps others.

The claim is the class; then whether the session is *surplus*: beyond its peer's share of the budget, and not the peer's
oldest; then age. A surplus session may take what is free, but only its own peer's sessions give way to it. So the
oldest session always gets on, no peer crowds out the others, and what was evicted and comes again cannot evict those it
gave way to. A session whose chunk is in a batch is never evicted: where one has to give way, it gets no further chunk.

Who holds nothing yet stands behind those that wait with a stronger claim. Who holds something may take whatever is
free, because sessions that stand still never end.

New sessions are refused while one waits, and while peers that were refused before want what is free (`line.py`). The
time they are told is that of the next end of a session, and as many ends later as others wait before them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from swarmnode.node.defaults import (
    CACHE_PATIENCE_SECONDS,
    EVICTABLE_SECONDS,
    MAX_SESSIONS,
    MAX_SESSIONS_PER_PEER,
)

from .busy import LASTING_WEIGHT, Busy, Lasting, busy_for, never
from .line import Line
from .schedule import Activity, Priority

__all__ = ["CacheBudget", "CacheStatistics", "Reserved"]

FIRST_GUESS_SHARE: Final = 0.05
"""Of the budget, what sessions are taken to come to hold while none has ended yet."""

PEER_SHARE: Final = 0.5
"""Of the budget. What one peer holds beyond it gives way first, and nobody gives way to it."""

Claim = tuple[Priority, bool, int]
"""The lower, the stronger."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """An answer to a step that wants cache.

    Attributes:
        granted: whether it may run. If it may not and is not refused, it waits and asks again.
        evicted: sessions whose caches must be freed before the step runs; they are off the books already.
        refused: why the step's own session must end and its cache be freed; and when to come again.
    """

    granted: bool
    evicted: tuple[bytes, ...] = ()
    refused: Busy | None = None


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What is held now, and what has become of sessions so far.

    Attributes:
        waiting: sessions with a step that waits for cache.
        tokens: held by all sessions.
        held, budget: allocated for them, and most of it; in the budget's unit.
        evicted_idle, evicted_active: sessions that gave way in the first and in the second way.
        refused: sessions that waited in vain.
    """

    sessions: int
    waiting: int
    tokens: int
    held: int
    budget: int
    evicted_idle: int
    evicted_active: int
    refused: int


@dataclass(slots=True)
class _Session:
    peer: str
    priority: Priority
    number: int
    cost: Callable[[int], int]
    since: float
    stepped: float
    held: int = 0
    most: int = 0
    tokens: int = 0
    short_since: float | None = None
    evicted: bool = False
    place: int | None = None  # the number it had in line, until it holds something


class CacheBudget:
    """What each session holds of the budget.

    Args:
        budget: what all caches together may have allocated, in tokens or in bytes, as the sessions' `cost` is.
        activity: what the schedule has of a session.
        evictable_seconds: a session without a step for so long is idle.
        patience_seconds: how long a step waits for idle sessions before active ones give way.
    """

    def __init__(
        self,
        budget: int,
        activity: Callable[[bytes], Activity],
        *,
        max_sessions: int = MAX_SESSIONS,
        max_sessions_per_peer: int = MAX_SESSIONS_PER_PEER,
        evictable_seconds: float = EVICTABLE_SECONDS,
        patience_seconds: float = CACHE_PATIENCE_SECONDS,
    ) -> None:
        self.budget = budget
        self._activity = activity
        self._max_sessions = max_sessions
        self._max_sessions_per_peer = max_sessions_per_peer
        self._evictable_seconds = evictable_seconds
        self._patience_seconds = patience_seconds
        self._sessions: dict[bytes, _Session] = {}
        self._line = Line()
        self._doomed: dict[bytes, bytes] = {}  # for whom each is to give way once its chunk is through
        self._held = 0
        self._number = 0
        self._lasting = Lasting()
        self._usual = FIRST_GUESS_SHARE * budget
        self._evicted_idle = self._evicted_active = self._refused = 0

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def free(self) -> int:
        """What nobody holds."""
        return self.budget - self._held

    def left(self, now: float, priority: Priority = Priority.OTHERS) -> int:
        """What a session of this class could have at once: what is free, and what idle sessions would give way with."""
        return self.free + sum(self._sessions[each].held for each in self._idle(priority, now))

    def knows(self, session: bytes) -> bool:
        """Whether this session is open, if only to be told that it must end."""
        return session in self._sessions

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(
            sessions=len(self._sessions),
            waiting=sum(map(self._waits, self._sessions)),
            tokens=sum(each.tokens for each in self._sessions.values()),
            held=self._held,
            budget=self.budget,
            evicted_idle=self._evicted_idle,
            evicted_active=self._evicted_active,
            refused=self._refused,
        )

    def open(
        self,
        session: bytes,
        peer: str,
        *,
        priority: Priority,
        wanted_tokens: int,
        cost: Callable[[int], int],
        now: float,
    ) -> Busy | None:
        """Take a new session, or say why not. It holds nothing until its first step.

        Args:
            wanted_tokens: how far it is meant to grow. No promise: it is refused only if the whole budget is too small.
            cost: what is really allocated for a session of so many tokens, in the budget's unit; must not fall.
        """
        if len(self._sessions) >= self._max_sessions:
            return self._busy(f"This server already runs its {self._max_sessions} sessions.", now)
        theirs = sum(each.peer == peer for each in self._sessions.values())
        if theirs >= self._max_sessions_per_peer:
            return self._busy(f"You already have {theirs} sessions here, the most for one peer.", now, peer)
        if cost(wanted_tokens) > self.budget:
            return never(f"The whole cache of this server has no room for {wanted_tokens} tokens.")
        waiting = sum(self._waits(each) and self._sessions[each].priority <= priority for each in self._sessions)
        before = self._line.before(peer, priority, now)
        left = self.left(now, priority)
        if waiting or cost(1) + before * self._usual > left:
            busy = self._not_yet(waiting, before, left)
            assert busy.retry_after_seconds is not None
            self._line.stand(peer, priority, now + busy.retry_after_seconds)
            return busy
        self._number += 1
        place = self._line.leave(peer)
        self._sessions[session] = _Session(peer, priority, self._number, cost, now, now, place=place)
        return None

    def reserve(self, session: bytes, tokens: int, now: float) -> Reserved:
        """Let a session hold `tokens` in all, so that its next chunk can run; or make it wait; or refuse it.

        To be asked for a chunk that runs if granted, in the order in which they are taken.
        """
        asks = self._sessions[session]
        if asks.evicted:
            return Reserved(False, refused=self._busy("The cache of this session was given to others.", now))
        wanted = max(asks.cost(tokens), asks.held)
        if wanted > self.budget:
            return self._refuse(session, never(f"The whole cache of this server has no room for {tokens} tokens."))
        if self._gives_way(session):
            return Reserved(False)
        need = wanted - asks.held - self.free
        if need <= 0 and not (asks.held == 0 and self._stands_behind(session)):
            return self._grant(session, wanted, tokens, now)
        asks.short_since = now if asks.short_since is None else asks.short_since
        return self._make_room(session, wanted, tokens, now)

    def release(self, session: bytes, now: float) -> None:
        """The session has ended and its cache is freed."""
        self._free(session)
        ended = self._sessions.pop(session)
        if ended.place is not None:  # another server of its route had no room, so it will come again
            self._line.stand(ended.peer, ended.priority, now, ended.place)
        if ended.most:
            self._lasting.ended(ended.since, now)
            self._usual += LASTING_WEIGHT * (ended.most - self._usual)

    def _make_room(self, session: bytes, wanted: int, tokens: int, now: float) -> Reserved:
        asks = self._sessions[session]
        assert asks.short_since is not None
        need = wanted - asks.held - self.free
        surplus = self._surplus(session, wanted)
        peer = asks.peer if session in surplus else None
        idle = self._idle(asks.priority, now, surplus, peer)
        stands_behind = asks.held == 0 and self._stands_behind(session)
        if not stands_behind and (victims := self._enough(idle, need)) is not None:
            self._evicted_idle += len(victims)
            return self._grant(session, wanted, tokens, now, victims)
        if now - asks.short_since < self._patience_seconds:
            return Reserved(False)
        victims = self._enough(idle + self._weaker(session, surplus, peer, idle), need)
        if victims is None:
            return self._refuse(session, self._busy(f"The cache has no room for {tokens} tokens of one session.", now))
        if any(self._activity(each) is Activity.RUNNING for each in victims):
            self._doomed |= dict.fromkeys(victims, session)
            return Reserved(False)
        self._evicted_idle += len(idle := [each for each in victims if each in idle])
        self._evicted_active += len(victims) - len(idle)
        return self._grant(session, wanted, tokens, now, victims)

    def _grant(
        self, session: bytes, wanted: int, tokens: int, now: float, victims: list[bytes] | None = None
    ) -> Reserved:
        for each in victims or ():
            self._free(each)
            self._sessions[each].evicted = True
        asks = self._sessions[session]
        asks.place, asks.most = None, max(asks.most, wanted)
        self._held += wanted - asks.held
        asks.held, asks.tokens, asks.stepped, asks.short_since = wanted, tokens, now, None
        return Reserved(True, tuple(victims or ()))

    def _refuse(self, session: bytes, busy: Busy) -> Reserved:
        self._free(session)
        self._sessions[session].evicted = True
        self._refused += 1
        return Reserved(False, refused=busy)

    def _free(self, session: bytes) -> None:
        each = self._sessions[session]
        self._held -= each.held
        each.held = each.tokens = 0
        each.short_since = None
        self._doomed.pop(session, None)

    def _waits(self, session: bytes) -> bool:
        return self._sessions[session].short_since is not None and self._activity(session) is Activity.WAITING

    def _gives_way(self, session: bytes) -> bool:
        """Whether a session that waits is about to have this one's cache."""
        stronger = self._doomed.get(session)
        if stronger in self._sessions and self._waits(stronger):
            return True
        self._doomed.pop(session, None)
        return False

    def _stands_behind(self, session: bytes) -> bool:
        asks = self._sessions[session]
        claim = asks.priority, asks.number
        return any(
            (each.priority, each.number) < claim and self._waits(other) for other, each in self._sessions.items()
        )

    def _surplus(self, session: bytes | None = None, wanted: int = 0) -> set[bytes]:
        """Sessions that stand for what a peer holds beyond its share, were `session` to hold what it wants."""
        surplus = set()
        held: dict[str, int] = {}
        for other, each in self._sessions.items():  # by age
            if each.evicted:
                continue
            before = held.get(each.peer)
            held[each.peer] = (before or 0) + (wanted if other == session else each.held)
            if before is not None and held[each.peer] > self.budget * PEER_SHARE:
                surplus.add(other)
        return surplus

    def _idle(
        self, priority: Priority, now: float, surplus: Collection[bytes] = (), peer: str | None = None
    ) -> list[bytes]:
        """Sessions that would give way at once, the first to do so first; only those of `peer`, if given."""
        idle = [
            session
            for session, each in self._sessions.items()
            if each.held
            and each.priority >= priority
            and peer in (None, each.peer)
            and now - each.stepped >= self._evictable_seconds
            and self._activity(session) is Activity.IDLE
        ]

        def order(session: bytes) -> tuple[int, bool, float]:
            each = self._sessions[session]
            return -each.priority, session not in surplus, each.stepped

        return sorted(idle, key=order)

    def _weaker(self, session: bytes, surplus: set[bytes], peer: str | None, idle: list[bytes]) -> list[bytes]:
        """Other sessions with a weaker claim, weakest first; only those of `peer`, if given."""

        def claim(session: bytes) -> Claim:
            each = self._sessions[session]
            return each.priority, session in surplus, each.number

        ours = claim(session)
        weaker = [
            other
            for other, each in self._sessions.items()
            if each.held and peer in (None, each.peer) and claim(other) > ours and other not in idle
        ]
        return sorted(weaker, key=claim, reverse=True)

    def _enough(self, sessions: list[bytes], need: int) -> list[bytes] | None:
        """The first of them that hold as much as needed together; None if all do not."""
        enough = []
        for session in sessions:
            if need <= 0:
                break
            need -= self._sessions[session].held
            enough.append(session)
        return enough if need <= 0 else None

    def _not_yet(self, waiting: int, before: int, left: int) -> Busy:
        """With the time after which, by how quickly sessions give back the cache, there is room for all up to here."""
        reason = "The cache is full"
        if waiting:
            reason += f"; sessions that wait for room: {waiting}"
        if before:
            reason += f"; peers before you: {before}"
        lacks = max(0.0, (waiting + before + 1) * self._usual - left)
        return busy_for(f"{reason}.", self._lasting.seconds * lacks / self.budget)

    def _busy(self, reason: str, now: float, peer: str | None = None) -> Busy:
        """With the time after which, by how long sessions last here, the next one should end."""
        ages = [now - each.since for each in self._sessions.values() if peer in (None, each.peer)]
        if not ages:
            return busy_for(reason, self._lasting.seconds)
        return busy_for(reason, max(self._lasting.seconds - max(ages), self._lasting.seconds / len(ages)))
