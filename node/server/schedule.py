"""Which waiting steps a server runs next, all in one batch. Pure: no torch, `now` is an argument.

A step is a row of *segments*: tokens that attention sees at once, in the step's own shape. Where a segment begins and
ends is settled before the step waits, by its length alone (`segments_of`) or by whoever sends it, and never by who else
is there: attention over the same tokens in other segments differs in its last bits, and what a session gets must not
depend on its neighbours. A *chunk* is what one batch carries of a step: whole segments, as many as it has room for.

A batch is filled in this order, one chunk of a session at most:

1. decode steps, own use first, then those of peers that the operator prefers, then others; in a class peers by turns;
2. prefill steps in the same order. They have a quarter of the batch for themselves as soon as one waits, and the first
   always takes one segment, however long: so a batch holds `batch_tokens`, or one segment more than its other tokens.

A *lane* is a kind and a class. One that got nothing of `PATIENCE_BATCHES` batches goes first of its kind, so no class
starves the next; within a lane turns see to it that no peer starves another; and one peer's steps go as they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

from swarmnode.node.defaults import (
    BATCH_TOKENS,
    MAX_WAITING_STEPS,
    MAX_WAITING_TOKENS,
    MAX_WAITING_TOKENS_PER_PEER,
)

from .busy import Busy, busy_for
from .rates import Pace
from .turns import Turns

__all__ = ["Activity", "Chunk", "Pending", "Priority", "Schedule", "segments_of"]

DECODE_TOKENS: Final = 16
"""A step of at most so many tokens is decode: the next token, or a few that were drafted."""

PREFILL_SHARE: Final = 0.25
"""Of a batch's tokens, kept for prefill while any waits: decode comes first, but not alone."""

PATIENCE_BATCHES: Final = 16
"""How often a lane may be passed over before it goes first."""

Work = TypeVar("Work")


class Priority(IntEnum):
    """Whose step it is. The lower goes first."""

    OWN = 0
    """This node's own use of its blocks."""
    LISTED = 1
    """Of a peer that the operator named."""
    OTHERS = 2


class Activity(Enum):
    """What the schedule has of a session."""

    IDLE = auto()
    WAITING = auto()
    RUNNING = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Pending(Generic[Work]):
    """A step that waits.

    Attributes:
        peer: whose session it is; turns go by peer.
        position: of the step's first token in the session.
        segments: tokens of each of its attention segments, in order; all of them together are the step.
        arrived: when it came, in seconds.
        work: what its owner keeps with it; not looked at.
    """

    session: bytes
    peer: str
    position: int
    segments: tuple[int, ...]
    priority: Priority
    arrived: float
    work: Work

    @property
    def tokens(self) -> int:
        return sum(self.segments)

    @property
    def is_prefill(self) -> bool:
        return self.tokens > DECODE_TOKENS


@dataclass(frozen=True, slots=True)
class Chunk(Generic[Work]):
    """What a batch carries of a step: its tokens from `first` on, in whole segments.

    Attributes:
        first: how many of the step's tokens earlier batches have carried.
        segments: tokens of each attention segment.
        last: whether the step is through with it.
    """

    step: Pending[Work]
    first: int
    segments: tuple[int, ...]
    last: bool

    @property
    def tokens(self) -> int:
        return sum(self.segments)

    @property
    def position(self) -> int:
        """Of the chunk's first token in the session."""
        return self.step.position + self.first

    @property
    def end(self) -> int:
        """How many tokens the session holds after it."""
        return self.position + self.tokens


def segments_of(steps: Iterable[int], segment_tokens: int | None) -> tuple[int, ...]:
    """Attention segments of tokens that came in steps of these lengths, each cut by its length alone.

    Args:
        steps: of at least 1 token each; several when a session is sent again.
        segment_tokens: most of one segment; None leaves the steps whole, as their sender cut them.
    """
    if segment_tokens is None:
        return tuple(steps)
    segments: list[int] = []
    for tokens in steps:
        whole, rest = divmod(tokens, segment_tokens)
        segments += [segment_tokens] * whole + ([rest] if rest else [])
    return tuple(segments)


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Work]):
    """A step in line, and how much of it has been carried."""

    step: Pending[Work]
    number: int
    tokens: int
    next_segment: int = 0
    carried: int = 0

    @property
    def lane(self) -> tuple[bool, Priority]:
        return self.tokens > DECODE_TOKENS, self.step.priority

    def chunk(self, room_tokens: int, *, at_least_one: bool) -> Chunk[Work] | None:
        """The next segments that fit; None when not even one does."""
        segments = self.step.segments
        begin = end = self.next_segment
        while end < len(segments) and (segments[end] <= room_tokens or (at_least_one and end == begin)):
            room_tokens -= segments[end]
            end += 1
        if end == begin:
            return None
        return Chunk(self.step, self.carried, segments[begin:end], end == len(segments))


