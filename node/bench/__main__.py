"""Runs one benchmark by name; everything after the name is its own arguments."""

from __future__ import annotations

import sys
from importlib import import_module

from swarmnode.node.cli.libraries import set_up_libraries

from .report import print_report

BENCHES = {
    "blocks": "servers that choose their own blocks, simulated: gaps, moves, distance from the best",
    "codec": "values per second and damage of each scheme, beside hivemind's 8 bits and plain 8-bit floats",
    "discovery": "look-up time and messages at 10, 50, 150 nodes in one process",
    "engine": "one server and many sessions: tokens per second together, waiting beside a long prompt, memory",
    "quant": "exact and quantised weights: tokens per second, memory, time to load, perplexity",
    "nat": "who reaches whom behind which NATs, how, and how fast",
    "schedule": "time to first token and between tokens under each policy of a server, simulated",
    "soak": "two servers, forty clients, a quarter of the cache they want: wrong texts, leaks, dishonest refusals",
    "transport": "bulk, ping-pong, connecting: ours beside py-libp2p's own, go-libp2p, quinn and raw TCP",
    "tokens": "tokens per second: plain transformers, and swarms of 1, 2 and 3 servers",
}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHES:
        print("usage: scripts/bench NAME [its arguments]\n", file=sys.stderr)
        for known, what in BENCHES.items():
            print(f"  {known:10}  {what}", file=sys.stderr)
        return 0 if name in {"-h", "--help"} else 2
    set_up_libraries(debug=False)  # before torch is imported: all computes under the rules of every command
    bench = import_module(f"{__package__}.{name}")
    print_report(name, bench.run(sys.argv[2:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
