"""A swarm on this machine: a bootstrap node and servers, each a process of its own. Knows nothing of who watches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

import trio

from .processes import OwnProcess, OwnProcesses

__all__ = ["DEMO_BLOCKS", "equal_shares", "process_environment", "start_bootstrap", "start_servers"]

DEMO_BLOCKS: Final = 30
"""How many blocks the demo's model has: known before anybody has loaded it."""

_LISTEN: Final = ("--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns")


def equal_shares(num_blocks: int, servers: int) -> tuple[tuple[int, int], ...]:
    """The blocks in so many runs whose lengths differ by one at most. Never more runs than blocks."""
    servers = min(servers, num_blocks)
    return tuple(pairwise(num_blocks * part // servers for part in range(servers + 1)))


def process_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a demo's processes: nothing of the user's own settings, and threads that wait asleep.

    One process computes at a time, as the ring goes round, so each may use every core; but its threads must not spin
    while the others compute.
    """
    own = {name: value for name, value in environ.items() if not name.startswith("SWARMNODE_")}
    defaults = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    return {**defaults, **own}


async def start_bootstrap(
    processes: OwnProcesses, environ: Mapping[str, str], on_start: Callable[[OwnProcess, tuple[int, int] | None], None]
) -> str:
    """Start the bootstrap node and return the address to join it by. Raises `MachineFault`."""
    node = processes.start("bootstrap", ["bootstrap", *_LISTEN], environ)
    on_start(node, None)
    listening = await node.wait_for("listening")
    return str(listening["addrs"][0])


async def start_servers(
    processes: OwnProcesses,
    environ: Mapping[str, str],
    on_start: Callable[[OwnProcess, tuple[int, int] | None], None],
    *,
    model: str,
    join: str,
    shares: tuple[tuple[int, int], ...],
) -> list[dict[str, Any]]:
    """Start a server for each share and wait until all are ready; their `ready` events. Raises `MachineFault`."""
    started: list[OwnProcess] = []
    for number, (start, end) in enumerate(shares, 1):
        arguments = ["serve", model, "--blocks", f"{start}:{end}", "--join", join, *_LISTEN]
        # Keys of their own: the demo leaves the user's state folder as it is.
        server = processes.start(f"server {number}", arguments, environ)
        on_start(server, (start, end))
        started.append(server)
    ready: list[dict[str, Any]] = []
    async with trio.open_nursery() as nursery:
        for server in started:
            nursery.start_soon(_wait_ready, server, ready)
    return ready


async def _wait_ready(server: OwnProcess, ready: list[dict[str, Any]]) -> None:
    ready.append(await server.wait_for("ready"))
