"""Whether servers that choose their own blocks cover a model, how near to the best, and whether they come to rest."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from swarmnode.node.placement import Coverage, Options, Share, Window, choose_window, coverage_of

from .report import spread
from .simulated import Pond, Server, make_server

__all__ = ["best_worst_coverage", "run"]

SEEDS: Final = 200
SMALL_CASES: Final = 300
CHURN_SEEDS: Final = 12
CHURN_SECONDS: Final = 8 * 3600.0
QUIET_SECONDS: Final = 6 * 3600.0
EVENT_SECONDS: Final = 600.0
"""Mean time between two comings or goings."""
REPAIR_SECONDS: Final = 1200.0
"""Long enough for anything that has begun to be over."""
WAVERING: Final = 0.25
"""By so much a server's own measurement of its rate changes from look to look, up or down."""

Rule = Callable[[Coverage, Options], Window]


def run(argv: list[str]) -> dict[str, object]:
    """Simulate. Arguments: `--seeds 200`, `--small-cases 300`, `--churn-seeds 12`."""
    parser = argparse.ArgumentParser(prog="scripts/bench blocks", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--small-cases", type=int, default=SMALL_CASES)
    parser.add_argument("--churn-seeds", type=int, default=CHURN_SEEDS)
    options = parser.parse_args(argv)
    figures: dict[str, object] = {}
    measures: dict[str, Callable[[], dict[str, object]]] = {
        "one_after_the_other": lambda: _joining(options.seeds, at_once=1),
        "four_at_once": lambda: _joining(options.seeds, at_once=4),
        "four_at_once_without_a_second_look": lambda: _joining(options.seeds, at_once=4, settling=False),
        "all_at_once": lambda: _joining(options.seeds, at_once=1000),
        "after_servers_left": lambda: _leaving(options.seeds),
        "against_the_best": lambda: _against_the_best(options.small_cases),
        "coming_and_going": lambda: _churn(options.churn_seeds),
    }
    for name, measure in measures.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        figures[name] = measure()
    return figures


def least_covered_window(coverage: Coverage, options: Options) -> Window:
    """For comparison: the window that is covered worst now, as Petals chooses."""
    return min(options.windows, key=lambda window: (sorted(coverage[window[0] : window[1]]), window))


def random_window(coverage: Coverage, options: Options) -> Window:
    """For comparison."""
    return random.Random(f"{options.peer} {coverage}").choice(list(options.windows))


def some_servers(rng: random.Random, num_blocks: int, capacity: float, *, name: str = "server") -> list[Server]:
    """Servers of very different sizes and speeds whose lengths add up to `capacity` models or a little more."""
    servers: list[Server] = []
    length = 0
    while length < capacity * num_blocks:
        blocks = rng.randint(max(1, num_blocks // 20), num_blocks // 2)
        rate = int(1000 * 2 ** rng.uniform(4, 9))  # 16 to 512 blocks' tokens per second
        servers.append(make_server(f"{name}-{len(servers)}", num_blocks, blocks, rate, rng))
        length += blocks
    return servers


def _joining(seeds: int, *, at_once: int, settling: bool = True) -> dict[str, object]:
    """Servers join, so many at the same moment; then all is left alone."""
    found: dict[str, object] = {}
    for capacity in (1.0, 1.5, 3.0):
        at_first, at_last, moves = 0, 0, []
        for seed in range(seeds):
            rng = random.Random(f"joining {capacity} {seed}")
            blocks = rng.choice((24, 32, 48, 80))
            pond = Pond(blocks, seed, settling=settling)
            servers = some_servers(rng, blocks, capacity)
            for first in range(0, len(servers), at_once):
                for server in servers[first : first + at_once]:
                    pond.join(server)
                pond.run(5.0)
            at_first += pond.announced.count(0) == 0
            pond.run(QUIET_SECONDS)
            at_last += pond.answered.count(0) == 0
            moves.append(len(pond.moved))
        found[f"capacity_{capacity}"] = {
            "covered_at_once": f"{at_first}/{seeds}",
            "covered_in_the_end": f"{at_last}/{seeds}",
            "moves": spread(moves),
        }
    return found


def _leaving(seeds: int) -> dict[str, object]:
    """A third of the servers leave together, politely or not; what stays could still hold every block."""
    repaired, needed, moves, seconds, rest = 0, 0, [], [], []
    for seed in range(seeds):
        rng = random.Random(f"leaving {seed}")
        blocks = rng.choice((24, 32, 48, 80))
        pond = Pond(blocks, seed)
        for server in some_servers(rng, blocks, 3.0):
            pond.join(server)
            pond.run(5.0)
        pond.run(QUIET_SECONDS)
        before, left_at = len(pond.moved), pond.now
        leaving = rng.sample(sorted(pond.servers), len(pond.servers) // 3)
        for peer in leaving:
            pond.leave(peer, politely=rng.random() < 0.5)
        if pond.capacity < blocks or not pond.answered.count(0):
            continue
        needed += 1
        pond.run(QUIET_SECONDS)
        repaired += pond.answered.count(0) == 0
        moves.append(len(pond.moved) - before)
        seconds.append(next((at for at, empty, _ in reversed(pond.log) if empty), left_at) - left_at)
        rest.append((pond.moved[-1] if len(pond.moved) > before else left_at) - left_at)
    return {
        "gaps_repaired": f"{repaired}/{needed}",
        "moves": spread(moves),
        "seconds_until_repaired": spread(seconds, 0),
        "seconds_until_the_last_move": spread(rest, 0),
    }


def _against_the_best(cases: int) -> dict[str, object]:
    """Small swarms, where every placement can be tried: the worst coverage as a share of the highest possible."""
    rules: dict[str, Rule] = {
        "ours": choose_window,
        "least_covered_window": least_covered_window,
        "random": random_window,
    }
    shares: dict[str, list[float]] = {name: [] for name in (*rules, "ours_after_moves")}
    for case in range(cases):
        rng = random.Random(f"small {case}")
        blocks = rng.randint(6, 9)
        servers = [
            (rng.randint(2, blocks // 2 + 1), int(1000 * 2 ** rng.uniform(4, 7))) for _ in range(rng.randint(4, 5))
        ]
        best = best_worst_coverage(blocks, servers)
        if not best:
            continue
        pond = Pond(blocks, case)
        for number, (length, rate) in enumerate(servers):
            pond.join(make_server(f"{case}-{number}", blocks, length, rate, rng))
            pond.run(5.0)
        pond.run(QUIET_SECONDS)
        shares["ours_after_moves"].append(min(pond.answered) / best)
        for name, rule in rules.items():
            coverage = [0] * blocks
            for server in pond.servers.values():
                start, end = rule(coverage, server.options)
                share = Share(server.peer, start, end, server.options.rate_of(end - start))
                coverage = [one + other for one, other in zip(coverage, coverage_of([share], blocks), strict=True)]
            shares[name].append(min(coverage) / best)
    return {name: _as_shares(found) for name, found in shares.items()}


def best_worst_coverage(num_blocks: int, servers: Sequence[tuple[int, int]]) -> int:
    """The highest worst coverage that any placement gives; a server is how many blocks it holds, and its block rate."""
    places = [range(num_blocks - length + 1) for length, _ in servers]
    best = 0
    for starts in itertools.product(*places):
        coverage = [0] * num_blocks
        for start, (length, rate) in zip(starts, servers, strict=True):
            for block in range(start, start + length):
                coverage[block] += rate // length
        best = max(best, min(coverage))
    return best


@dataclass(slots=True)
class _Hours:
    """What is added up over all runs of coming and going."""

    events: int = 0
    moves: int = 0
    seconds: float = 0.0
    gap_seconds: float = 0.0
    late_gap_seconds: float = 0.0
    moves_at_rest: int = 0


def _churn(seeds: int) -> dict[str, object]:
    """Servers come and go for hours; then nobody does, and there must be rest."""
    found: dict[str, object] = {}
    for capacity, wavering in ((1.5, 0.0), (3.0, 0.0), (3.0, WAVERING)):
        total = _Hours()
        for seed in range(seeds):
            _one_churn(capacity, wavering, seed, total)
        name = f"capacity_{capacity}" + ("_with_rates_that_waver" if wavering else "")
        found[name] = {
            "comings_and_goings": total.events,
            "moves": total.moves,
            "share_of_time_with_a_gap_though_capacity_allowed": round(total.gap_seconds / total.seconds, 4),
            f"of_it_later_than_{REPAIR_SECONDS:.0f}_s_after_the_last_event": round(
                total.late_gap_seconds / total.seconds, 6
            ),
            f"moves_later_than_{2 * REPAIR_SECONDS:.0f}_s_after_the_end_of_all_events": total.moves_at_rest,
        }
    return found


def _one_churn(capacity: float, wavering: float, seed: int, total: _Hours) -> None:
    rng = random.Random(f"churn {capacity} {seed}")
    blocks = 48
    pond = Pond(blocks, seed, wavering=wavering)
    pool = some_servers(rng, blocks, 2 * capacity, name=f"{seed}")
    rng.shuffle(pool)
    number = 0

    def come() -> None:
        nonlocal number
        number += 1
        model = pool[number % len(pool)]
        rate = model.options.rate_of(1)
        pond.join(make_server(f"{seed}-{number}", blocks, model.length, rate, rng))

    while pond.capacity < capacity * blocks:
        come()
        pond.run(10.0)
    pond.run(REPAIR_SECONDS)
    event_at = pond.now
    while pond.now < CHURN_SECONDS:
        if pond.capacity > capacity * blocks and pond.servers:
            pond.leave(rng.choice(sorted(pond.servers)), politely=rng.random() < 0.5)
        else:
            come()
        total.events += 1
        event_at = pond.now
        _watch(pond, rng.expovariate(1 / EVENT_SECONDS), event_at, total)
    _watch(pond, QUIET_SECONDS, event_at, total)
    total.moves += len(pond.moved)
    total.moves_at_rest += sum(at > event_at + 2 * REPAIR_SECONDS for at in pond.moved)


def _watch(pond: Pond, seconds: float, event_at: float, total: _Hours) -> None:
    """Let time pass in small steps, and count those with a gap that need not be."""
    until = pond.now + seconds
    while pond.now < until:
        step = min(5.0, until - pond.now)
        pond.run(step)
        if pond.capacity < pond.num_blocks:
            continue
        total.seconds += step
        if pond.answered.count(0):
            total.gap_seconds += step
            total.late_gap_seconds += step * (pond.now > event_at + REPAIR_SECONDS)


def _as_shares(found: Sequence[float]) -> dict[str, object]:
    ordered = sorted(found)
    return {
        "mean": round(sum(ordered) / len(ordered), 4),
        "worst": round(ordered[0], 4),
        "fifth_percentile": round(ordered[len(ordered) // 20], 4),
        "the_best_itself": f"{sum(each > 0.9999 for each in ordered)}/{len(ordered)}",
    }
