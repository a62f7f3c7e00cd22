"""Places in line: first refused, first in; lost by who is late; and told times that hold."""

from __future__ import annotations

from functools import partial
from heapq import heappop, heappush
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from swarmnode.node.defaults import MIN_RETRY_AFTER_SECONDS
from swarmnode.node.server.busy import FIRST_GUESS_SECONDS
from swarmnode.node.server.cache_budget import CacheBudget
from swarmnode.node.server.line import Line
from swarmnode.node.server.schedule import Activity, Priority

LATE_SECONDS = 5.0


def test_who_was_refused_first_is_before_the_others() -> None:
    line = Line(late_seconds=LATE_SECONDS)
    assert line.before("a", Priority.OTHERS, 0.0) == 0
    for peer in "abc":
        line.stand(peer, Priority.OTHERS, 10.0)
    assert [line.before(peer, Priority.OTHERS, 1.0) for peer in "abc"] == [0, 1, 2]
    assert line.before("new", Priority.OTHERS, 1.0) == 3
    line.stand("a", Priority.OTHERS, 20.0)  # refused again: it keeps its place
    assert [line.before(peer, Priority.OTHERS, 1.0) for peer in "abc"] == [0, 1, 2]
    assert line.leave("a") is not None
    assert line.leave("a") is None
    assert [line.before(peer, Priority.OTHERS, 1.0) for peer in "abc"] == [2, 0, 1]


def test_a_higher_class_is_before_all_lower_ones() -> None:
    line = Line()
    line.stand("other", Priority.OTHERS, 1.0)
    assert line.before("own", Priority.OWN, 0.0) == 0
    line.stand("own", Priority.OWN, 1.0)
    assert line.before("other", Priority.OTHERS, 0.0) == 1
    assert line.before("own", Priority.OWN, 0.0) == 0


def test_who_is_late_loses_the_place() -> None:
    line = Line(late_seconds=LATE_SECONDS)
    line.stand("late", Priority.OTHERS, 10.0)
    line.stand("patient", Priority.OTHERS, 30.0)
    assert line.before("patient", Priority.OTHERS, 15.0) == 1
    assert line.before("patient", Priority.OTHERS, 15.1) == 0
    assert len(line) == 1


def test_a_place_that_was_left_in_vain_is_had_again() -> None:
    line = Line()
    for peer in "abc":
        line.stand(peer, Priority.OTHERS, 1.0)
    number = line.leave("a")
    assert line.before("b", Priority.OTHERS, 0.0) == 0
    line.stand("a", Priority.OTHERS, 1.0, number)
    assert [line.before(peer, Priority.OTHERS, 0.0) for peer in "abc"] == [0, 1, 2]


def test_there_are_only_so_many_places() -> None:
    line = Line(max_places=2)
    for peer in "abc":
        line.stand(peer, Priority.OTHERS, 1.0)
    assert len(line) == 2
    assert line.before("c", Priority.OTHERS, 0.0) == 2


@given(peers=st.integers(2, 40), rooms=st.integers(1, 8), lasting_seconds=st.floats(0.5, 20.0))
def test_whoever_comes_again_when_told_is_let_in_within_two_rounds(
    peers: int, rooms: int, lasting_seconds: float
) -> None:
    """All want a session, and then the next. In a round, which is as short as can be, each of them has one."""
    budget = CacheBudget(rooms, lambda _: Activity.IDLE)
    round_seconds = (lasting_seconds + MIN_RETRY_AFTER_SECONDS) * -(-peers // rooms)
    numbers = count()
    due: list[tuple[float, int, str, bytes]] = [(0.0, next(numbers), f"peer {each}", b"") for each in range(peers)]
    wants_since = {peer: 0.0 for _, _, peer, _ in due}
    now = longest = 0.0
    while now < 5 * round_seconds:
        now, number, peer, session = heappop(due)
        if session:
            budget.release(session, now)
            wants_since[peer] = now
        name = b"%d" % number
        cost = partial(min, 1)
        busy = budget.open(name, peer, priority=Priority.OTHERS, wanted_tokens=1, cost=cost, now=now)
        if busy is None:
            longest = max(longest, now - wants_since[peer])
            assert budget.reserve(name, 1, now).granted
            heappush(due, (now + lasting_seconds, next(numbers), peer, name))
        else:
            assert busy.retry_after_seconds is not None
            heappush(due, (now + busy.retry_after_seconds, next(numbers), peer, b""))
    assert longest <= 2 * round_seconds + FIRST_GUESS_SECONDS
