"""Admission: the budget holds whatever happens, and refusals are honest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmnode.node.server.admission import Admission
from swarmnode.node.server.busy import Busy


def test_promises_until_the_cache_is_full_and_says_what_is_left() -> None:
    admission = Admission(1000)
    assert admission.admit(b"a", "peer", 600, now=0.0) is None
    busy = admission.admit(b"b", "peer", 500, now=1.0)
    assert isinstance(busy, Busy)
    assert busy.reason == "The cache has room for 400 of 1000 tokens; 500 are wanted."
    assert 1.0 <= busy.retry_after_seconds <= 60.0
    admission.release(b"a", now=2.0)
    assert admission.admit(b"b", "peer", 500, now=2.0) is None


def test_grows_in_runs_while_there_is_room() -> None:
    admission = Admission(1000)
    assert admission.admit(b"a", "peer", 100, now=0.0) is None
    assert admission.grow(b"a", 100, now=0.0) is None
    assert admission.tokens_left == 900
    assert admission.grow(b"a", 101, now=0.0) is None
    assert admission.tokens_left == 1000 - 100 - 256
    assert admission.grow(b"a", 1000, now=0.0) is None
    assert admission.tokens_left == 0
    assert isinstance(admission.grow(b"a", 1001, now=0.0), Busy)


def test_one_peer_cannot_take_all_sessions() -> None:
    admission = Admission(1000, max_sessions=10, max_sessions_per_peer=2)
    assert admission.admit(b"a", "greedy", 1, now=0.0) is None
    assert admission.admit(b"b", "greedy", 1, now=0.0) is None
    busy = admission.admit(b"c", "greedy", 1, now=0.0)
    assert busy is not None
    assert busy.reason == "You already have 2 sessions here, the most for one peer."
    assert admission.admit(b"d", "other", 1, now=0.0) is None


def test_what_never_fits_is_not_promised_for_soon() -> None:
    busy = Admission(1000).admit(b"a", "peer", 2000, now=0.0)
    assert busy is not None
    assert busy.retry_after_seconds == 60.0


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["admit", "grow", "release"]), st.integers(0, 700))),
    st.integers(1, 3),
)
def test_the_budget_always_holds(actions: list[tuple[int, str, int]], per_peer: int) -> None:
    admission = Admission(1000, max_sessions=4, max_sessions_per_peer=per_peer)
    live: dict[bytes, int] = {}
    for now, (number, action, tokens) in enumerate(actions):
        session = bytes([number])
        if action == "admit" and session not in live:
            if admission.admit(session, f"peer{number % 2}", tokens, now) is None:
                live[session] = tokens
        elif action == "grow" and session in live:
            if admission.grow(session, tokens, now) is None:
                live[session] = max(live[session], tokens)
        elif action == "release" and session in live:
            admission.release(session, now)
            del live[session]
        assert 0 <= admission.tokens_left <= 1000 - sum(live.values())
        assert admission.sessions == len(live) <= 4
    for session in live:
        admission.release(session, 1000.0)
    assert admission.tokens_left == 1000
