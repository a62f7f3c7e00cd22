"""The schedule: what a batch holds and in which order, and that whatever comes, all get their turn."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarmnode.node.server.busy import Busy
from swarmnode.node.server.schedule import (
    DECODE_TOKENS,
    PATIENCE_BATCHES,
    PREFILL_SHARE,
    Activity,
    Chunk,
    Pending,
    Priority,
    Schedule,
    segments_of,
)

Steps = Schedule[int]
_numbers = count()


def pending(
    session: str,
    *segments: int,
    peer: str = "peer",
    priority: Priority = Priority.OTHERS,
    position: int = 0,
    arrived: float = 0.0,
) -> Pending[int]:
    return Pending(session.encode(), peer, position, segments or (1,), priority, arrived, next(_numbers))


def filled(schedule: Steps, *steps: Pending[int]) -> Steps:
    for step in steps:
        assert schedule.add(step) is None
    return schedule


def carried(batch: list[Chunk[int]]) -> list[tuple[str, int]]:
    return [(chunk.step.session.decode(), chunk.tokens) for chunk in batch]


def run(schedule: Steps) -> list[tuple[str, int]]:
    """The next batch, done at once."""
    batch = schedule.next_batch()
    for chunk in batch:
        schedule.done(chunk.step.session)
    return carried(batch)


def test_decode_goes_before_prefill_and_leaves_it_a_share() -> None:
    steps = [pending("long", *(8,) * 10), *(pending(f"d{number}") for number in range(40))]
    schedule = filled(Schedule(batch_tokens=32), *steps)
    batch = run(schedule)
    assert batch[:24] == [(f"d{number}", 1) for number in range(24)]
    assert batch[24:] == [("long", 8)]
    assert run(schedule) == [*((f"d{number}", 1) for number in range(24, 40)), ("long", 16)]
    assert run(schedule) == [("long", 32)]


def test_a_long_segment_goes_whole_beside_decode_and_alone_of_its_kind() -> None:
    schedule = filled(
        Schedule(batch_tokens=100), pending("d"), pending("a", 1000), pending("b", 1000), pending("c", 20)
    )
    assert run(schedule) == [("d", 1), ("a", 1000)]
    assert run(schedule) == [("b", 1000)]
    assert run(schedule) == [("c", 20)]


def test_decode_goes_on_while_a_prefill_is_stopped_for_it() -> None:
    schedule = filled(Schedule(batch_tokens=100), pending("a", 1000), pending("b", 50))
    assert carried(schedule.next_batch()) == [("a", 1000)]
    filled(schedule, pending("c"), pending("d"))
    assert carried(schedule.next_batch(prefill=False)) == [("c", 1), ("d", 1)]
    assert schedule.next_batch(prefill=False) == []
    assert carried(schedule.next_batch()) == [("b", 50)]


def test_chunks_end_where_segments_end() -> None:
    schedule = filled(Schedule(batch_tokens=100), pending("a", 60, 30, 50, 5, position=7))
    first, second = schedule.next_batch(), schedule.next_batch()
    assert second == []  # the session runs
    schedule.done(b"a")
    second = schedule.next_batch()
    assert [(c.position, c.segments, c.last, c.end) for c in (*first, *second)] == [
        (7, (60, 30), False, 97),
        (97, (50, 5), True, 152),
    ]


def test_own_use_goes_before_listed_peers_before_others() -> None:
    schedule = filled(
        Schedule(batch_tokens=2),
        pending("others", peer="a"),
        pending("listed", peer="b", priority=Priority.LISTED),
        pending("own", peer="c", priority=Priority.OWN),
    )
    assert run(schedule) == [("own", 1), ("listed", 1)]
    assert run(schedule) == [("others", 1)]


def test_a_class_that_was_passed_over_goes_first() -> None:
    schedule = filled(Schedule(batch_tokens=1), pending("others"))
    for _ in range(PATIENCE_BATCHES):
        filled(schedule, pending("own", peer="self", priority=Priority.OWN))
        assert run(schedule) == [("own", 1)]
    filled(schedule, pending("own", peer="self", priority=Priority.OWN))
    assert run(schedule) == [("others", 1)]


def test_one_client_with_fifty_sessions_does_not_starve_another() -> None:
    schedule: Steps = Schedule(batch_tokens=8)
    greedy = [f"g{number}" for number in range(50)]
    filled(schedule, *(pending(session, peer="greedy") for session in greedy), pending("modest", peer="modest"))
    for _ in range(100):
        batch = run(schedule)
        assert ("modest", 1) in batch
        assert len(batch) == 8
        for session, _ in batch:
            filled(schedule, pending(session, peer="modest" if session == "modest" else "greedy"))


def test_what_has_no_room_waits_in_line_and_lets_others_pass() -> None:
    schedule = filled(Schedule(), pending("big"), pending("small"))
    assert carried(schedule.next_batch(lambda chunk: chunk.step.session != b"big")) == [("small", 1)]
    assert schedule.activity(b"big") is Activity.WAITING
    assert carried(schedule.next_batch()) == [("big", 1)]


def test_a_session_runs_one_chunk_at_a_time_and_in_order() -> None:
    schedule = filled(Schedule(), pending("a", 20), pending("a"), pending("b"))
    assert carried(schedule.next_batch()) == [("b", 1), ("a", 20)]
    assert schedule.next_batch() == []
    schedule.done(b"b")
    assert schedule.next_batch() == []
    schedule.done(b"a")
    assert carried(schedule.next_batch()) == [("a", 1)]


def test_cancelling_drops_what_waits_and_lets_what_runs_end() -> None:
    schedule = filled(Schedule(batch_tokens=10), pending("a", 10, 10), pending("a"), pending("b", 20))
    (chunk,) = schedule.next_batch()
    assert [step.tokens for step in schedule.cancel(b"a")] == [20, 1]
    assert (schedule.waiting_steps, schedule.waiting_tokens) == (1, 20)
    assert schedule.activity(b"a") is Activity.RUNNING
    with pytest.raises(ValueError, match="cancelled"):
        schedule.add(pending("a"))
    schedule.done(chunk.step.session)
    assert schedule.activity(b"a") is Activity.IDLE
    assert schedule.cancel(b"a") == []
    filled(schedule, pending("a"))
    with pytest.raises(ValueError, match="no chunk under way"):
        schedule.done(b"a")


def test_a_step_without_tokens_is_nobodys_step() -> None:
    for segments in ((), (3, 0)):
        with pytest.raises(ValueError, match="at least one token"):
            Steps().add(Pending(b"a", "peer", 0, segments, Priority.OWN, 0.0, 0))


def test_a_full_line_says_how_long_it_is() -> None:
    schedule: Steps = Schedule(batch_tokens=100, max_steps=3, max_tokens=1000, max_tokens_per_peer=600)
    assert schedule.add(pending("unknown pace", 601)) == Busy(
        "You have 0 tokens waiting here, 601 more come; 600 are the most for one peer.", 1.0
    )
    for tokens, seconds in ((100, 2.0), (50, 1.5), (100, 2.0)):  # a second for each batch, 10 ms for each token
        schedule.pace.observe(tokens, seconds)
    filled(schedule, pending("a", 600))
    busy = schedule.add(pending("b", 1))
    assert busy is not None
    assert busy.reason == "You have 600 tokens waiting here, 1 more come; 600 are the most for one peer."
    assert busy.retry_after_seconds == pytest.approx(6 + 6)
    filled(schedule, pending("b", 300, peer="other"))
    busy = schedule.add(pending("c", 200, peer="third"))
    assert busy is not None
    assert busy.reason == "900 tokens wait here, 200 more come; there is room for 1000."
    assert busy.retry_after_seconds == pytest.approx(9 + 9)
    filled(schedule, pending("d", 1, peer="other"))
    busy = schedule.add(pending("e", 1, peer="third"))
    assert busy is not None
    assert busy.reason == "3 steps wait here already."


def test_steps_that_waited_too_long_are_told() -> None:
    schedule = filled(Schedule(batch_tokens=1), pending("a", arrived=1.0), pending("b", arrived=5.0))
    assert schedule.expired(now=11.0, seconds=10.0) == []
    assert schedule.expired(now=11.5, seconds=10.0) == [b"a"]
    schedule.next_batch()
    assert schedule.expired(now=11.5, seconds=10.0) == []


@given(st.integers(1, 5000), st.none() | st.integers(1, 600))
def test_segments_are_a_matter_of_length_alone(tokens: int, segment_tokens: int | None) -> None:
    segments = segments_of((tokens,), segment_tokens)
    assert sum(segments) == tokens
    assert len(set(segments[:-1])) <= 1
    assert max(segments) <= (segment_tokens or tokens)
    assert len(segments) == (-(-tokens // segment_tokens) if segment_tokens else 1)


PEERS = {f"peer{number}": Priority(number % 3) for number in range(5)}
SEGMENTS = st.one_of(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
).map(tuple)


class AnySchedule(RuleBasedStateMachine):
    """Whatever is added, run, done and cancelled in any order: bounds, order and accounts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule: Steps = Schedule(batch_tokens=40, max_steps=60, max_tokens=500, max_tokens_per_peer=200)
        self.waiting: dict[str, list[Pending[int]]] = {}
        self.carried_tokens: Counter[int] = Counter()
        self.running: set[str] = set()
        self.cancelled: set[str] = set()

    def head(self, session: str) -> Pending[int]:
        return self.waiting[session][0]

    def tokens_waiting(self, peer: str | None = None) -> int:
        steps = [step for steps in self.waiting.values() for step in steps if peer in (None, step.peer)]
        return sum(step.tokens - self.carried_tokens[step.work] for step in steps)

    @rule(number=st.integers(0, 7), peer=st.sampled_from(sorted(PEERS)), segments=SEGMENTS)
    def add(self, number: int, peer: str, segments: tuple[int, ...]) -> None:
        session = f"{peer}-{number}"
        if session in self.cancelled:
            return
        step = pending(session, *segments, peer=peer, priority=PEERS[peer])
        steps = sum(map(len, self.waiting.values()))
        fits = (
            steps < 60 and self.tokens_waiting() + step.tokens <= 500 and self.tokens_waiting(peer) + step.tokens <= 200
        )
        assert (self.schedule.add(step) is None) == fits
        if fits:
            self.waiting.setdefault(session, []).append(step)

    @rule(refused=st.sets(st.integers(0, 7), max_size=3))
    def next_batch(self, refused: set[int]) -> None:
        def room(chunk: Chunk[int]) -> bool:
            return int(chunk.step.session.decode()[-1]) not in refused

        ready = {session for session, steps in self.waiting.items() if steps and session not in self.running}
        allowed = {session for session in ready if int(session[-1]) not in refused}
        batch = self.schedule.next_batch(room)
        sessions = [chunk.step.session.decode() for chunk in batch]
        assert len(set(sessions)) == len(sessions)
        assert set(sessions) <= allowed
        assert batch or not allowed
        self.check_tokens(batch, any(self.head(session).tokens > DECODE_TOKENS for session in ready))
        for session, chunk in zip(sessions, batch, strict=True):
            step = self.head(session)
            assert chunk.step is step
            assert chunk.first == self.carried_tokens[step.work]
            ends = [sum(step.segments[:number]) for number in range(len(step.segments) + 1)]
            begin = ends.index(chunk.first)
            assert chunk.segments == step.segments[begin : begin + len(chunk.segments)]
            self.carried_tokens[step.work] += chunk.tokens
            assert chunk.last == (self.carried_tokens[step.work] == step.tokens)
            if chunk.last:
                self.waiting[session].pop(0)
            self.running.add(session)

    def check_tokens(self, batch: list[Chunk[int]], prefill_waits: bool) -> None:
        decode = [chunk for chunk in batch if chunk.step.tokens <= DECODE_TOKENS]
        prefill = batch[len(decode) :]
        assert all(chunk.step.tokens > DECODE_TOKENS for chunk in prefill)
        kept = int(40 * PREFILL_SHARE) if prefill_waits else 0
        assert sum(chunk.tokens for chunk in decode) <= 40 - kept
        if sum(chunk.tokens for chunk in batch) > 40:
            assert len(prefill) == 1
            assert len(prefill[0].segments) == 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.running)))
        self.schedule.done(session.encode())
        self.running.discard(session)
        self.cancelled.discard(session)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.waiting)))
        dropped = self.schedule.cancel(session.encode())
        assert dropped == self.waiting.pop(session)
        if session in self.running:
            self.cancelled.add(session)

    @invariant()
    def accounts_hold(self) -> None:
        assert self.schedule.waiting_steps == sum(map(len, self.waiting.values()))
        assert self.schedule.waiting_tokens == self.tokens_waiting()
        assert self.schedule.waiting_prefills == sum(
            step.is_prefill for steps in self.waiting.values() for step in steps
        )
        for session, steps in self.waiting.items():
            activity = self.schedule.activity(session.encode())
            expected = Activity.RUNNING if session in self.running else Activity.WAITING if steps else Activity.IDLE
            assert activity is expected

    def teardown(self) -> None:
        """All that waits is served in the end, and nothing is left."""
        for session in sorted(self.running):
            self.schedule.done(session.encode())
        batches = 0
        while self.schedule.waiting_steps:
            batch = self.schedule.next_batch()
            assert batch
            for chunk in batch:
                self.schedule.done(chunk.step.session)
            batches += 1
        assert batches <= sum(len(step.segments) for steps in self.waiting.values() for step in steps)
        assert self.schedule.waiting_tokens == 0
        assert not self.schedule._sessions
        assert not self.schedule._tokens_of


