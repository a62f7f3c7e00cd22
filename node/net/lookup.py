"""A look-up: which peers are closest to a key, by asking the closest that we know for closer ones, until they agree.

Who is returned has just answered, so nobody has to be dialled again to see that it lives. Knows no libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable

import trio

from .metric import closest

__all__ = ["look_up"]

ASKED_AT_ONCE = 5
SLOW_SECONDS = 0.5
"""A peer that takes longer holds no place among those asked at once, and one more of the next is asked."""

Ask = Callable[[str], Awaitable[Collection[str] | None]]


async def look_up(key: bytes, known: Iterable[str], width: int, ask: Ask, seconds: float) -> list[str]:
    """The up to `width` peers closest to a key that answer, nearest first.

    Args:
        known: whom to start with.
        ask: asks a peer for those closest to the key that it knows; None when it does not answer. It bounds its time.
        seconds: after so long, those who have answered must do.
    """
    seen = set(known)
    asked: set[str] = set()
    answered: set[str] = set()
    failed: set[str] = set()
    slow: set[str] = set()
    changed = trio.Event()

    async def question(peer: str) -> None:
        told = await ask(peer)
        if told is None:
            failed.add(peer)
        else:
            answered.add(peer)
            seen.update(told)
        slow.discard(peer)
        changed.set()

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            while not answered.issuperset(closest(key, seen - failed, width)):
                changed = trio.Event()
                free = ASKED_AT_ONCE - len(asked - answered - failed - slow)
                sight = closest(key, seen - failed - slow, width)
                for peer in [each for each in sight if each not in asked][:free]:
                    asked.add(peer)
                    nursery.start_soon(question, peer)
                with trio.move_on_after(SLOW_SECONDS) as patience:
                    await changed.wait()
                if patience.cancelled_caught:
                    slow |= asked - answered - failed
            nursery.cancel_scope.cancel()
    return closest(key, answered, width)
