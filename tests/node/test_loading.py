"""Loads in a thread: results, errors and progress come through; a cancelled one ends at its next word."""

from __future__ import annotations

import threading

import pytest
import trio

from swarmnode.errors import CheckpointBroken
from swarmnode.models.progress import Progress, ProgressEvent
from swarmnode.node.loading import load

EVENT = ProgressEvent("load", "blocks 0:2", 1, 2, "blocks")


async def test_result_and_progress_come_through() -> None:
    told: list[ProgressEvent] = []

    def work(tell: Progress) -> str:
        tell(EVENT)
        return "done"

    assert await load(work, told.append) == "done"
    assert await load(work, None) == "done"
    assert told == [EVENT]


async def test_an_error_comes_through() -> None:
    def work(tell: Progress) -> None:
        raise CheckpointBroken("model.safetensors is cut short")

    with pytest.raises(CheckpointBroken, match="cut short"):
        await load(work, None)


async def test_a_cancelled_load_returns_at_once_and_ends_at_its_next_word() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    beyond: list[str] = []

    def work(tell: Progress) -> None:
        try:
            begun.set()
            go_on.wait()
            tell(EVENT)
            beyond.append("went on")
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, work, None)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
    go_on.set()
    await trio.to_thread.run_sync(ended.wait)
    assert beyond == []