TestAnySchedule = AnySchedule.TestCase


Flood = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(sorted(PEERS)), SEGMENTS), max_size=6),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(Flood, SEGMENTS, st.sampled_from(Priority))
def test_nothing_starves_whatever_floods_in(
    flood: list[list[tuple[int, str, tuple[int, ...]]]], segments: tuple[int, ...], priority: Priority
) -> None:
    """A lane has a chunk of one batch in `PATIENCE_BATCHES` + 3 at least: so many of a kind may be overdue at once.
    Of its chunks, each other peer gets no more tokens than the step itself and the longest chunks of the two."""
    schedule: Steps = Schedule(batch_tokens=20)
    schedule.add(pending("victim", *segments, peer="victim", priority=priority))
    longest = max(20, *segments, *(max(each) for batch in flood for _, _, each in batch))
    turns = len(segments) + len(PEERS) * (sum(segments) + 2 * longest)
    for number in range(turns * (PATIENCE_BATCHES + 3)):
        for session, peer, theirs in flood[number % len(flood)]:
            schedule.add(pending(f"{peer}-{session}", *theirs, peer=peer, priority=PEERS[peer]))
        batch = schedule.next_batch()
        for chunk in batch:
            schedule.done(chunk.step.session)
        if any(chunk.last and chunk.step.session == b"victim" for chunk in batch):
            return
    raise AssertionError("the step starves")


