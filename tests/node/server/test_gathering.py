"""Gathering: who is waited for and how long, and what it brings clients that answer soon, or do not."""

from __future__ import annotations

import heapq
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.node.server.gathering import ANSWERS, LATE_TIMES, WORTH_WAITING, Gathering

BASE, SLOPE = 0.05, 0.004
"""What a pass takes in the simulation: for itself, and for each session."""


def gathering(base: float = BASE, slope: float = SLOPE) -> Gathering:
    """One that knows what passes take."""
    new = Gathering()
    for sessions in (1, 8):
        new.pace.observe(sessions, base + slope * sessions)
    return new


def answered(gathering: Gathering, session: bytes, *seconds: float) -> None:
    """A session that has answered so quickly."""
    for each in seconds:
        gathering.given([session], 0.0)
        gathering.came(session, each)


def test_waits_for_who_is_about_to_come_and_begins_when_all_are_there() -> None:
    gathers = gathering()
    answered(gathers, b"a", 0.01)
    answered(gathers, b"b", 0.02)
    gathers.given([b"a", b"b"], 10.0)
    assert not gathers.is_on(10.001)
    assert gathers.waits(10.001)
    assert gathers.is_on(10.001)
    assert gathers.until == pytest.approx(10.0 + LATE_TIMES * 0.02)
    gathers.came(b"a", 10.01)
    assert gathers.waits(10.01)
    gathers.came(b"b", 10.02)
    assert not gathers.waits(10.02)


def test_who_is_late_has_ended_or_is_unknown_is_not_waited_for() -> None:
    gathers = gathering()
    assert not gathers.waits(1.0)
    gathers.begun()
    answered(gathers, b"a", 0.01)
    gathers.given([b"a", b"new"], 10.0)
    assert gathers.waits(10.0)
    assert not gathers.waits(10.0 + LATE_TIMES * 0.01)  # late
    gathers.begun()
    assert not gathers.waits(10.02)
    gathers.begun()
    gathers.given([b"a"], 20.0)
    assert gathers.waits(20.0)
    gathers.forget(b"a")
    assert not gathers.waits(20.0)
    assert len(gathers) == 1


def test_an_answer_that_takes_longer_than_a_pass_for_itself_is_not_waited_for() -> None:
    gathers = gathering()
    answered(gathers, b"slow", BASE)
    gathers.given([b"slow"], 10.0)
    assert not gathers.waits(10.0)


def test_while_nobody_knows_what_a_pass_takes_nobody_waits() -> None:
    gathers = Gathering()
    answered(gathers, b"a", 0.001)
    gathers.given([b"a"], 10.0)
    assert not gathers.waits(10.0)


def test_one_long_pause_among_quick_answers_is_forgiven_and_two_are_not() -> None:
    gathers = gathering()
    answered(gathers, b"a", *[0.01] * ANSWERS, 60.0)
    gathers.given([b"a"], 100.0)
    assert gathers.waits(100.0)
    gathers.begun()
    gathers.came(b"a", 160.0)
    gathers.given([b"a"], 200.0)
    assert not gathers.waits(200.0)


@given(
    base=st.floats(0.001, 1.0),
    answers=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=20),
    given_at=st.lists(st.floats(0.0, 1.0), min_size=20, max_size=20),
)
def test_no_batch_waits_longer_than_a_pass_for_itself(base: float, answers: list[float], given_at: list[float]) -> None:
    gathers = gathering(base, base / 10)
    for number, seconds in enumerate(answers):
        answered(gathers, b"%d" % number, seconds)
        gathers.given([b"%d" % number], given_at[number])
    gathers.waits(1.0)
    assert gathers.until is not None
    assert 1.0 <= gathers.until <= 1.0 + WORTH_WAITING * base * 1.001
    assert not gathers.waits(gathers.until)


def tokens_per_second(sessions: int, answers: list[float], *, gathers: bool, seconds: float = 60.0) -> float:
    """Of clients in a loop with one server: `answers` is how long the first, the second, … of them takes."""
    decide, now, tokens, ready, runs = gathering(), 0.0, 0, list(range(sessions)), False
    numbers = count()
    due: list[tuple[float, int, str, tuple[int, ...]]] = []
    while now < seconds:
        if ready and not runs:
            if gathers and decide.waits(now):
                assert decide.until is not None
                heapq.heappush(due, (decide.until, next(numbers), "waited", ()))
            else:
                decide.begun()
                took = BASE + SLOPE * len(ready)
                decide.pace.observe(len(ready), took)
                heapq.heappush(due, (now + took, next(numbers), "ran", tuple(ready)))
                ready, runs = [], True
        now, _, what, who = heapq.heappop(due)
        if what == "ran":
            runs, tokens = False, tokens + len(who)
            decide.given([b"%d" % one for one in who], now)
            for place, one in enumerate(who):
                # A client's machine has one answer after the other to deal with.
                after = answers[one % len(answers)] + 0.0005 * place
                heapq.heappush(due, (now + after, next(numbers), "came", (one,)))
        elif what == "came":
            decide.came(b"%d" % who[0], now)
            ready.append(who[0])
    return tokens / seconds


@pytest.mark.parametrize("sessions", [2, 8, 32])
def test_clients_that_answer_soon_get_more_together(sessions: int) -> None:
    """Without it they fall into two halves, and each step waits for two passes."""
    answers = [0.004, 0.005, 0.007, 0.006]
    plain, gathered = (tokens_per_second(sessions, answers, gathers=gathers) for gathers in (False, True))
    assert gathered > 1.1 * plain
    alone = sessions / (BASE + SLOPE * sessions)
    assert gathered > 0.8 * alone


@given(
    sessions=st.integers(1, 12),
    answers=st.lists(st.floats(0.001, 0.4), min_size=1, max_size=7),
)
def test_whoever_the_clients_are_they_hardly_lose(sessions: int, answers: list[float]) -> None:
    plain, gathered = (tokens_per_second(sessions, answers, gathers=gathers, seconds=20.0) for gathers in (False, True))
    assert gathered > 0.8 * plain
