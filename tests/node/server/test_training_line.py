"""Training waits for sessions, but not for ever; its peers have turns; its memory stays within what there is."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.node.defaults import (
    MAX_TRAINING_PASSES_PER_PEER,
    MIN_RETRY_AFTER_SECONDS,
    TRAINING_GRACE_SECONDS,
)
from swarmnode.node.server.schedule import PATIENCE_BATCHES
from swarmnode.node.server.training_line import TrainingLine

ROOM = 1000


def line_with(*passes: tuple[str, int], groups: int = 1, tokens: int = 10) -> TrainingLine[tuple[str, int]]:
    """A line in which each pass, of a peer and a number, has some groups."""
    line: TrainingLine[tuple[str, int]] = TrainingLine(max_passes_per_peer=100)
    for each in passes:
        assert line.admit(each, each[0], 1, ROOM, 0.0) is None
        for _ in range(groups):
            line.add(each, (each[0], each[1]), tokens)
    return line


def test_it_goes_on_when_nobody_else_is_there() -> None:
    line = line_with(("ada", 0))
    assert line.next(busy=False, now=0.0) == ("ada", 0)
    assert line.next(busy=False, now=0.0) == ("ada", 0)
    line.through(("ada", 0))
    assert not line.waiting
    assert line.next(busy=False, now=0.0) is None


def test_it_waits_while_a_batch_is_under_way_and_a_moment_longer() -> None:
    line = line_with(("ada", 0))
    assert line.next(busy=True, now=5.0) is None
    line.batch_over(5.0)
    assert line.next(busy=False, now=5.0) is None
    assert line.quiet_in(5.0) == pytest.approx(TRAINING_GRACE_SECONDS)
    assert line.next(busy=False, now=5.1 + TRAINING_GRACE_SECONDS) == ("ada", 0)


@given(st.lists(st.booleans(), max_size=200))
def test_sessions_that_never_pause_let_it_go_on_now_and_then(asks: list[bool]) -> None:
    """At every end of a batch, and at whatever other moment it asks, no more and no less often."""
    line = line_with(("ada", 0))
    since = 0
    for ask_again in asks:
        line.batch_over(0.0)
        since += 1
        for _ in range(1 + ask_again):
            if line.next(busy=True, now=0.0) is not None:
                assert since == PATIENCE_BATCHES
                since = 0
        assert since < PATIENCE_BATCHES


def test_a_group_that_was_begun_goes_on_to_its_end() -> None:
    line = line_with(("ada", 0))
    assert line.next(busy=False, now=0.0) == ("ada", 0)
    assert line.admit(("bob", 0), "bob", 1, ROOM, 0.0) is None
    line.add(("bob", 0), ("bob", 0), 10)
    assert line.next(busy=False, now=0.0) == ("ada", 0)
    line.through(("ada", 0))
    assert line.next(busy=False, now=0.0) == ("bob", 0)


@given(st.integers(1, 6), st.integers(1, 6))
def test_peers_have_turns_however_many_passes_each_has(of_ada: int, of_bob: int) -> None:
    line = line_with(*(("ada", n) for n in range(of_ada)), *(("bob", n) for n in range(of_bob)), groups=6)
    served = {"ada": 0, "bob": 0}
    while line.waiting and max(served.values()) < 6:
        group = line.next(busy=False, now=0.0)
        assert group is not None
        served[group[0]] += 1
        line.through(group)
        assert abs(served["ada"] - served["bob"]) <= 1


@given(st.lists(st.tuples(st.sampled_from(["ada", "bob"]), st.integers(1, 600), st.booleans()), max_size=40))
def test_passes_stay_within_memory_and_number_and_give_all_back(story: list[tuple[str, int, bool]]) -> None:
    line: TrainingLine[str] = TrainingLine(max_passes=5)
    held: dict[Hashable, tuple[str, int]] = {}
    for number, (peer, size, leaves) in enumerate(story):
        theirs = sum(each == peer for each, _ in held.values())
        room = len(held) < 5 and theirs < MAX_TRAINING_PASSES_PER_PEER
        fits = sum(size for _, size in held.values()) + size <= ROOM
        busy = line.admit(number, peer, size, ROOM, float(number))
        assert (busy is None) == (room and fits)
        if busy is None:
            held[number] = peer, size
        else:
            assert (busy.retry_after_seconds or 0) >= MIN_RETRY_AFTER_SECONDS
        if leaves and held:
            first = next(iter(held))
            del held[first]
            line.release(first, float(number))
        assert line.bytes == sum(size for _, size in held.values())
    for key in list(held):
        line.release(key, 100.0)
    assert line.bytes == 0


def test_what_a_pass_had_waiting_goes_with_it() -> None:
    line = line_with(("ada", 0), groups=3)
    assert line.next(busy=False, now=0.0) is not None
    line.release(("ada", 0), 0.0)
    assert not line.waiting
    assert line.next(busy=False, now=0.0) is None
