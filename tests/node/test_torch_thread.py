"""The torch thread: order, cancelling, errors, closing. Real threads, no torch."""

from __future__ import annotations

import threading
from functools import partial
from typing import NoReturn

import pytest
import trio
import trio.testing

from swarmnode.node.torch_thread import TorchThread, open_torch_thread


async def hold(torch_thread: TorchThread, nursery: trio.Nursery, gate: threading.Event) -> None:
    """Have the thread run a call that ends with `gate`; returns once it has begun."""
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        gate.wait()

    nursery.start_soon(torch_thread.run, wait)
    await trio.to_thread.run_sync(begun.wait)


async def test_runs_on_one_thread_that_is_not_the_loops() -> None:
    async with open_torch_thread() as torch_thread:
        names = {await torch_thread.run(threading.get_ident) for _ in range(5)}
    assert len(names) == 1
    assert threading.get_ident() not in names


async def test_returns_results_and_raises_what_the_call_raises() -> None:
    def fail() -> NoReturn:
        raise KeyError("gone")

    async with open_torch_thread() as torch_thread:
        assert await torch_thread.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(KeyError, match="gone"):
            await torch_thread.run(fail)
        assert await torch_thread.run(abs, -1) == 1


async def test_runs_calls_in_the_order_they_came() -> None:
    gate = threading.Event()
    seen: list[int] = []

    async with open_torch_thread() as torch_thread, trio.open_nursery() as nursery:
        await hold(torch_thread, nursery, gate)
        for number in range(20):
            nursery.start_soon(torch_thread.run, seen.append, number)
            await trio.testing.wait_all_tasks_blocked()
        assert torch_thread.waiting == 20
        gate.set()
    assert seen == list(range(20))


async def test_a_cancelled_call_that_has_not_begun_never_runs() -> None:
    gate = threading.Event()
    seen: list[str] = []

    async with open_torch_thread(max_jobs=2) as torch_thread, trio.open_nursery() as nursery:
        await hold(torch_thread, nursery, gate)
        with trio.CancelScope() as scope:
            scope.cancel()
            await torch_thread.run(seen.append, "cancelled at once")
        with trio.move_on_after(0.01) as scope:
            await torch_thread.run(seen.append, "cancelled while waiting")
        assert scope.cancelled_caught
        assert torch_thread.waiting == 0
        gate.set()
        # The room of the dropped calls came back: two more fit.
        nursery.start_soon(torch_thread.run, seen.append, "a")
        nursery.start_soon(torch_thread.run, seen.append, "b")
    assert sorted(seen) == ["a", "b"]


async def test_a_cancelled_call_that_has_begun_ends_and_its_result_is_thrown_away() -> None:
    begun, gate = threading.Event(), threading.Event()
    seen: list[str] = []

    def slow() -> None:
        begun.set()
        gate.wait()
        seen.append("slow")

    async with open_torch_thread() as torch_thread:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(torch_thread.run, slow)
            await trio.to_thread.run_sync(begun.wait)
            nursery.cancel_scope.cancel()
        gate.set()
        assert await torch_thread.run(lambda: list(seen)) == ["slow"]


async def test_the_queue_is_bounded() -> None:
    gate = threading.Event()
    async with open_torch_thread(max_jobs=3) as torch_thread, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(partial(torch_thread.run, gate.wait))
        await trio.testing.wait_all_tasks_blocked()
        assert torch_thread.waiting <= 3
        gate.set()


async def test_a_closed_thread_says_so() -> None:
    async with open_torch_thread() as torch_thread:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await torch_thread.run(abs, 1)


async def test_urgent_calls_run_in_the_midst_of_one_that_gives_way() -> None:
    seen: list[str] = []
    gate = threading.Event()

    async with open_torch_thread() as torch_thread, trio.open_nursery() as nursery:

        def give_way_twice() -> None:
            seen.append("begins")
            gave.append(torch_thread.give_way())
            seen.append("goes on")
            gave.append(torch_thread.give_way())

        def fail() -> None:
            raise KeyError("gone")

        async def failing() -> None:
            with pytest.raises(KeyError, match="gone"):
                await torch_thread.run(fail, urgent=True)
            seen.append("failed")

        gave: list[bool] = []
        await hold(torch_thread, nursery, gate)
        nursery.start_soon(torch_thread.run, give_way_twice)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            nursery.start_soon(torch_thread.run, seen.append, f"ordinary {number}")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(partial(torch_thread.run, seen.append, f"urgent {number}", urgent=True))
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(failing)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert gave == [True, False]
    seen.remove("failed")
    urgent, ordinary = ([f"{kind} {number}" for number in range(3)] for kind in ("urgent", "ordinary"))
    assert seen == ["begins", *urgent, "goes on", *ordinary]
