"""A relay's books: nobody gets more than there is, and what lapses is free again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmnode.node.net.nat import ledger
from swarmnode.node.net.nat.ledger import Ledger, Pace, Status


def test_a_place_lasts_as_long_as_it_was_promised_and_is_renewed() -> None:
    books = Ledger()
    assert books.begin("b", "a", 0.0) == Status.NO_RESERVATION
    assert books.reserve("a", "192.0.2.1", 0.0) == Status.OK
    assert books.begin("b", "a", ledger.RESERVATION_SECONDS - 1) == Status.OK
    assert books.reserve("a", "192.0.2.1", ledger.RESERVATION_SECONDS - 1) == Status.OK
    assert books.begin("b", "a", ledger.RESERVATION_SECONDS + 1) == Status.OK
    assert books.begin("b", "a", 2 * ledger.RESERVATION_SECONDS) == Status.NO_RESERVATION
    books.reserve("a", "192.0.2.1", 0.0)
    books.release("a")
    assert books.begin("b", "a", 1.0) == Status.NO_RESERVATION
    assert books.begin("a", "a", 1.0) == Status.PERMISSION_DENIED


def test_one_host_cannot_take_all_places() -> None:
    books = Ledger()
    taken = [books.reserve(f"p{n}", "192.0.2.1", 0.0) for n in range(ledger.MAX_RESERVATIONS_PER_HOST + 1)]
    assert taken.count(Status.OK) == ledger.MAX_RESERVATIONS_PER_HOST
    assert taken[-1] == Status.RESERVATION_REFUSED
    assert books.reserve("p0", "192.0.2.1", 1.0) == Status.OK, "a renewal takes no new place"
    others = [books.reserve(f"q{n}", f"h{n}", 0.0) for n in range(ledger.MAX_RESERVATIONS)]
    assert others.count(Status.OK) == ledger.MAX_RESERVATIONS - ledger.MAX_RESERVATIONS_PER_HOST
    assert books.reserve("new", "h", ledger.RESERVATION_SECONDS + 1) == Status.OK


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=300))
def test_circuits_are_bounded_and_given_back(events: list[tuple[int, int, bool]]) -> None:
    books = Ledger()
    for peer in range(6):
        books.reserve(str(peer), str(peer), 0.0)
    running: list[tuple[str, str]] = []
    for source, target, ends in events:
        if ends and running:
            books.end(*running.pop(source % len(running)))
        elif books.begin(str(source), str(target), 1.0) == Status.OK:
            running.append((str(source), str(target)))
        ends_of = [peer for pair in running for peer in pair]
        assert books.circuits == len(running) <= ledger.MAX_CIRCUITS
        assert all(ends_of.count(str(peer)) <= ledger.MAX_CIRCUITS_PER_PEER for peer in range(6))
    for pair in running:
        books.end(*pair)
    assert books.circuits == 0


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 10)), min_size=1, max_size=100))
def test_no_more_goes_through_than_the_rate_allows(pieces: list[tuple[int, float]]) -> None:
    now = 0.0
    pace = Pace(now)
    carried = 0
    for size, pause in pieces:
        now += pause
        carried += size
        now += pace.delay_seconds(size, now)
        assert carried <= ledger.BURST_BYTES + now * ledger.CIRCUIT_BYTES_PER_SECOND + 1


def test_a_burst_goes_at_once() -> None:
    pace = Pace(0.0)
    assert pace.delay_seconds(ledger.BURST_BYTES, 0.0) == 0.0
    assert pace.delay_seconds(ledger.CIRCUIT_BYTES_PER_SECOND, 0.0) == 1.0
