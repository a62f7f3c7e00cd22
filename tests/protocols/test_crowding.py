"""Who gives way when a key is full."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from swarmnode.protocols.crowding import Covering, spared

BLOCKS = 12
OURS = (b"ours", BLOCKS)
THEIRS = (b"theirs", BLOCKS)


def covering(start: int, end: int, weights: tuple[bytes, int] = OURS) -> Covering:
    return Covering(weights, start, end)


@st.composite
def coverings(draw: st.DrawFn) -> Covering:
    start = draw(st.integers(0, BLOCKS - 1))
    return covering(start, draw(st.integers(start + 1, BLOCKS)), draw(st.sampled_from([OURS, OURS, THEIRS])))


def held(records: list[Covering]) -> Counter[tuple[object, int]]:
    return Counter((record.weights, block) for record in records for block in range(record.start, record.end))


def test_the_only_server_of_some_blocks_takes_the_place_of_one_of_many() -> None:
    present = [covering(0, 6)] * 5
    assert spared(present, covering(6, 12)) == 4


def test_one_more_of_the_same_displaces_nobody() -> None:
    assert spared([covering(0, 6)] * 5, covering(0, 6)) is None


def test_a_flood_crowds_out_only_itself() -> None:
    honest = [covering(0, 6), covering(6, 12)]
    flood = [covering(0, 12)] * 6
    for _ in range(20):
        loser = spared(honest + flood, covering(3, 5, THEIRS))
        if loser is None:
            break
        assert loser >= len(honest)
        del flood[loser - len(honest)]
    assert held(honest + flood).total() > 0
    assert len(flood) < 6


def test_nobody_is_spared_where_nobody_is_present() -> None:
    assert spared([], covering(0, 1)) is None


@given(st.lists(coverings(), max_size=12), coverings())
def test_whoever_goes_leaves_two_holders_of_each_of_its_blocks(present: list[Covering], newcomer: Covering) -> None:
    loser = spared(present, newcomer)
    if loser is None:
        return
    rest = held([*present[:loser], *present[loser + 1 :], newcomer])
    gone = present[loser]
    assert all(rest[gone.weights, block] >= 2 for block in range(gone.start, gone.end))


@given(st.lists(coverings(), min_size=1, max_size=12), coverings())
def test_whoever_went_does_not_come_back_for_the_one_that_came(present: list[Covering], newcomer: Covering) -> None:
    loser = spared(present, newcomer)
    if loser is None:
        return
    now = [*present[:loser], *present[loser + 1 :], newcomer]
    again = spared(now, present[loser])
    assert again is None or again != len(now) - 1