@settings(deadline=None)
@given(
    st.lists(st.tuples(SEGMENTS, st.integers(0, 9)), min_size=2, max_size=4),
    st.integers(1, 30),
    st.booleans(),
)
def test_peers_that_always_wait_are_served_alike(
    peers: list[tuple[tuple[int, ...], int]], batch_tokens: int, prefill: bool
) -> None:
    """Between any two moments, two peers' tokens differ by no more than the longest chunk of each."""
    schedule: Steps = Schedule(batch_tokens=batch_tokens, max_steps=10**6, max_tokens=10**6, max_tokens_per_peer=10**6)
    served = {f"peer{number}": 0 for number in range(len(peers))}
    longest = dict(served)
    lead = {(one, other): (0, 0) for one in served for other in served if one < other}
    for _ in range(40):
        for number, (segments, more) in enumerate(peers):
            shape = segments + (DECODE_TOKENS,) * 2 if prefill else (1 + more,)
            for session in range(batch_tokens + 1 + 3 * more):  # so that one of them is left behind by any batch
                if schedule.activity(f"peer{number}-{session}".encode()) is Activity.IDLE:
                    filled(schedule, pending(f"peer{number}-{session}", *shape, peer=f"peer{number}"))
        for chunk in schedule.next_batch():
            schedule.done(chunk.step.session)
            served[chunk.step.peer] += chunk.tokens
            longest[chunk.step.peer] = max(longest[chunk.step.peer], chunk.tokens)
        for (one, other), (low, high) in lead.items():
            ahead = served[one] - served[other]
            lead[one, other] = min(low, ahead), max(high, ahead)
    for (one, other), (low, high) in lead.items():
        assert high - low <= longest[one] + longest[other]
