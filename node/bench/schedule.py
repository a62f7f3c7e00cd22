"""Policies of a server side by side in a simulation, and how many sessions a cache holds under which rule.

All is counted, nothing runs, so the same seed gives the same figures. What a pass takes was measured (`--measure`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Final

from swarmnode.models.bundled import BUNDLED_NAME
from swarmnode.node.server.cache_budget import CacheBudget
from swarmnode.node.server.schedule import Activity, Priority

from .load import WARM_UP_SHARE, Chat, Cost, Fifo, Policy, Scheduled, Waits, simulate

__all__ = ["run"]

COSTS: Final[Mapping[str, Cost]] = {
    "bfloat16": Cost(
        blocks=30,
        base_seconds=0.0404,
        token_seconds=0.000722,
        segment_seconds=0.00049,
        read_seconds=2.63e-5,
        pair_seconds=9.51e-7,
    ),
}
"""Of SmolLM2-135M on one core of an AMD EPYC with AVX-512, as `--measure` found."""

SCENES: Final[Mapping[str, Sequence[Chat]]] = {
    "chat": [Chat(120, 1.0, 3000, 60, 8.0)] * 24,
    "documents": [Chat(40, 0.5, 200, 120, 2.0)] * 8 + [Chat(4000, 0.0, 4000, 16, 20.0)],
    "crowd": [Chat(120, 1.0, 3000, 60, 2.0)] * 64,
}
"""Two dozen clients that chat; eight, and one with long documents; and more than the server can bear."""

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = {
    "one at a time": Fifo,
    "as they came": partial(Fifo, 2048),
    "decode first": partial(Scheduled, 512),
    **{f"cut to {tokens}": partial(Scheduled, tokens, segment_tokens=tokens) for tokens in (128, 256, 512, 1024)},
    **{f"between blocks, {times:g}": partial(Scheduled, 512, interrupted=times) for times in (1.0, 2.0, 4.0)},
}
"""One at a time is how servers ran before there was a schedule. All but the first two put decode first. *Cut* makes
prefill into segments, so attention sees other shapes. *Between blocks* leaves it whole and stops it for decode, when it
has run so many times as long as the last decode pass."""


SESSION_TOKENS: Final = 500
TOKEN_BYTES: Final = 46_080
"""Of SmolLM2-135M's cache in float32."""
RESERVED_TOKENS: Final = 2048
"""What a session is promised that names its full length, as in Petals."""
PAGE_TOKENS: Final = 16


def run(argv: Sequence[str]) -> dict[str, object]:
    """Simulate and return the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench schedule", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0, help="simulated time of each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--measure", metavar="DTYPE", help="measure what a pass takes here, and simulate with that")
    parser.add_argument("--model", default=BUNDLED_NAME, help="to be measured")
    asked = parser.parse_args(argv)
    figures: dict[str, object] = {
        "seed": asked.seed,
        "seconds": asked.seconds,
        f"sessions_of_{SESSION_TOKENS}_tokens_per_gib": _sessions_per_gib(),
    }
    costs = COSTS
    if asked.measure:
        from .pass_cost import measure

        cost, passes = measure(asked.model, asked.measure)
        costs = {asked.measure: cost}
        figures["passes"] = passes
    for dtype, cost in costs.items():
        figures[dtype] = {
            "cost": asdict(cost),
            **{scene: _scene(cost, chats, asked.seconds, asked.seed) for scene, chats in SCENES.items()},
        }
    return figures


def _sessions_per_gib() -> dict[str, int]:
    """How many active sessions a budget takes, by what is allocated for each."""
    from swarmnode.models.slabs import capacity

    rules: dict[str, Callable[[int], int]] = {
        "slabs": capacity,
        f"pages of {PAGE_TOKENS}": lambda tokens: -(-tokens // PAGE_TOKENS) * PAGE_TOKENS,
        f"{RESERVED_TOKENS} reserved": lambda _: RESERVED_TOKENS,
    }
    return {name: _sessions_held(rule) for name, rule in rules.items()}


def _sessions_held(allocated: Callable[[int], int]) -> int:
    def cost(tokens: int) -> int:
        return TOKEN_BYTES * allocated(tokens)

    budget = CacheBudget(1 << 30, lambda _: Activity.RUNNING, max_sessions=1 << 20)
    held = 0
    while True:
        session, peer = b"%d" % held, f"client{held}"
        refused = budget.open(session, peer, priority=Priority.OTHERS, wanted_tokens=SESSION_TOKENS, cost=cost, now=0.0)
        if refused is not None or not budget.reserve(session, SESSION_TOKENS, 0.0).granted:
            return held
        held += 1


def _scene(cost: Cost, chats: Sequence[Chat], seconds: float, seed: int) -> dict[str, object]:
    return {
        name: _shown(simulate(policy(), cost, chats, seconds=seconds, seed=seed), (1 - WARM_UP_SHARE) * seconds)
        for name, policy in POLICIES.items()
    }


def _shown(waits: Waits, seconds: float) -> dict[str, object]:
    return {
        "first_token_seconds": _percentiles(waits.first_token),
        "between_tokens_seconds": _percentiles(waits.between_tokens),
        "beside_prefill_seconds": _percentiles(waits.beside_prefill),
        "answers": len(waits.first_token),
        "answer_tokens_per_second": round((len(waits.first_token) + len(waits.between_tokens)) / seconds, 1),
        "prompt_tokens_per_second": round(waits.prompt_tokens / seconds, 1),
        "busy": round(waits.busy_seconds / seconds, 3),
    }


def _percentiles(samples: Sequence[float]) -> dict[str, float]:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {f"p{p}": round(ordered[min(last, len(ordered) * p // 100)], 3) for p in (50, 95, 99, 100) if ordered}
