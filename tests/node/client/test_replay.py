"""Steps as a session sent them, packed into few messages: nothing is parted that need not be, nothing is lost."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from swarmnode.node.client.replay import cut, forget, packed

lengths = st.lists(st.integers(1, 30), max_size=20)


@given(st.integers(0, 500), st.integers(1, 60))
def test_tokens_are_cut_into_steps_as_long_as_may_be(tokens: int, most: int) -> None:
    steps = cut(tokens, most)
    assert sum(steps) == tokens
    assert all(step == most for step in steps[:-1])
    assert all(1 <= step <= most for step in steps)


@given(lengths, st.data())
def test_what_is_forgotten_leaves_the_beginning_as_it_went(steps: list[int], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, sum(steps)))
    kept = list(steps)
    forget(kept, position)
    assert sum(kept) == position
    assert all(kept)
    whole = sum(end <= position for end in accumulate(steps))
    assert kept[:whole] == steps[:whole]
    assert len(kept) <= whole + 1


@given(lengths, st.integers(1, 40), st.integers(1, 8))
def test_messages_carry_the_steps_as_they_were(steps: list[int], most_tokens: int, most_segments: int) -> None:
    messages = packed(steps, most_tokens, most_segments)
    assert all(0 < sum(message) <= most_tokens for message in messages)
    assert all(len(message) <= most_segments for message in messages)
    assert [step for message in messages for step in message] == [
        part for step in steps for part in cut(step, most_tokens)
    ]
    for message, following in pairwise(messages):  # there was no room for one more
        assert len(message) == most_segments or sum(message) + following[0] > most_tokens
