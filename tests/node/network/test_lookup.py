"""Look-ups in a made-up swarm: who is found, how many are asked, what the dead and the silent cost."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from swarmnode.node.identity import create_identity
from swarmnode.node.net.lookup import ASKED_AT_ONCE, look_up
from swarmnode.node.net.metric import closest

KEY = bytes(range(32))
TOLD = 20
WIDTH = 10


class Peers:
    """A swarm whose peers know a few others each, and those nearest to the key each other."""

    def __init__(self, count: int) -> None:
        rng = random.Random(count)
        self.all = [create_identity().peer for _ in range(count)]
        self.known = {peer: set(rng.sample(self.all, min(15, count))) for peer in self.all}
        for peer in closest(KEY, self.all, 2 * TOLD):
            self.known[peer] |= set(closest(KEY, self.all, 2 * TOLD))
        self.dead: set[str] = set()
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.under_way = 0
        self.most_under_way = 0

    async def ask(self, peer: str) -> list[str] | None:
        self.asked.append(peer)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await trio.sleep(2.0 if peer in self.silent else 0.01)
        self.under_way -= 1
        return None if peer in self.silent | self.dead else closest(KEY, self.known[peer], TOLD)

    def living(self, count: int) -> list[str]:
        return closest(KEY, set(self.all) - self.dead - self.silent, count)


async def test_the_closest_are_found_and_nobody_is_asked_twice(autojump_clock: MockClock) -> None:
    peers = Peers(200)
    assert await look_up(KEY, peers.all[:3], WIDTH, peers.ask, 10.0) == peers.living(WIDTH)
    assert len(peers.asked) == len(set(peers.asked)) < 4 * WIDTH
    assert peers.most_under_way <= ASKED_AT_ONCE


async def test_who_knows_the_closest_already_asks_only_them(autojump_clock: MockClock) -> None:
    peers = Peers(200)
    assert await look_up(KEY, peers.all, WIDTH, peers.ask, 10.0) == peers.living(WIDTH)
    assert sorted(peers.asked) == sorted(peers.living(WIDTH))


@pytest.mark.parametrize("how", ["dead", "silent"])
async def test_those_that_do_not_answer_are_left_out(autojump_clock: MockClock, how: str) -> None:
    peers = Peers(100)
    setattr(peers, how, set(peers.living(2 * WIDTH)[::2]))
    start = trio.current_time()
    assert await look_up(KEY, peers.all[:3] + peers.living(1), WIDTH, peers.ask, 10.0) == peers.living(WIDTH)
    assert trio.current_time() - start < 5  # the silent are waited for side by side


async def test_what_has_answered_in_time_must_do(autojump_clock: MockClock) -> None:
    peers = Peers(30)
    nearest, next_one = peers.living(2)
    peers.silent = {nearest}
    start = trio.current_time()
    found = await look_up(KEY, peers.all, WIDTH, peers.ask, 1.0)
    assert trio.current_time() - start == pytest.approx(1.0)
    assert nearest not in found
    assert found[0] == next_one


async def test_knowing_nobody_nobody_is_asked(autojump_clock: MockClock) -> None:
    peers = Peers(1)
    assert await look_up(KEY, (), WIDTH, peers.ask, 10.0) == []
    peers.dead = set(peers.all)
    assert await look_up(KEY, peers.all, WIDTH, peers.ask, 10.0) == []
