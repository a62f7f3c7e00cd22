"""Decisions about records, without a network: whom to give them to, what to believe, when to stop asking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.node.discovery.announcing import (
    HANDING_PEERS,
    LOOKUP_AGAIN_SECONDS,
    LOOKUP_LASTS_SECONDS,
    MAX_PACED_PEERS,
    PACE_BURST,
    PACE_PER_SECOND,
    ClosestPeers,
    HandOn,
    Pace,
    next_sequence,
)
from swarmnode.node.discovery.finding import Merge, newest_of
from swarmnode.node.identity import Identity, identity_from_seed
from swarmnode.node.net.network import PeerAddrs
from swarmnode.protocols.directory import Verdict
from swarmnode.protocols.ids import RECORDS, ModelId
from swarmnode.protocols.keys import model_key
from swarmnode.protocols.limits import MAX_SEQUENCE
from swarmnode.protocols.records import ServerRecord, sign_record

KEY = model_key("org/model")
PEERS = [PeerAddrs(name) for name in "abcdefgh"]


def record(identity: Identity, sequence: int = 1, name: str = "org/model") -> ServerRecord:
    return ServerRecord(
        identity.peer, sequence, 45.0, ModelId(name, "r", bytes(32)), 30, 0, 10, "float32", "none", "online",
        100, 1.0, 1.0, ("/ip4/127.0.0.1/tcp/1",), (RECORDS,),
    )  # fmt: skip


def signed(number: int, sequence: int = 1, name: str = "org/model") -> bytes:
    identity = identity_from_seed(bytes([number]) * 32)
    return sign_record(record(identity, sequence, name), identity.sign)


def test_a_lookup_is_believed_for_a_minute_or_until_a_peer_fails() -> None:
    closest = ClosestPeers()
    assert closest.get(KEY, 0.0) is None
    closest.put(KEY, PEERS, 10.0)
    assert closest.get(KEY, 10.0 + LOOKUP_LASTS_SECONDS - 1) == tuple(PEERS)
    assert closest.get(KEY, 10.0 + LOOKUP_LASTS_SECONDS) is None
    closest.put(KEY, PEERS, 100.0)
    closest.failed(KEY)
    assert closest.get(KEY, 100.0 + LOOKUP_AGAIN_SECONDS - 1) == tuple(PEERS)
    assert closest.get(KEY, 100.0 + LOOKUP_AGAIN_SECONDS) is None


def test_records_go_once_to_each_newcomer_from_the_nearest_holders_only() -> None:
    near, far = HandOn("a"), HandOn("h")
    for hand_on in (near, far):
        for peer in PEERS:
            hand_on.given(KEY, peer.peer, PEERS)
        assert hand_on.due(KEY, PEERS) == []
    newcomer = PeerAddrs("new")
    with_newcomer = [newcomer, *PEERS[:-1]]
    assert near.due(KEY, with_newcomer) == [newcomer]
    assert HandOn("h").due(KEY, PEERS) == PEERS[:-1]
    assert len(PEERS) > HANDING_PEERS
    assert far.due(KEY, [newcomer, *PEERS]) == []
    near.given(KEY, "new", with_newcomer)
    assert near.due(KEY, with_newcomer) == []
    near.forget_all_but([])
    assert near.due(KEY, with_newcomer) == with_newcomer[:1] + PEERS[1:-1]


def test_a_peer_may_burst_and_then_trickle() -> None:
    pace = Pace()
    assert sum(pace.allows("greedy", 0.0) for _ in range(1000)) == PACE_BURST
    assert pace.allows("other", 0.0)
    assert sum(pace.allows("greedy", 1.0) for _ in range(1000)) == PACE_PER_SECOND
    for number in range(2 * MAX_PACED_PEERS):
        pace.allows(str(number), 2.0)
    assert len(pace._left) == MAX_PACED_PEERS


@pytest.mark.parametrize(
    ("newest", "stored", "expected"),
    [(None, True, None), (5, False, None), (10, False, 11), (90, False, 91), (90, True, None),
     (MAX_SEQUENCE, False, None), (MAX_SEQUENCE // 2, False, None)],
)  # fmt: skip
def test_an_owner_jumps_past_what_stands_in_its_way(newest: int | None, stored: bool, expected: int | None) -> None:
    assert next_sequence(10, [Verdict(True), Verdict(stored, newest_sequence=newest)]) == expected


@given(st.lists(st.tuples(st.booleans(), st.none() | st.integers(0, MAX_SEQUENCE))))
def test_no_verdicts_can_silence_an_owner(said: list[tuple[bool, int | None]]) -> None:
    following = next_sequence(10, [Verdict(stored, newest_sequence=newest) for stored, newest in said])
    assert following is None or 10 < following <= MAX_SEQUENCE // 2


def enough_after(merge: Merge, *records: bytes, crowded: bool = False) -> bool:
    merge.add([(data, 0.0) for data in records], crowded=crowded)
    return merge.enough


def test_asking_goes_on_until_enough_peers_agree_on_something() -> None:
    merge = Merge(KEY)
    assert not any(enough_after(merge) for _ in range(5))
    assert not enough_after(merge, signed(1))
    assert enough_after(merge, signed(1), crowded=True)
    assert merge.crowded
    assert not enough_after(merge, signed(1), signed(2))
    assert enough_after(merge, signed(2), signed(1))
    assert len(merge.records) == 2


def test_forged_foreign_and_expired_records_do_not_count() -> None:
    merge = Merge(KEY)
    good = signed(1)
    forged = bytes([good[0] ^ 1]) + good[1:]
    merge.add([(forged, 0.0), (signed(2, name="another"), 0.0), (signed(3), 45.0), (b"rubbish", 0.0)], crowded=False)
    assert merge.records == []
    merge.add([(good, 44.9)], crowded=False)
    assert len(merge.records) == 1


def test_the_newest_record_of_each_server_is_the_one() -> None:
    identity = identity_from_seed(bytes(32))
    old, new = record(identity, 3), record(identity, 7)
    assert newest_of([new, old]) == newest_of([old, new]) == [new]
