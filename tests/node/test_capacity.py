"""Which windows of blocks fit into how much memory, and what is left for the cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.models.footprint import Footprint
from swarmnode.node.capacity import (
    AT_A_TIME,
    LEAST_CACHE_TOKENS,
    Room,
    Spread,
    Task,
    cache_that_fits,
    need_of,
    spread,
    windows_that_fit,
)
from swarmnode.node.defaults import DEFAULT_CACHE_TOKENS, MAX_SESSIONS
from swarmnode.node.sizes import parse_size, shown_size

MIB = 1 << 20


def task(
    *weights: int,
    token: int = 4096,
    session: int = 0,
    cache_tokens: int | None = None,
    cache_bytes: int | None = None,
    reach: float = 0,
) -> Task:
    count = len(weights)
    footprint = Footprint(weights, weights, (token,) * count, (session,) * count, step=50 * MIB, reach=reach)
    return Task(footprint, 1024, MIB, 8192, cache_tokens, cache_bytes)


tasks = st.builds(
    lambda weights, token, session, cache: task(*weights, token=token, session=session, cache_tokens=cache),
    st.lists(st.integers(MIB, 900 * MIB), min_size=1, max_size=12),
    st.integers(0, 65536),
    st.integers(0, 4 * MIB),
    st.none() | st.integers(1, 100_000),
)
limits = st.integers(0, 8192 * MIB)


@given(tasks, limits)
def test_every_window_fits_and_none_could_be_longer(given_task: Task, limit: int) -> None:
    tokens = LEAST_CACHE_TOKENS if given_task.cache_tokens is None else given_task.cache_tokens
    total = given_task.footprint.num_blocks
    windows = windows_that_fit(given_task, Room((limit,)))
    fitting = {
        (start, end)
        for start in range(total)
        for end in range(start + 1, total + 1)
        if need_of(given_task, (start, end), tokens).total <= limit
    }
    longest = {
        (start, end)
        for start, end in fitting
        if not {(start - 1, end), (start, end + 1)} & fitting  # a window within one that fits, fits
    }
    assert windows == sorted(longest)
    for count in (1, 3):
        wanted = [each for each in sorted(fitting) if each[1] - each[0] == count]
        assert windows_that_fit(given_task, Room((limit,)), count) == wanted


@given(tasks, limits)
def test_the_cache_takes_what_is_left(given_task: Task, limit: int) -> None:
    for start, end in windows_that_fit(given_task, Room((limit,))):
        tokens = cache_that_fits(given_task, (start, end), Room((limit,)))
        assert need_of(given_task, (start, end), tokens).total <= limit
        if given_task.cache_tokens is not None:
            assert tokens == given_task.cache_tokens
            continue
        assert tokens >= LEAST_CACHE_TOKENS
        if tokens < DEFAULT_CACHE_TOKENS or any(given_task.footprint.token[start:end]):
            most = max(DEFAULT_CACHE_TOKENS, MAX_SESSIONS * given_task.context_tokens)
            assert tokens == most or need_of(given_task, (start, end), tokens + 1).total > limit
        # Of what is beyond the default, others may be left a share.
        half = cache_that_fits(given_task, (start, end), Room((limit,), spare_share=0.5))
        assert half == min(tokens, DEFAULT_CACHE_TOKENS + max(0, tokens - DEFAULT_CACHE_TOKENS) // 2)


@given(
    st.lists(st.integers(0, 64 * MIB), min_size=1, max_size=8),
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.floats(0.0, 1e4)),
    st.integers(1, 4096 * MIB),
    limits,
)
def test_a_cache_asked_for_in_bytes_takes_these_and_no_more(
    weights: list[int], takes: tuple[int, int, float], asked: int, limit: int
) -> None:
    token, session, reach = takes
    given_task = task(*weights, token=token, session=session, cache_bytes=asked, reach=reach)
    for start, end in windows_that_fit(given_task, Room((limit,))):
        tokens = cache_that_fits(given_task, (start, end), Room((limit,)))
        need = need_of(given_task, (start, end), tokens)
        assert need.total <= limit
        assert need.cache <= asked or tokens == 1
        more = need_of(given_task, (start, end), tokens + 1).cache
        assert more > asked or tokens == MAX_SESSIONS * given_task.context_tokens


@given(tasks, st.lists(limits, min_size=1, max_size=4), st.integers(0, 8192 * MIB), st.booleans())
def test_blocks_go_where_there_is_room_in_their_order(
    given_task: Task, rooms: list[int], host: int, offload: bool
) -> None:
    total, tokens = given_task.footprint.num_blocks, LEAST_CACHE_TOKENS
    weights = given_task.footprint.weights
    room = Room(tuple(rooms), host, offload)
    found = spread(given_task, (0, total), tokens, room)
    if found is None:
        return
    assert len(found.devices) == total
    assert list(found.devices) == sorted(found.devices)
    assert sum(weights) <= host
    assert offload or not found.offloaded
    for device in set(found.devices):
        own = [block for block, on in enumerate(found.devices) if on == device]
        away = sorted((weights[block] for block in own if block in found.offloaded), reverse=True)
        need = need_of(given_task, (own[0], own[-1] + 1), tokens)
        assert need.total - sum(away) + sum(away[:AT_A_TIME]) <= rooms[device]


@given(tasks, st.lists(limits, min_size=2, max_size=3))
def test_one_device_after_the_other_is_as_good_as_any_split(given_task: Task, rooms: list[int]) -> None:
    total, tokens = given_task.footprint.num_blocks, LEAST_CACHE_TOKENS

    def possible(first: int, left: list[int]) -> bool:
        if first == total:
            return True
        return bool(left) and any(
            (stop == first or need_of(given_task, (first, stop), tokens).total <= left[0]) and possible(stop, left[1:])
            for stop in range(first, total + 1)
        )

    found = spread(given_task, (0, total), tokens, Room(tuple(rooms)))
    assert (found is not None) == possible(0, rooms)


def test_what_is_offloaded_lies_apart_and_is_no_more_than_must_be() -> None:
    given_task = task(*[100 * MIB] * 8)
    limit = need_of(given_task, (0, 8), LEAST_CACHE_TOKENS).total - 200 * MIB
    room = Room((limit,), offload=True)
    found = spread(given_task, (0, 8), LEAST_CACHE_TOKENS, room)
    assert found is not None
    assert found.devices == (0,) * 8
    assert len(found.offloaded) == 4  # two of the four are there at any time
    assert all({block, block + 1} - found.offloaded for block in range(7))
    assert spread(given_task, (0, 8), LEAST_CACHE_TOKENS, Room((limit,))) is None
    plenty = Room((8192 * MIB,), offload=True)
    assert spread(given_task, (0, 8), LEAST_CACHE_TOKENS, plenty) == Spread((0,) * 8)


def test_weights_may_have_to_pass_through_less_memory_than_they_end_in() -> None:
    given_task = task(*[100 * MIB] * 6)
    assert windows_that_fit(given_task, Room((8192 * MIB,))) == [(0, 6)]
    assert windows_that_fit(given_task, Room((8192 * MIB,), 250 * MIB)) == [(start, start + 2) for start in range(5)]


def test_all_that_is_needed_is_counted() -> None:
    plain = need_of(task(100 * MIB, 300 * MIB, cache_tokens=1000), (0, 2), 1000)
    assert plain.weights == 400 * MIB
    assert plain.cache == 2 * 1000 * 4096
    assert plain.total == plain.weights + plain.cache + plain.work
    # A load converts a block at a time, before there is any cache.
    assert plain.work > 300 * MIB
    assert need_of(task(100 * MIB, 300 * MIB), (0, 2), 100_000).work < plain.work
    # States that do not grow count for as many sessions as there will be; else they are part of the cache's tokens.
    assert need_of(task(MIB, token=0, session=10), (0, 1), 5120).cache == 100
    assert need_of(task(MIB, token=0, session=10), (0, 1), 1 << 30).cache == 2560
    assert need_of(task(MIB, token=7, session=10), (0, 1), 5120).cache == 7 * 5120
    # Steps behind many tokens take more, up to the model's context.
    far = need_of(task(MIB, reach=1e6), (0, 1), 8192).work
    assert need_of(task(MIB, reach=1e6), (0, 1), 4096).work < far == need_of(task(MIB, reach=1e6), (0, 1), 9000).work


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 << 30),
        ("6 gib", 6 << 30),
        ("1.5GB", 1_500_000_000),
        ("512MiB", 512 << 20),
        ("10b", 10),
        ("2kB", 2000),
    ],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "6", "6G", "GiB", "-1GiB", "1e9GB", "6GiBs", "6.GiB", "١GiB"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_a_size_for_people() -> None:
    assert [shown_size(size) for size in (6 << 30, 1_500_000_000, 512 << 20, 0)] == [
        "6.0 GiB",
        "1.4 GiB",
        "512 MiB",
        "0 MiB",
    ]
