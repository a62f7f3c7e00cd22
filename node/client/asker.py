"""What every session of one model shares: its ends, the thread they run on, and the way to a ring of servers."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio
from transformers import PreTrainedTokenizerBase

from swarmnode.errors import BlocksMissing, ModelMismatch, PeerFault, SwarmnodeError
from swarmnode.models.ends import Ends
from swarmnode.node.codec import Compression
from swarmnode.node.defaults import MAX_OPEN_TRIES
from swarmnode.node.net.network import Network
from swarmnode.node.routes import Route
from swarmnode.node.tensors import dtype_name
from swarmnode.node.torch_thread import TorchThread
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.records import ModelId

from .ring import Ring, open_ring
from .servers import Servers

__all__ = ["Asker"]

_log = logging.getLogger("swarmnode.client")


@dataclass(frozen=True, slots=True)
class Asker:
    """One model, ready to be asked.

    Attributes:
        truncatable: its blocks can go back to an earlier position; else a session sends everything again.
        background: where sessions keep their tasks.
        compression: what may travel in its sessions.
    """

    id: ModelId
    num_blocks: int
    context_tokens: int
    eos_ids: frozenset[int]
    truncatable: bool
    tokenizer: PreTrainedTokenizerBase
    ends: Ends
    torch_thread: TorchThread
    network: Network
    servers: Servers
    background: trio.Nursery
    compression: Compression = "auto"

    async def open_ring(self, max_tokens: int, public_tokens: int, adapter: str | AdapterId | None = None) -> Ring:
        """A session on the best route whose servers all take it.

        A server that refuses or does not answer is left out and another route tried, a few times.

        Args:
            max_tokens, public_tokens: as for the function of this name.

        Raises:
            NoPeers, ModelMismatch, BlocksMissing, AdapterMissing, BadInput: as `Servers.plan`.
            PeerFault: of the last server that refused, when no route is left without it.
        """
        refused: dict[str, SwarmnodeError] = {}
        for _ in range(MAX_OPEN_TRIES):
            try:
                route = await self.servers.plan(tokens=max_tokens, exclude=refused, adapter=adapter)
            except BlocksMissing:
                if not refused:
                    raise
                break
            try:
                ring = await open_ring(
                    self.network,
                    route,
                    self.id,
                    dtype=self._wire_dtype(route),
                    max_tokens=max_tokens,
                    public_tokens=public_tokens,
                    compression=self.compression,
                )
            except (PeerFault, ModelMismatch) as error:
                if error.peer is None:
                    raise
                _log.info("a route is planned again: %s", error.message)
                refused[error.peer] = error
                self.servers.forget()
                continue
            self.background.start_soon(ring.run)
            return ring
        raise list(refused.values())[-1]

    def _wire_dtype(self, route: Route) -> str:
        """In which hidden states travel: what all compute in, so that nothing is lost; else the widest."""
        ours = dtype_name(self.ends.dtype)
        return ours if all(hop.dtype == ours for hop in route.hops) else "float32"
