"""Links and what is kept under them: nothing wrong is ever found, nobody meets a stranger's, bounds hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from swarmnode.node.server.prefix import Chain, PrefixIndex, PrefixStatistics, cut

BLOCK = 4


@given(st.integers(0, 40), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.data())
def test_cutting_is_by_place_and_length_alone(position: int, segments: list[int], data: st.DataObject) -> None:
    pieces = cut(position, segments, BLOCK)
    assert min(pieces) > 0
    ends = list(accumulate(segments))
    assert set(ends) <= set(accumulate(pieces))
    for start, tokens in zip([0, *accumulate(pieces)], pieces, strict=False):
        assert tokens <= BLOCK or (position + start) % BLOCK
    # A chunk of the segments is cut as it is cut among all.
    chunk = data.draw(st.integers(0, len(segments)))
    carried = sum(segments[:chunk])
    assert pieces == cut(position, segments[:chunk], BLOCK) + cut(position + carried, segments[chunk:], BLOCK)
    assert cut(position, pieces, BLOCK) == pieces


def links(*hidden: bytes, about: object = "llama", peer: str = "us", public_tokens: int = 0) -> list[bytes]:
    chain = Chain([about], peer, public_tokens, BLOCK)
    return chain.next_links(hidden)


def test_a_link_stands_for_all_that_came_before() -> None:
    one = links(b"a", b"b", b"c")
    assert links(b"a", b"b", b"d")[:2] == one[:2]
    assert len({*one, *links(b"x", b"b", b"c"), *links(b"b", b"c")}) == 3 + 3 + 2
    assert not set(one) & set(links(b"a", b"b", b"c", about="opt"))


def test_only_public_blocks_meet_other_peers() -> None:
    ours = links(b"a", b"b", b"c", peer="us", public_tokens=2 * BLOCK + 1)
    theirs = links(b"a", b"b", b"c", peer="them", public_tokens=3 * BLOCK)
    assert ours[:2] == theirs[:2]
    assert ours[2] != theirs[2]
    assert not set(links(b"a", b"b")) & set(ours)


def test_links_go_on_from_those_that_are_held() -> None:
    chain = Chain(["llama"], "us", BLOCK, BLOCK)
    assert chain.goes_on(0)
    chain.add(chain.next_links([b"a", b"b"]))
    assert chain.goes_on(2 * BLOCK)
    chain.add(chain.next_links([b"c"]))
    assert chain.links == links(b"a", b"b", b"c", public_tokens=BLOCK)


@pytest.mark.parametrize(
    ("position", "held", "goes_on"),
    [(0, 0, True), (3, 0, False), (4, 1, True), (7, 1, False), (8, 2, True), (9, 2, False), (12, 2, False)],
)
def test_going_back_forgets_what_is_no_longer_held(position: int, held: int, goes_on: bool) -> None:
    chain = Chain(["llama"], "us", 0, BLOCK)
    chain.add(chain.next_links([b"a", b"b"]))
    assert chain.goes_on(position) == goes_on
    assert chain.links == links(b"a", b"b")[:held]


def always(_: int, __: object) -> bool:
    return True


def test_the_longest_unused_beginning_goes_first_and_from_its_end() -> None:
    index: PrefixIndex[str] = PrefixIndex(BLOCK)
    index.limit(40)
    old, new = links(b"a", b"b"), links(b"c", b"d")
    for chain in (old, new):
        assert all(index.keep(chain[:number], chain[number], 10, lambda: "x") for number in range(2))
    assert index.find([], old, always) == ["x", "x"]
    index.limit(30)
    assert index.find([], new, always) == ["x"]
    assert index.find([], old, always) == ["x", "x"]
    index.limit(5)
    assert index.statistics() == PrefixStatistics(0, 0, hits=5, misses=1, saved_tokens=5 * BLOCK)


def test_what_does_not_suffice_is_not_found_and_can_be_replaced() -> None:
    index: PrefixIndex[str] = PrefixIndex(BLOCK)
    index.limit(100)
    chain = links(b"a", b"b")
    for number in range(2):
        assert index.keep(chain[:number], chain[number], 40, lambda: "rows")
    assert index.find([], chain, lambda number, _: number < 1) == ["rows"]
    assert index.keep(chain[:1], chain[1], 60, lambda: "rows and output")
    assert index.find(chain[:1], chain[1:], always) == ["rows and output"]
    assert index.statistics().held_bytes == 100
    assert not index.keep(chain[:1], chain[1], 61, lambda: "too much, as what comes before is needed")
    assert index.find([], chain, always) == ["rows", "rows and output"]


@dataclass
class Session:
    """A session by hand: its chain, and the contents of its blocks."""

    peer: str
    public_blocks: int
    chain: Chain
    contents: list[bytes] = field(default_factory=list)


Result = tuple[tuple[bytes, ...], str]
"""What a block comes to: all contents up to it; and who computed it, or "all" where that is public."""


class Sharing(RuleBasedStateMachine):
    """Sessions that begin alike or not, of several peers, with little room."""

    @initialize(most=st.integers(1, 12), room=st.integers(0, 200))
    def begin(self, most: int, room: int) -> None:
        self.most = most
        self.room = room
        self.index: PrefixIndex[Result] = PrefixIndex(BLOCK, max_blocks=most)
        self.index.limit(room)
        self.sessions: list[Session] = []
        self.chains: dict[bytes, bytes | None] = {}

    @rule(peer=st.sampled_from("xyz"), public_blocks=st.integers(0, 3))
    def open(self, peer: str, public_blocks: int) -> None:
        chain = Chain(["llama"], peer, public_blocks * BLOCK + BLOCK // 2, BLOCK)
        self.sessions.append(Session(peer, public_blocks, chain))

    @rule(
        data=st.data(),
        contents=st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=4),
        size=st.integers(1, 30),
    )
    def step(self, data: st.DataObject, contents: list[bytes], size: int) -> None:
        if not self.sessions:
            return
        session = data.draw(st.sampled_from(self.sessions))
        back = data.draw(st.integers(0, len(session.contents)))
        del session.contents[len(session.contents) - back :]
        assert session.chain.goes_on(len(session.contents) * BLOCK)
        before, added = list(session.chain.links), session.chain.next_links(contents)
        results = [self.result(session, [*session.contents, *contents[: n + 1]]) for n in range(len(contents))]
        found = self.index.find(before, added, always)
        assert found == results[: len(found)]
        for number in range(len(found), len(added)):
            earlier = [*before, *added[:number]]
            self.chains[added[number]] = earlier[-1] if earlier else None
            kept = self.index.keep(earlier, added[number], size, lambda number=number: results[number])  # type: ignore[misc]
            if not kept:
                break
        session.chain.add(added)
        session.contents += contents

    @rule(room=st.integers(0, 200))
    def limit(self, room: int) -> None:
        self.room = room
        self.index.limit(room)

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "index"):
            return
        kept = self.index._kept
        statistics = self.index.statistics()
        assert statistics.held_bytes == sum(size for _, size in kept.values()) <= self.room
        assert statistics.blocks == len(kept) <= self.most
        assert all(self.chains[link] is None or self.chains[link] in kept for link in kept)

    @staticmethod
    def result(session: Session, contents: list[bytes]) -> Result:
        public = len(contents) <= session.public_blocks
        return tuple(contents), "all" if public else f"{session.peer} from {session.public_blocks}"


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