@dataclass(slots=True)
class _Lane:
    turns: Turns = field(default_factory=Turns)
    passed_over: int = 0

    @property
    def overdue(self) -> int:
        return max(0, self.passed_over - PATIENCE_BATCHES + 1)


@dataclass(slots=True)
class _Session(Generic[Work]):
    steps: deque[_Waiting[Work]] = field(default_factory=deque)
    runs: bool = False
    cancelled: bool = False


def _always(_: object) -> bool:
    return True


class Schedule(Generic[Work]):
    """The steps that wait, and the order in which batches take them.

    Several batches may be under way: a session whose chunk runs has no other until `done`.

    Args:
        batch_tokens: most tokens of a batch, but for one segment that is longer than what is left.
        max_steps, max_tokens, max_tokens_per_peer: most that wait, in all and for one peer.

    Attributes:
        pace: tell it what each batch took.
    """

    def __init__(
        self,
        *,
        batch_tokens: int = BATCH_TOKENS,
        max_steps: int = MAX_WAITING_STEPS,
        max_tokens: int = MAX_WAITING_TOKENS,
        max_tokens_per_peer: int = MAX_WAITING_TOKENS_PER_PEER,
    ) -> None:
        self.batch_tokens = batch_tokens
        self.pace = Pace()
        self._max_steps = max_steps
        self._max_tokens = max_tokens
        self._max_tokens_per_peer = max_tokens_per_peer
        self._sessions: dict[bytes, _Session[Work]] = {}
        self._lanes = {(long, priority): _Lane() for long in (False, True) for priority in Priority}
        self._tokens_of: dict[str, int] = {}
        self._tokens = 0
        self._steps = 0
        self._prefills = 0
        self._number = 0

    @property
    def waiting_steps(self) -> int:
        """Steps that no batch has wholly carried yet."""
        return self._steps

    @property
    def waiting_prefills(self) -> int:
        """Those of them that are prefill."""
        return self._prefills

    @property
    def waiting_tokens(self) -> int:
        """Tokens that no batch has carried yet."""
        return self._tokens

    def activity(self, session: bytes) -> Activity:
        """Whether a session has steps here."""
        known = self._sessions.get(session)
        if known is None:
            return Activity.IDLE
        return Activity.RUNNING if known.runs else Activity.WAITING

    def add(self, step: Pending[Work]) -> Busy | None:
        """Let a step wait for its turn, behind the session's earlier ones; or say why not.

        Raises `ValueError` for an empty segment, and for a session that was cancelled and still runs.
        """
        if not step.segments or min(step.segments) < 1:
            raise ValueError(f"a step has segments of at least one token, not {step.segments}")
        tokens = step.tokens
        if (full := self._full(step.peer, tokens)) is not None:
            return full
        session = self._sessions.setdefault(step.session, _Session())
        if session.cancelled:
            raise ValueError("a cancelled session takes no steps while its last chunk runs")
        self._number += 1
        session.steps.append(_Waiting(step, self._number, tokens))
        self._steps += 1
        self._prefills += step.is_prefill
        self._count(step.peer, tokens)
        return None

    def next_batch(self, room: Callable[[Chunk[Work]], bool] = _always, *, prefill: bool = True) -> list[Chunk[Work]]:
        """The chunks to run together next; empty when nothing can run.

        Args:
            prefill: whether prefill may be among them; not while an earlier batch's is under way.
            room: asked of each chunk that is about to be taken, and only then; at no, the step stays in line.
        """
        lanes: dict[tuple[bool, Priority], list[_Waiting[Work]]] = {}
        for each in self._sessions.values():
            if each.steps and not each.runs:
                lanes.setdefault(each.steps[0].lane, []).append(each.steps[0])
        for key, lane in self._lanes.items():
            if key not in lanes:
                lane.passed_over = 0
            lane.turns.forget({head.step.peer for head in lanes.get(key, ())})
        short = {key: heads for key, heads in lanes.items() if not key[0]}
        long = {key: heads for key, heads in lanes.items() if key[0] and prefill}
        kept = int(self.batch_tokens * PREFILL_SHARE) if long else 0
        batch = self._fill(short, self.batch_tokens - kept, room)
        if long:
            batch += self._fill(long, self.batch_tokens - sum(chunk.tokens for chunk in batch), room)
        return batch

    def done(self, session: bytes) -> None:
        """The session's chunk has been run. Raises `ValueError` when it had none."""
        known = self._sessions.get(session)
        if known is None or not known.runs:
            raise ValueError("this session has no chunk under way")
        known.runs = known.cancelled = False
        self._drop_if_empty(session)

    def cancel(self, session: bytes) -> list[Pending[Work]]:
        """Drop what waits of a session, and return it. What runs is still to be `done`."""
        known = self._sessions.get(session)
        if known is None:
            return []
        dropped = list(known.steps)
        known.steps.clear()
        for waiting in dropped:
            self._steps -= 1
            self._prefills -= waiting.step.is_prefill
            self._count(waiting.step.peer, waiting.carried - waiting.tokens)
        known.cancelled = known.runs
        self._drop_if_empty(session)
        return [waiting.step for waiting in dropped]

    def expired(self, now: float, seconds: float) -> list[bytes]:
        """Sessions with a step that came more than `seconds` ago and of which nothing runs now."""
        return [
            session
            for session, each in self._sessions.items()
            if each.steps and not each.runs and now - each.steps[0].step.arrived > seconds
        ]

    def drain_seconds(self) -> float:
        """In what time all that waits now will be worked off, at the pace of the batches so far."""
        return self.pace.seconds(self._tokens, -(-self._tokens // self.batch_tokens))

    def _fill(
        self,
        lanes: dict[tuple[bool, Priority], list[_Waiting[Work]]],
        room_tokens: int,
        room: Callable[[Chunk[Work]], bool],
    ) -> list[Chunk[Work]]:
        """Chunks of one kind up to `room_tokens`; the first of them takes one segment in any case."""
        taken: list[Chunk[Work]] = []
        for key in sorted(lanes, key=lambda key: (-self._lanes[key].overdue, key)):
            lane, before = self._lanes[key], len(taken)
            for head in _by_turns(lanes[key], lane.turns):
                chunk = head.chunk(room_tokens, at_least_one=not taken)
                if chunk is None:
                    break  # whoever comes behind may be shorter, but has had more
                if room(chunk):
                    room_tokens -= chunk.tokens
                    lane.turns.charge(head.step.peer, chunk.tokens)
                    self._start(head, chunk)
                    taken.append(chunk)
            lane.passed_over = 0 if len(taken) > before else lane.passed_over + 1
        return taken

    def _start(self, head: _Waiting[Work], chunk: Chunk[Work]) -> None:
        session = self._sessions[head.step.session]
        session.runs = True
        head.next_segment += len(chunk.segments)
        head.carried += chunk.tokens
        self._count(head.step.peer, -chunk.tokens)
        if chunk.last:
            session.steps.popleft()
            self._steps -= 1
            self._prefills -= head.step.is_prefill

    def _count(self, peer: str, tokens: int) -> None:
        self._tokens += tokens
        theirs = self._tokens_of.get(peer, 0) + tokens
        if theirs:
            self._tokens_of[peer] = theirs
        else:
            self._tokens_of.pop(peer, None)

    def _drop_if_empty(self, session: bytes) -> None:
        known = self._sessions[session]
        if not known.steps and not known.runs:
            del self._sessions[session]

    def _full(self, peer: str, tokens: int) -> Busy | None:
        if self._steps >= self._max_steps:
            return busy_for(f"{self._steps} steps wait here already.", self.drain_seconds())
        theirs = self._tokens_of.get(peer, 0)
        if theirs + tokens > self._max_tokens_per_peer:
            most = f"{self._max_tokens_per_peer} are the most for one peer"
            return busy_for(f"You have {theirs} tokens waiting here, {tokens} more come; {most}.", self.drain_seconds())
        if self._tokens + tokens > self._max_tokens:
            return busy_for(
                f"{self._tokens} tokens wait here, {tokens} more come; there is room for {self._max_tokens}.",
                self.drain_seconds(),
            )
        return None


def _by_turns(heads: list[_Waiting[Work]], turns: Turns) -> Iterator[_Waiting[Work]]:
    """These steps in the order of turns, which may be charged between one and the next."""
    theirs: dict[str, list[_Waiting[Work]]] = {}
    for head in sorted(heads, key=lambda head: -head.number):
        theirs.setdefault(head.step.peer, []).append(head)
    heap = [(turns.level(peer), line[-1].number, peer) for peer, line in theirs.items()]
    heapify(heap)
    while heap:
        _, _, peer = heappop(heap)
        line = theirs[peer]
        yield line.pop()
        if line:
            heappush(heap, (turns.level(peer), line[-1].number, peer))
