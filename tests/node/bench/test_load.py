"""The simulated load: the same every time, and fair to what it compares."""

from __future__ import annotations

import pytest

from swarmnode.node.bench.load import Chat, Cost, Fifo, Scheduled, Waits, simulate
from swarmnode.node.bench.schedule import COSTS, POLICIES

COST = Cost(blocks=10, base_seconds=0.1, token_seconds=0.001, segment_seconds=0.0, read_seconds=0.0, pair_seconds=0.0)
TALKER = Chat(8, 0.0, 8, 50, 1.0)
READER = Chat(1000, 0.0, 1000, 1, 1.0)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_same_seed_gives_the_same_waits(policy: type[Fifo]) -> None:
    cost = COSTS["bfloat16"]
    chats = [Chat(100, 1.0, 3000, 20, 2.0)] * 4
    first, again, other = (simulate(policy(), cost, chats, seconds=30.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert 0.0 < first.busy_seconds <= 30.0
    assert min(first.first_token) >= cost.base_seconds


def test_a_lone_client_waits_for_its_own_passes_only() -> None:
    waits = simulate(Fifo(), COST, [TALKER], seconds=100.0, seed=1)
    assert waits.first_token == pytest.approx([0.108] * len(waits.first_token))
    assert all(0.121 <= each <= 0.161 + 1e-9 for each in waits.between_tokens)  # a pass and the way to the client
    assert waits.beside_prefill == []


def test_a_prompt_is_stopped_between_blocks_for_who_decodes() -> None:
    def longest(waits: Waits) -> float:
        return max(waits.beside_prefill)

    whole, stopped, cut = (
        simulate(policy, COST, [TALKER, READER], seconds=100.0, seed=1)
        for policy in (
            Scheduled(512),
            Scheduled(512, interrupted=1.0),
            Scheduled(200, segment_tokens=200),
        )
    )
    assert longest(whole) > 1.1  # the prompt's own pass
    assert longest(stopped) < 0.06 + 2 * 0.101 + 0.11 + 1e-9  # the way, two passes of its own length, a block
    assert longest(stopped) < longest(cut) < longest(whole)
