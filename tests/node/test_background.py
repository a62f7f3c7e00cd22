"""A background nursery lets the block's own exceptions out bare."""

from __future__ import annotations

import pytest
import trio

from swarmnode.errors import NoPeers
from swarmnode.node.background import open_background, race, together


async def test_the_blocks_exception_comes_bare_and_the_tasks_are_gone() -> None:
    ended = False

    async def forever() -> None:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            ended = True

    async def block() -> None:
        async with open_background() as nursery:
            nursery.start_soon(forever)
            await trio.lowlevel.checkpoint()
            raise NoPeers("nobody")

    with pytest.raises(NoPeers):
        await block()
    assert ended


async def test_cancelling_from_outside_is_seen_outside() -> None:
    with trio.CancelScope() as scope:
        async with open_background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.sleep(60)
    assert scope.cancelled_caught


async def test_a_task_that_crashes_is_a_group() -> None:
    async def crash() -> None:
        raise ZeroDivisionError

    async def block() -> None:
        async with open_background() as nursery:
            nursery.start_soon(crash)
            await trio.sleep_forever()

    with pytest.RaisesGroup(ZeroDivisionError):
        await block()


async def test_a_race_ends_with_its_first_task() -> None:
    async def soon() -> None:
        await trio.lowlevel.checkpoint()

    with trio.fail_after(1):
        await race(soon, trio.sleep_forever)


async def test_a_race_raises_what_its_first_task_raised() -> None:
    async def fail() -> None:
        raise NoPeers("nobody")

    async def fail_on_the_way_out() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ZeroDivisionError

    with pytest.raises(NoPeers):
        await race(fail_on_the_way_out, fail)


async def test_a_race_can_be_cancelled() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await race(trio.sleep_forever, trio.sleep_forever)
    assert scope.cancelled_caught


async def test_together_waits_for_all() -> None:
    seen: list[int] = []

    async def note(number: int) -> None:
        for _ in range(number):
            await trio.lowlevel.checkpoint()
        seen.append(number)

    await together()
    await together(lambda: note(3), lambda: note(0), lambda: note(1))
    assert seen == [0, 1, 3]


async def test_together_raises_the_first_error_and_cancels_the_rest() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise NoPeers("nobody")

    async def at_once() -> None:
        pass

    with pytest.raises(NoPeers):
        await together(at_once, fail, trio.sleep_forever)
