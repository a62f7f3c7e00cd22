"""Which blocks servers take: the worst-covered gain, newcomers do not collide, gaps close, moves come to an end."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.said import MODEL, peer_of, server_key, server_record
from swarmnode.node.bench.blocks import best_worst_coverage, some_servers
from swarmnode.node.bench.simulated import Pond
from swarmnode.node.placement import (
    MOVE_GAIN,
    PATIENCE_SECONDS,
    SPREAD_SECONDS,
    Coverage,
    Options,
    Patience,
    Share,
    choose_window,
    coverage_of,
    move_delay_seconds,
    rank,
    settle,
    shares_of,
    should_move,
    uncovered,
    worth,
)
from swarmnode.protocols.records import ServerRecord

BLOCKS = 12


def options(peer: str, length: int, rate: int = 100, blocks: int = BLOCKS) -> Options:
    return Options(peer, [(start, start + length) for start in range(blocks - length + 1)], lambda _: rate)


def shares(*spans: tuple[int, int], rate: int = 100) -> list[Share]:
    return [Share(f"held-{number}", start, end, rate) for number, (start, end) in enumerate(spans)]


def held(*spans: tuple[int, int], rate: int = 100) -> Coverage:
    return coverage_of(shares(*spans, rate=rate), BLOCKS)


def test_the_first_of_a_swarm_begins_with_block_0() -> None:
    for peer in "abcdef":
        assert choose_window(held(), options(peer, 5)) == (0, 5)


def test_gaps_come_before_thin_blocks() -> None:
    assert choose_window(held((0, 4), (7, 12)), options("a", 3)) == (4, 7)
    assert choose_window(coverage_of([*shares((0, 12)), *shares((0, 9))], BLOCKS), options("a", 3)) == (9, 12)


def test_a_gap_is_filled_from_its_edge_and_one_that_fits_before_others() -> None:
    for peer in map(str, range(20)):
        assert choose_window(held((0, 2), (11, 12)), options(peer, 4)) in ((2, 6), (7, 11))
        assert choose_window(held((0, 2), (5, 6), (11, 12)), options(peer, 3)) == (2, 5)


def test_newcomers_differ_where_windows_are_alike() -> None:
    ends = held((3, 9))
    assert {choose_window(ends, options(peer, 3)) for peer in map(str, range(20))} == {(0, 3), (9, 12)}


def test_a_slow_holder_counts_for_less_than_a_quick_one() -> None:
    coverage = coverage_of([Share("slow", 0, 6, 10), Share("quick", 6, 12, 500)], BLOCKS)
    assert choose_window(coverage, options("a", 6)) == (0, 6)


@st.composite
def some_shares(draw: st.DrawFn, blocks: int = BLOCKS, most: int = 8) -> list[Share]:
    found = []
    for number in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, blocks - 1))
        end = draw(st.integers(start + 1, blocks))
        found.append(Share(f"held-{number}", start, end, draw(st.integers(1, 1000))))
    return found


lengths = st.lists(st.integers(1, BLOCKS), min_size=1, max_size=9)


@given(some_shares(), st.integers(1, BLOCKS), st.integers(1, 1000), st.randoms())
def test_no_window_leaves_the_worst_blocks_better_off(
    others: list[Share], length: int, rate: int, chance: random.Random
) -> None:
    ours = options("own", length, rate)
    chosen = choose_window(coverage_of(others, BLOCKS), ours)

    def outlook(window: tuple[int, int]) -> list[int]:
        return sorted(coverage_of([*others, Share("own", *window, rate)], BLOCKS))

    assert outlook(chosen) == max(outlook(window) for window in ours.windows)
    shuffled = list(others)
    chance.shuffle(shuffled)
    assert choose_window(coverage_of(shuffled, BLOCKS), ours) == chosen


@given(lengths)
def test_whoever_comes_one_after_the_other_wastes_no_block(found: list[int]) -> None:
    there: list[Share] = []
    for number, length in enumerate(found):
        window = choose_window(coverage_of(there, BLOCKS), options(str(number), length))
        there.append(Share(str(number), *window, 100))
        assert uncovered(coverage_of(there, BLOCKS)) == max(0, BLOCKS - sum(found[: number + 1]))


@given(some_shares(most=4), st.lists(st.tuples(st.integers(1, BLOCKS), st.integers(1, 999)), min_size=2, max_size=6))
def test_newcomers_that_chose_at_the_same_moment_settle_like_ones_that_came_in_turn(
    others: list[Share], found: list[tuple[int, int]]
) -> None:
    coverage = coverage_of(others, BLOCKS)
    each = {str(number): options(str(number), length, rate) for number, (length, rate) in enumerate(found)}
    blind = [Share(peer, *choose_window(coverage, own), own.rate_of(0)) for peer, own in each.items()]
    settled = []
    for own in blind:
        newcomers = [share for share in blind if share is not own]
        start, end = settle(own, each[own.peer], newcomers, others, BLOCKS)
        settled.append(replace(own, start=start, end=end))
    in_turn = list(others)
    for own in sorted(blind, key=lambda share: rank(share.peer)):
        window = choose_window(coverage_of(in_turn, BLOCKS), each[own.peer])
        in_turn.append(Share(own.peer, *window, own.rate))
    # Who may keep a window that is as good as another keeps it, so places may differ where nothing depends on them.
    assert uncovered(coverage_of([*others, *settled], BLOCKS)) == uncovered(coverage_of(in_turn, BLOCKS))
    first = min(blind, key=lambda share: rank(share.peer))
    assert first in settled


def apply_moves(there: list[Share], blocks: int) -> list[Share]:
    """Let servers move one after the other until none wants to."""
    chance = random.Random(len(there))
    for _ in range(1000):
        wishes = []
        for own in there:
            others = [share for share in there if share is not own]
            mine = options(own.peer, own.end - own.start, own.rate, blocks)
            window = should_move(own, mine, others, blocks)
            if window is not None:
                wishes.append((own, window))
        if not wishes:
            return there
        own, (start, end) = chance.choice(wishes)
        before, there = there, [replace(share, start=start, end=end) if share is own else share for share in there]
        old, new = coverage_of(before, blocks), coverage_of(there, blocks)
        assert uncovered(new) <= uncovered(old)
        if not uncovered(old):
            assert min(new) >= MOVE_GAIN * min(old)
    raise AssertionError("they move for ever")


@settings(max_examples=300)
@given(some_shares())
def test_moves_end_and_close_every_gap_that_can_be_closed(there: list[Share]) -> None:
    rest = apply_moves(there, BLOCKS)
    capacity = sum(share.end - share.start for share in there)
    assert uncovered(coverage_of(rest, BLOCKS)) == max(0, BLOCKS - capacity)


def test_a_gap_travels_to_where_there_is_one_too_many() -> None:
    # Together they have six blocks for six, but no single move closes the gaps.
    there = [Share("a", 1, 3, 10), Share("b", 3, 5, 10), Share("c", 1, 3, 10)]
    assert uncovered(coverage_of(apply_moves(there, 6), 6)) == 0


def test_a_running_server_stays_unless_it_is_worth_a_load() -> None:
    others = [Share("a", 0, 6, 100), Share("b", 6, 12, 130)]
    own = Share("own", 6, 12, 20)
    assert should_move(own, options("own", 6, 20), others, BLOCKS) is None  # 120 instead of 100
    own = Share("own", 6, 12, 30)
    assert should_move(own, options("own", 6, 30), others, BLOCKS) == (0, 6)  # 130 instead of 100


def test_patience_lasts_for_a_while_that_is_each_peers_own() -> None:
    delays = {move_delay_seconds(peer, attempt) for peer in "abc" for attempt in (1, 2)}
    assert len(delays) == 6
    assert all(PATIENCE_SECONDS <= delay <= PATIENCE_SECONDS + SPREAD_SECONDS for delay in delays)
    patience, now = Patience("a"), 1000.0
    assert not patience.is_over(True, now)
    assert not patience.is_over(True, now + move_delay_seconds("a", 1) - 0.1)
    assert not patience.is_over(False, now + move_delay_seconds("a", 1))
    assert not patience.is_over(True, now + 500)
    assert patience.is_over(True, now + 500.1 + move_delay_seconds("a", 2))
    # Who has moved is as patient again: two that moved at once would else do so for ever.
    assert not patience.is_over(True, now + 1000)


@pytest.mark.parametrize("capacity", [1.0, 2.0])
def test_a_simulated_swarm_heals_and_comes_to_rest(capacity: float) -> None:
    for seed in range(6):
        chance = random.Random(seed)
        pond = Pond(24, seed)
        for server in some_servers(chance, 24, capacity):
            pond.join(server)
            pond.run(chance.choice((0.0, 3.0)))
        pond.run(60.0)
        assert uncovered(pond.answered) == 0
        for peer in chance.sample(sorted(pond.servers), len(pond.servers) // 3):
            pond.leave(peer, politely=chance.random() < 0.5)
        pond.run(3600.0)
        moves = len(pond.moved)
        assert uncovered(pond.answered) == max(0, 24 - pond.capacity)
        pond.run(4 * 3600.0)
        assert len(pond.moved) == moves


def test_no_placement_is_better_than_the_best() -> None:
    assert best_worst_coverage(6, [(3, 300), (3, 600)]) == 100
    assert best_worst_coverage(6, [(3, 300), (3, 600), (2, 200)]) == 100
    assert best_worst_coverage(4, [(4, 400), (2, 200), (2, 200)]) == 200
    chance = random.Random(7)
    for _ in range(20):
        found = [(chance.randint(2, 4), chance.randint(100, 1000)) for _ in range(4)]
        coverage = [0] * 6
        for number, (length, rate) in enumerate(found):
            start, end = choose_window(coverage, options(str(number), length, rate // length, 6))
            for block in range(start, end):
                coverage[block] += rate // length
        assert min(coverage) <= best_worst_coverage(6, found)


def record(number: int, start: int, end: int, **changes: object) -> ServerRecord:
    return server_record(number, start=start, end=end, num_blocks=BLOCKS, **changes)


def test_records_become_shares() -> None:
    records = [
        record(1, 0, 6),
        record(2, 6, 12, state="joining", decode_tokens_per_second=0.0, prefill_tokens_per_second=0.0),
        record(3, 0, 12, state="draining"),
        record(4, 0, 12),
        server_record(5, start=0, end=5, num_blocks=30),
    ]
    found = shares_of(records, BLOCKS, without=[peer_of(server_key(4))])
    assert {(share.start, share.end) for share in found} == {(0, 6), (6, 12)}
    # A rate that is not known is that of the others, block for block.
    assert len({share.rate * (share.end - share.start) for share in found}) == 1
    assert [share.peer for share in found] == sorted(share.peer for share in found)
    assert records[0].model == MODEL


def test_a_swarm_that_knows_no_rates_takes_all_blocks_for_equal() -> None:
    unknown = {"decode_tokens_per_second": 0.0, "prefill_tokens_per_second": 0.0}
    long, short = shares_of([record(1, 0, 8, **unknown), record(2, 8, 12, **unknown)], BLOCKS)
    rates = {share.end - share.start: share.rate for share in (long, short)}
    assert rates[4] == 2 * rates[8] > 0


def test_what_a_rate_is_worth() -> None:
    assert worth(10.0, 1e9) == pytest.approx(10_000, rel=0.01)
    assert worth(10.0, 20.0) == 5_000
    for nothing in (0.0, -1.0, float("nan"), float("inf")):
        assert worth(nothing, 10.0) == worth(10.0, nothing) == 0
    assert worth(1e9, 1e9) == 50_000_000  # nobody is believed more
    assert all(worth(*pair) > 0 for pair in itertools.product((1e-300, 1e-3, 1e6), repeat=2))
