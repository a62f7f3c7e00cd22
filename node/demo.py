"""A swarm on this machine: a bootstrap node and servers, each a process of its own. Knows nothing of who watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Final

import trio

from .flags import ENV_PREFIX
from .processes import OwnProcess
from .waiting import Program, can_fork, fork_waiting, spawn_waiting

__all__ = ["DEMO_BLOCKS", "begin_bootstrap", "equal_shares", "make_servers", "process_environment", "serve_shares"]

DEMO_BLOCKS: Final = 30
"""How many blocks the demo's model has: known before anybody has loaded it."""

_LISTEN: Final = ("--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--no-mdns")
# What a server and who asks it import, and what takes the longest to.
_HEAVY: Final = ("swarmnode.node.net.host", "swarmnode.node.offering", "swarmnode.node.asking")


def equal_shares(num_blocks: int, servers: int) -> tuple[tuple[int, int], ...]:
    """The blocks in so many runs whose lengths differ by one at most. Never more runs than blocks."""
    servers = min(servers, num_blocks)
    return tuple(pairwise(num_blocks * part // servers for part in range(servers + 1)))


def process_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a demo's processes: nothing of what the user has set for nodes of their own."""
    return {name: value for name, value in environ.items() if not name.startswith(ENV_PREFIX)}


def begin_bootstrap(environ: Mapping[str, str]) -> OwnProcess:
    """Start the bootstrap node; it needs nothing heavy."""
    node = OwnProcess("bootstrap", spawn_waiting())
    node.begin(["bootstrap", *_LISTEN], environ)
    return node


def make_servers(count: int, program: Program) -> list[OwnProcess]:
    """So many processes in waiting, to be told what to serve by `serve_shares`.

    Where it can be, all that is heavy is imported here, once, and shared with them: so call this from the main thread
    before the event loop runs and before anything has computed. Takes seconds.
    """
    if can_fork():
        for module in _HEAVY:
            import_module(module)
        return [OwnProcess(f"server {number}", fork_waiting(program)) for number in range(1, count + 1)]
    return [OwnProcess(f"server {number}", spawn_waiting()) for number in range(1, count + 1)]


async def serve_shares(
    bootstrap: OwnProcess,
    servers: Sequence[OwnProcess],
    environ: Mapping[str, str],
    *,
    model: str,
    shares: Sequence[tuple[int, int]],
    compression: str = "auto",
    more: Sequence[str] = (),
) -> str:
    """Have each server serve its share; return the address to join by when all are ready. Raises `MachineFault`.

    Args:
        more: further flags of `swarmnode serve`.
    """
    listening = await bootstrap.wait_for("listening")
    address = str(listening["addrs"][0])
    for server, (start, end) in zip(servers, shares, strict=True):
        told = ["--blocks", f"{start}:{end}", "--join", address, "--compression", compression, *more]
        server.begin(["serve", model, *told, *_LISTEN], environ)
    async with trio.open_nursery() as nursery:
        for process in servers:
            nursery.start_soon(process.wait_for, "ready")
    return address
