"""Routes: every block once, the cheapest chain of all, and gaps named exactly."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.errors import BlocksMissing
from swarmnode.node.defaults import HOP_NANOSECONDS, UNKNOWN_BLOCK_NANOSECONDS
from swarmnode.node.routes import Coverage, Hop, coverage, missing_blocks, plan_route
from swarmnode.protocols.records import ModelId, ServerRecord

MODEL = ModelId("org/model", "r1", b"d" * 32)
BLOCKS = 12


def record(
    peer: str,
    start: int,
    end: int,
    *,
    rate: float = 0.0,
    state: str = "online",
    left: int = 1000,
    num_blocks: int = BLOCKS,
    relayed: bool = False,
) -> ServerRecord:
    return ServerRecord(
        peer=peer,
        sequence=1,
        lifetime_seconds=45.0,
        model=MODEL,
        num_blocks=num_blocks,
        start=start,
        end=end,
        dtype="float32",
        quantisation="none",
        state=state,  # type: ignore[arg-type]
        cache_tokens_left=left,
        decode_tokens_per_second=rate,
        prefill_tokens_per_second=rate,
        addrs=(f"/memory/{peer}",),
        protocols=(),
        public_name="",
        relayed=relayed,
    )


def hops(*records: ServerRecord, **choices: object) -> list[tuple[str, int, int]]:
    route = plan_route(records, BLOCKS, **choices)  # type: ignore[arg-type]
    return [(hop.peer, hop.start, hop.end) for hop in route.hops]


def test_takes_the_fewest_hops_among_equals() -> None:
    assert hops(record("a", 0, 6), record("b", 6, 12), record("c", 0, 12)) == [("c", 0, 12)]


def test_uses_a_part_of_a_span_where_another_is_quicker() -> None:
    slow = record("slow", 0, 12, rate=0.1)
    quick = record("quick", 4, 12, rate=100.0)
    assert hops(slow, quick) == [("slow", 0, 4), ("quick", 4, 12)]


def test_overlaps_are_cut_and_addresses_go_along() -> None:
    route = plan_route([record("a", 0, 8), record("b", 5, 12)], BLOCKS)
    assert [hop.peer for hop in route.hops] == ["a", "b"]
    assert route.hops[0].end == route.hops[1].start
    assert route.hops[0] == Hop("a", ("/memory/a",), 0, route.hops[0].end, "float32")
    assert route.num_blocks == BLOCKS
    assert route.peers == ("a", "b")


def test_prefers_who_is_online_and_has_room() -> None:
    joining = record("a", 0, 12, rate=100.0, state="joining")
    full = record("b", 0, 12, rate=100.0, left=10)
    online = record("c", 0, 12, rate=1.0)
    assert hops(joining, full, online, tokens=100) == [("c", 0, 12)]
    assert hops(joining, full, tokens=10) == [("b", 0, 12)]
    assert hops(joining) == [("a", 0, 12)]


def test_a_relayed_server_is_used_where_it_is_much_quicker_or_the_only_one() -> None:
    relayed = record("a", 0, 12, rate=20.0, relayed=True)
    assert hops(relayed, record("b", 0, 12, rate=15.0)) == [("b", 0, 12)]
    assert hops(relayed, record("b", 0, 12, rate=5.0)) == [("a", 0, 12)]
    assert hops(relayed) == [("a", 0, 12)]
    assert hops(relayed, record("b", 0, 12, state="joining")) == [("a", 0, 12)]


def test_names_exactly_the_gaps() -> None:
    with pytest.raises(BlocksMissing) as caught:
        hops(record("a", 2, 4), record("b", 5, 9))
    assert caught.value.message == "Blocks 0:2, 4:5 and 9:12 of 12 have no live server."
    assert caught.value.span == (0, 2)
    with pytest.raises(BlocksMissing, match=r"^Blocks 6:12 of 12 have no live server\.$"):
        hops(record("a", 0, 6), record("b", 6, 12), exclude={"b"})
    with pytest.raises(BlocksMissing, match="Blocks 0:12 of 12"):
        hops()


def test_ignores_records_of_another_depth() -> None:
    with pytest.raises(BlocksMissing):
        hops(record("a", 0, 12, num_blocks=13))


def test_coverage_names_the_holders_of_each_run() -> None:
    assert coverage([record("a", 0, 6), record("b", 4, 8)], BLOCKS) == (
        Coverage(0, 4, ("a",)),
        Coverage(4, 6, ("a", "b")),
        Coverage(6, 8, ("b",)),
        Coverage(8, 12, ()),
    )
    assert missing_blocks([record("a", 0, 6), record("b", 4, 8)], BLOCKS) == ((8, 12),)


SMALL = 5
small_records = st.builds(
    lambda peer, start, length, rate, online: record(
        f"p{peer}",
        start,
        min(start + length, SMALL),
        rate=rate,
        state="online" if online else "draining",
        num_blocks=SMALL,
    ),
    st.integers(0, 5),
    st.integers(0, SMALL - 1),
    st.integers(1, SMALL),
    st.sampled_from([0.0, 1.0, 3.7, 20.0, 1e9, float("inf"), float("nan"), -1.0]),
    st.booleans(),
)


def price(hop_records: list[tuple[ServerRecord, int, int]]) -> tuple[int, int, int]:
    """What a chain costs, written down a second time."""
    unwilling = sum(each.state != "online" for each, _, _ in hop_records)
    total = HOP_NANOSECONDS * len(hop_records)
    for each, start, end in hop_records:
        rate = each.decode_tokens_per_second
        block = UNKNOWN_BLOCK_NANOSECONDS
        if 0 < rate < float("inf"):
            block = int(min(max(1e9 / (rate * (each.end - each.start)), 20_000), 60_000_000_000))
        total += block * (end - start)
    return unwilling, total, len(hop_records)


def cheapest_of_all(records: list[ServerRecord]) -> tuple[int, int, int] | None:
    """Every way to cut the blocks, every server for every piece."""
    best: tuple[int, int, int] | None = None
    for cuts in itertools.product([False, True], repeat=SMALL - 1):
        edges = [0, *(at + 1 for at, cut in enumerate(cuts) if cut), SMALL]
        pieces = list(itertools.pairwise(edges))
        holders = [[each for each in records if each.start <= a and b <= each.end] for a, b in pieces]
        for chosen in itertools.product(*holders):
            cost = price([(each, a, b) for each, (a, b) in zip(chosen, pieces, strict=True)])
            best = cost if best is None else min(best, cost)
    return best


@given(st.lists(small_records, max_size=5), st.randoms())
def test_the_route_tiles_the_blocks_and_none_is_cheaper(records: list[ServerRecord], random: object) -> None:
    best = cheapest_of_all(records)
    if best is None:
        with pytest.raises(BlocksMissing):
            plan_route(records, SMALL)
        return
    route = plan_route(records, SMALL)
    assert [hop.start for hop in route.hops] == [0, *(hop.end for hop in route.hops[:-1])]
    assert route.hops[-1].end == SMALL
    options = [
        [each for each in records if each.peer == hop.peer and each.start <= hop.start and hop.end <= each.end]
        for hop in route.hops
    ]
    assert (
        min(
            price([(each, hop.start, hop.end) for each, hop in zip(chosen, route.hops, strict=True)])
            for chosen in itertools.product(*options)
        )
        == best
    )
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan_route(shuffled, SMALL) == route
