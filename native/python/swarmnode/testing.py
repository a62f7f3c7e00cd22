"""A whole swarm inside one process, for tests: real nodes and a real, tiny, random model, over a network in memory.

    async with swarmnode.testing.open_memory_swarm(make_tiny_model(tmp_path), splits=[2]) as swarm:
        model = await swarm.client.load(swarm.model)
        text = "".join([piece async for piece in model.generate("hello", max_new_tokens=8)])

The servers compute in threads, so do not use trio's autojump clock with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from swarmnode.errors import BadInput
from swarmnode.node.background import open_background
from swarmnode.node.library import Node, open_node
from swarmnode.node.net.memory import MemoryNet, open_memory_net

if TYPE_CHECKING:
    from swarmnode.node.library import ServerInfo

__all__ = ["MemoryServer", "MemorySwarm", "make_tiny_model", "open_memory_swarm"]

NOISE = 0.05
"""Added to every weight, so that weights a family begins with at zero or one count too."""


@dataclass(frozen=True, slots=True)
class MemoryServer:
    """One server of a memory swarm.

    Attributes:
        node: its node.
        info: what it serves.
    """

    node: Node
    info: ServerInfo

    @property
    def peer(self) -> str:
        return self.node.peer_id


class MemorySwarm:
    """A swarm in one process. Made by `open_memory_swarm`.

    Attributes:
        net: the network, which can kill, silence, part and slow down peers.
        model: the folder of the model that is served.
        servers: one for each split, by blocks.
        client: a node that serves nothing.
    """

    def __init__(self, net: MemoryNet, model: str, servers: Sequence[MemoryServer], client: Node) -> None:
        self.net = net
        self.model = model
        self.servers = tuple(servers)
        self.client = client


@asynccontextmanager
async def open_memory_swarm(
    model: Path | str,
    *,
    splits: Sequence[int] = (),
    replicas: int = 1,
    cache_tokens: int | None = None,
    compression: str = "lossless",
    adapters: Mapping[str, str | Path] | Sequence[Mapping[str, str | Path]] = (),
) -> AsyncIterator[MemorySwarm]:
    """A swarm that serves all of a model, for as long as the block runs.

    Args:
        model: anything that `Node.load` takes; `make_tiny_model` makes one.
        splits: blocks at which a next server begins: `[2, 5]` is servers of blocks `0:2`, `2:5` and `5:`.
        replicas: servers for each of these.
        cache_tokens: of each server.
        compression: of all its nodes, as for `open_node`; the default lets answers be compared bit for bit.
        adapters: of all servers, as for `Node.serve`; or of each.
    """
    async with AsyncExitStack() as stack:
        net = await stack.enter_async_context(open_memory_net())
        servers: list[MemoryServer] = []
        join: list[str] = []
        edges = [0, *splits]
        for number in range(len(edges) * replicas):
            at = number % len(edges)
            blocks = f"{edges[at]}:{edges[at + 1] if at + 1 < len(edges) else ''}"
            opening = open_node(network=net.network(number), join=join, compression=compression)
            own = adapters if isinstance(adapters, Mapping) else adapters[number] if adapters else {}
            serving = _open_server(opening, str(model), blocks, cache_tokens, own)
            servers.append(await stack.enter_async_context(serving))
            join = [servers[0].node.addrs[0]]
        asking = open_node(network=net.network(len(servers)), join=join, compression=compression)
        client = await stack.enter_async_context(asking)
        yield MemorySwarm(net, str(model), servers, client)


@asynccontextmanager
async def _open_server(
    opening: AbstractAsyncContextManager[Node],
    model: str,
    blocks: str,
    cache_tokens: int | None,
    adapters: Mapping[str, str | Path],
) -> AsyncIterator[MemoryServer]:
    async with opening as node, open_background() as nursery:
        serve = partial(node.serve, model, blocks=blocks, cache_tokens=cache_tokens, adapters=adapters)
        yield MemoryServer(node, await nursery.start(serve))


def make_tiny_model(folder: Path | str, family: str = "llama", *, seed: int = 0) -> Path:
    """Write a model with random weights and a tokenizer of single bytes; a few hundred kilobytes.

    Args:
        folder: where; made when missing.
        family: a certified family, as `swarmnode models` lists them.
        seed: the same seed makes the same weights.

    Returns:
        The folder, which `Node.load` and `open_memory_swarm` take.

    Raises:
        BadInput: there is no such family.
    """
    import torch
    from transformers import CONFIG_MAPPING

    from swarmnode.models.byte_tokenizer import BYTE_VOCABULARY, byte_tokenizer
    from swarmnode.models.cut import causal_class, quiet_transformers, text_config
    from swarmnode.models.tiny import tiny_config

    if family not in CONFIG_MAPPING:
        raise BadInput(f"There is no model family {family!r}.", hint="Run `swarmnode models` for those there are.")
    path = Path(folder)
    config = tiny_config(family)
    text_config(config).vocab_size = BYTE_VOCABULARY
    with quiet_transformers():
        stock, own_config = causal_class(config)
        torch.manual_seed(seed)
        model = stock(own_config)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * NOISE)
        model.save_pretrained(path)
        byte_tokenizer().save_pretrained(path)
    return path
