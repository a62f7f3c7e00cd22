"""Waiting for connections of a real host to come and go: by event, not by looking again."""

from __future__ import annotations

from collections.abc import Callable

from swarmnode.node.net.network import Network
from swarmnode.node.net.reaching import ReachingNetwork

__all__ = ["until_links"]


async def until_links(network: Network, holds: Callable[[], bool]) -> None:
    """Wait until it holds, looking whenever a connection of the network has come or gone."""
    assert isinstance(network, ReachingNetwork)
    while not holds():
        await network._links_changed.wait()
