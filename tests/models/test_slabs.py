"""Slabs: they grow without copying at each step, take the memory that was foretold, and forget what no query sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmnode.models import slabs
from swarmnode.models.slabs import LEAST_TOKENS, REWIND_TOKENS, RaggedCache, TokenShape, capacity

HEADS, KEY_WIDTH, VALUE_WIDTH = 2, 8, 4
WINDOW = 40


def tokens(start: int, count: int, rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that tell their position."""
    places = torch.arange(start, start + count, dtype=torch.float32).view(1, 1, count, 1)
    return places.expand(rows, HEADS, count, KEY_WIDTH), -places.expand(rows, HEADS, count, VALUE_WIDTH)


def append(cache: RaggedCache, count: int, rows: int = 1, layer: int = 0) -> tuple[list[float], list[float]]:
    """Append the next tokens; the positions that are seen, by keys and by values."""
    position = cache.position
    slab = cache.slab(layer)
    keys, values = slab.append(*tokens(position, count, rows), position, position + count)
    cache.position += count
    assert keys.shape[:2] == values.shape[:2] == (rows, HEADS)
    seen = keys[-1, -1, :, -1].tolist(), (-values[-1, -1, :, -1]).tolist()
    assert seen[0][0] == slab.first(position)
    return seen


@given(st.integers(0, 200_000))
def test_room_is_enough_and_at_most_a_quarter_more(count: int) -> None:
    room = capacity(count)
    assert count <= room <= max(LEAST_TOKENS, count * slabs.GROWTH + LEAST_TOKENS)
    assert room % LEAST_TOKENS == 0
    assert capacity(room) == room


def test_a_step_copies_nothing_until_the_slab_is_full() -> None:
    cache = RaggedCache({0: None})
    places = set()
    for _ in range(LEAST_TOKENS):
        keys, values = cache.slab(0).append(*tokens(cache.position, 1), cache.position, cache.position + 1)
        cache.position += 1
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1
    append(cache, 1)
    assert cache.memory_bytes == capacity(LEAST_TOKENS + 1) * HEADS * (KEY_WIDTH + VALUE_WIDTH) * 4


def test_room_for_a_whole_pass_is_made_at_once() -> None:
    slab = RaggedCache({0: None}).slab(0)
    keys, _ = slab.append(*tokens(0, 1), 0, 1000)
    again, _ = slab.append(*tokens(1, 999), 1, 1000)
    assert keys.data_ptr() == again.data_ptr()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=12), st.sampled_from([None, 1, 2, WINDOW, 300]), st.booleans()
)
def test_queries_see_their_window_and_memory_is_as_foretold(steps: list[int], window: int | None, two: bool) -> None:
    cache = RaggedCache({3: window})
    rows = 2 if two else 1
    token = TokenShape(HEADS, KEY_WIDTH, VALUE_WIDTH, 4, window)
    for count in steps:
        position = cache.position
        first = 0 if window is None else max(0, position - window + 1)
        expected = list(range(first, position + count))
        assert append(cache, count, rows, layer=3) == (expected, expected)
        assert not cache.spoiled
        foretold = rows * token.cache_bytes(cache.position)
        assert cache.memory_bytes == foretold if window is None else cache.memory_bytes <= foretold
    assert cache.tokens == [token]


def test_a_window_takes_no_more_however_long_the_session_is() -> None:
    token = TokenShape(HEADS, KEY_WIDTH, VALUE_WIDTH, 2, WINDOW)
    assert token.cache_bytes(10**6) == token.cache_bytes(10**3) < 200 * token.token_bytes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=8), st.integers(0, REWIND_TOKENS), st.integers(1, 20))
def test_a_session_goes_back_by_as_much_as_is_promised(steps: list[int], back: int, more: int) -> None:
    cache = RaggedCache({0: WINDOW, 1: None})
    for count in steps:
        append(cache, count, layer=1)
        cache.position -= count
        append(cache, count)
    position = max(0, cache.position - back)
    assert cache.can_truncate(position)
    cache.truncate(position)
    assert cache.position == position
    assert append(cache, more)[0] == list(range(max(0, position - WINDOW + 1), position + more))


def test_what_left_the_window_cannot_be_gone_back_to_but_the_start_can() -> None:
    cache = RaggedCache({0: WINDOW})
    append(cache, 1000)
    assert not cache.can_truncate(1000 - REWIND_TOKENS - WINDOW)
    assert cache.can_truncate(0)
    cache.truncate(0)
    assert (cache.position, cache.memory_bytes, cache.spoiled) == (0, 0, False)
    assert append(cache, 3)[0] == [0, 1, 2]


def test_a_pass_that_broke_before_its_end_loses_only_what_it_pushed_out_of_a_window() -> None:
    cache = RaggedCache({0: WINDOW, 1: None})
    for layer in (0, 1):
        cache.slab(layer).append(*tokens(0, 50), 0, 50)
    cache.position = 50
    cache.slab(0).append(*tokens(50, 10), 50, 60)
    assert [cache.can_truncate(position) for position in (0, 49, 50)] == [True, True, True]
    cache.slab(0).append(*tokens(50, 500), 50, 550)
    assert cache.spoiled
    assert [cache.can_truncate(position) for position in (0, 49, 50)] == [True, False, False]


@pytest.mark.parametrize("position", [5, 50])
def test_going_back_beyond_the_end_changes_nothing(position: int) -> None:
    cache = RaggedCache({0: None})
    append(cache, 5)
    cache.truncate(position)
    assert cache.position == 5


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([None, 1, 5, WINDOW, 300]),
    st.sampled_from([16, 100]),
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(1, 60),
)
def test_copies_put_into_another_session_are_what_its_queries_see(
    window: int | None, block: int, count: int, found: int, more: int
) -> None:
    """A session computes some blocks in one pass; another gets the first of them and computes the rest."""
    windows = {0: window, 1: None}
    one, other = RaggedCache(windows), RaggedCache(windows)
    ends = [block * number for number in range(1, count + 1)]
    found = min(found, count)
    one.mark(ends)
    for layer in windows:
        for position in range(0, ends[-1], block):
            one.slab(layer).append(*tokens(position, block), position, ends[-1])
    one.position = ends[-1]
    for position in range(0, block * found, block):
        size_bytes = one.copy_bytes(position, position + block)
        rows = one.copy(position, position + block)
        assert size_bytes == sum(each.nbytes for states in rows.layers.values() for each in states)
        other.put(rows, ends[-1])
    assert other.position == block * found
    other_end = block * found + more
    for layer, sees in windows.items():
        keys, values = other.slab(layer).append(*tokens(block * found, more), block * found, other_end)
        first = 0 if sees is None else max(0, block * found - sees + 1)
        assert keys[-1, -1, :, -1].tolist() == (-values[-1, -1, :, -1]).tolist() == list(range(first, other_end))
    other.position = other_end
    assert other.can_truncate(max(0, other_end - REWIND_TOKENS))
    assert other.memory_bytes <= sum(
        TokenShape(HEADS, KEY_WIDTH, VALUE_WIDTH, 4, sees).cache_bytes(max(ends[-1], other_end))
        for sees in windows.values()
    )


def test_without_a_mark_a_sliding_block_gives_no_copy() -> None:
    cache = RaggedCache({0: WINDOW, 1: None})
    for layer in (0, 1):
        cache.slab(layer).append(*tokens(0, 16), 0, 16)
    assert cache.copy_bytes(0, 16) is None
