"""swarmnode as a library: a node inside any trio program, that asks, serves and looks round.

The command line uses only this. Light to import: torch and libp2p load when a node first needs them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from swarmnode.errors import BadInput
from swarmnode.models.progress import Progress
from swarmnode.protocols.records import ModelId
from swarmnode.protocols.swarm_key import SwarmKey

from .background import open_background
from .codec import Compression
from .codec.choice import as_compression
from .defaults import DEFAULT_LISTEN
from .discovery.directory import Directory
from .identity import Identity, create_identity, load_identity
from .joining import join_swarm, stay_joined, wait_for_neighbours
from .membership import load_swarm_key, read_guests, read_preferred
from .net.network import Network
from .routes import Hop, Route
from .status import SwarmStatus, look_round
from .torch_thread import TorchThread, open_torch_thread

if TYPE_CHECKING:
    from .choosing import Choice
    from .client.generation import Generation, Piece
    from .client.model import Model
    from .client.session import Session
    from .offering import ServerInfo
    from .server.cache_budget import CacheStatistics
    from .server.serving import Serving

__all__ = [
    "Generation",
    "Hop",
    "Model",
    "Node",
    "Piece",
    "Route",
    "ServerInfo",
    "Session",
    "SwarmStatus",
    "open_node",
]

_HOMES = {
    "Generation": "swarmnode.node.client.generation",
    "Model": "swarmnode.node.client.model",
    "Piece": "swarmnode.node.client.generation",
    "ServerInfo": "swarmnode.node.offering",
    "Session": "swarmnode.node.client.session",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Node:
    """One peer of a swarm. Made by `open_node`.

    Attributes:
        network: its streams and neighbours.
        directory: where servers announce and are found.
    """

    def __init__(
        self,
        network: Network,
        directory: Directory,
        torch_thread: TorchThread,
        background: trio.Nursery,
        *,
        progress: Progress | None,
        compression: Compression,
    ) -> None:
        self.network = network
        self.directory = directory
        self._torch_thread = torch_thread
        self._background = background
        self._progress = progress
        self._compression = compression
        self._serves = False
        self._serving: Serving | None = None

    @property
    def peer_id(self) -> str:
        """Our peer id in text form."""
        return self.network.peer

    @property
    def addrs(self) -> tuple[str, ...]:
        """The multiaddrs under which others can join through us; none when we do not listen."""
        return self.network.addrs

    @property
    def sessions(self) -> int:
        """How many sessions of others this node serves now."""
        return self._serving.sessions if self._serving is not None else 0

    @property
    def passes(self) -> int:
        """How many passes of training this node runs for others now."""
        return self._serving.passes if self._serving is not None else 0

    @property
    def cache_tokens_left(self) -> int:
        """How many tokens of KV cache this node has promised to nobody; 0 when it serves nothing."""
        return self._serving.cache_tokens_left if self._serving is not None else 0

    @property
    def waiting_steps(self) -> int:
        """How many steps of sessions wait here for their turn, or for cache."""
        return self._serving.waiting_steps if self._serving is not None else 0

    def cache_statistics(self) -> CacheStatistics | None:
        """What sessions hold here, and what has become of them so far; None when it serves nothing."""
        return self._serving.cache_statistics() if self._serving is not None else None

    @property
    def saved_tokens(self) -> int:
        """How many tokens this node did not compute because sessions had begun alike."""
        return self._serving.saved_tokens if self._serving is not None else 0

    async def load(
        self, model: str | None = None, *, revision: str | None = None, dtype: str = "auto", device: str = "auto"
    ) -> Model:
        """A model to ask: its tokenizer and its ends are loaded here, its blocks stay in the swarm.

        Args:
            model: hub id, local folder, `.gguf` file or the bundled model's name; None is the swarm's only model, or
                the bundled one where nothing is served.
            revision: on the hub; None is the main branch.
            dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
            device: "auto", "cpu", "cuda", "mps".

        Raises:
            AskedWrong: there is no such model, or it cannot be served.
            MachineFault: its files cannot be fetched or read.
        """
        asking = await self._import("swarmnode.node.asking")
        loaded: Model = await asking.load_model(
            await self._named(model, revision),
            dtype=dtype,
            device=device,
            network=self.network,
            directory=self.directory,
            torch_thread=self._torch_thread,
            background=self._background,
            progress=self._progress,
            compression=self._compression,
        )
        return loaded

    async def serve(
        self,
        model: str | None = None,
        *,
        revision: str | None = None,
        blocks: str | None = None,
        num_blocks: int | None = None,
        max_memory: int | None = None,
        dtype: str = "auto",
        quant: str = "none",
        device: str = "auto",
        offload: bool = False,
        cache_tokens: int | None = None,
        cache_memory: int | None = None,
        prefill_chunk: int = 0,
        deterministic: bool = False,
        prefix_cache: bool = True,
        share_prefixes: bool = False,
        prefer_peers: Sequence[str] = (),
        adapters: Mapping[str, str | Path] | None = None,
        training_memory: int | None = None,
        public_name: str = "",
        chosen: Callable[[Choice], None] | None = None,
        moved: Callable[[ServerInfo], None] | None = None,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Give the swarm some blocks of a model, until cancelled. Started once others can find and use them.

        Args:
            model, revision, dtype: as for `load`.
            device: as for `load`, or several of one kind: "cuda:0,cuda:1"; "auto" is every GPU.
            offload: whether weights for which there is no room on the devices may stay in the machine's memory, and be
                brought there for each pass. Slow: each pass then takes as long as they take to be copied.
            blocks: "20:40" is the blocks 20 to 39; "auto" those that the swarm needs most, as many as fit. None is all,
                or "auto" if they do not fit. Who chooses moves later on where the swarm needs it, while nobody uses it.
            num_blocks: how many blocks, chosen as with "auto".
            max_memory: bytes that may be taken on each device, on a CPU by the whole process; None is all that is free.
            quant: "int8" or "int4" keeps the weights of linear layers in so many bits: less memory and quicker decoding
                for answers that differ a little. The dtype "auto" is bfloat16 then.
            cache_tokens: how many tokens all sessions together may hold; None is what there is room for.
            cache_memory: the same in bytes, instead.
            prefill_chunk: tokens of a prompt that are computed at once before others have their turn; 0: as they come.
                Attention over other runs of tokens differs in its last bits, so the text of long prompts may, too.
            deterministic: whether a session that is alone computes as it would among others, to the last bit.
            prefix_cache: whether sessions of one client that begin alike share the work on their beginnings.
            share_prefixes: whether those of different clients do, too, as far as their clients call them public.
            prefer_peers: peer ids, or files with one to a line: whose steps go before those of others, behind our own.
            adapters: LoRA adapters in PEFT's form that sessions may choose: by name the folder or hub id of each.
            training_memory: the most bytes that training through these blocks may take; None is 1 GiB as far as it is
                free, or nothing of `max_memory`; 0 is no training.
            public_name: shown beside this server.
            chosen: told which blocks will be held, when that was left open or has to fit; again when it changes.
            moved: told what is served after a move.

        Raises:
            AskedWrong, MachineFault: as for `load`; also `BadRange`, and `OutOfMemory` before anything is loaded.
        """
        if self._serves:
            raise BadInput("This node serves blocks already.", hint="Open another node for more.")
        self._serves = True
        try:
            offering = await self._import("swarmnode.node.offering")
            name, revision = await self._named(model, revision)
            started = False

            def ready(info: ServerInfo) -> None:
                nonlocal started
                if not started:
                    started = True
                    task_status.started(info)
                elif moved is not None:
                    moved(info)

            wanted = offering.Wanted(
                model=name,
                revision=revision,
                blocks=blocks,
                num_blocks=num_blocks,
                max_memory=max_memory,
                dtype=dtype,
                quant=quant,
                device=device,
                offload=offload,
                cache_tokens=cache_tokens,
                cache_memory=cache_memory,
                prefill_chunk=prefill_chunk,
                deterministic=deterministic,
                prefix_cache=prefix_cache,
                share_prefixes=share_prefixes,
                preferred=read_preferred(prefer_peers),
                adapters=adapters or {},
                training_memory=training_memory,
                public_name=public_name,
                compression=self._compression,
            )
            place = offering.Place(self.network, self.directory, self._torch_thread, self._progress)
            tell = offering.Callbacks(chosen=chosen or _say_nothing, begun=self._begun, ready=ready)
            await offering.serve_blocks(wanted, place, tell)
        finally:
            self._serves, self._serving = False, None
        raise AssertionError("serving ends only by an exception")

    async def status(self) -> SwarmStatus:
        """What the swarm serves now: models, who holds which blocks, gaps, rates."""
        return await look_round(self.network, self.directory)

    async def _named(self, model: str | None, revision: str | None) -> tuple[str, str | None]:
        """Which model is meant when none is named."""
        if model is not None:
            return model, revision
        served = dict(await self.directory.find_models())
        if not served:
            from swarmnode.models.bundled import BUNDLED_NAME

            return BUNDLED_NAME, revision
        if len(served) > 1:
            names = ", ".join(sorted({_shown(id, served) for id in served}))
            raise BadInput(f"The swarm serves several models: {names}.", hint="Name the one you want.")
        (only,) = served
        # A hub's revision travels with its name; other models have just one, wherever they came from.
        return only.name, revision or (only.revision if "/" in only.name else None)

    def _begun(self, serving: Serving) -> None:
        self._serving = serving

    async def _import(self, module: str) -> Any:
        """Import what needs torch, which takes seconds, away from the event loop."""
        return await self._torch_thread.run(import_module, module)


def _say_nothing(_: object) -> None:
    pass


def _shown(model: ModelId, served: dict[ModelId, int]) -> str:
    alone = sum(other.name == model.name for other in served) == 1
    return model.name if alone else f"{model.name} (revision {model.revision[:12]})"


@asynccontextmanager
async def open_node(
    *,
    join: Sequence[str] = (),
    listen: Sequence[str] = DEFAULT_LISTEN,
    identity: Identity | Path | None = None,
    mdns: bool = False,
    swarm_key: SwarmKey | Path | None = None,
    allow_peers: Sequence[str] = (),
    deny_peers: Sequence[str] = (),
    compression: str = "auto",
    relays: bool = False,
    network: Network | None = None,
    progress: Progress | None = None,
) -> AsyncIterator[Node]:
    """A node for as long as the block runs.

    Args:
        join: multiaddrs (`/ip4/…/udp/…/quic-v1/p2p/…`) of peers of the swarm; one that answers is enough.
        listen: multiaddrs to listen on; empty for a node that only asks.
        identity: our key, or the file it is in, made when missing; None makes a new key for this run.
        mdns: find peers on the local network, and be found.
        swarm_key: a private swarm's key, or the file it is in: connections are only had with peers that prove to hold
            it, too.
        allow_peers, deny_peers: peer ids, or files with one to a line: whom to have connections with. With none allowed
            it is everybody; who is denied stays out in any case.
        compression: how hidden states travel. "auto" sends them raw on this machine and on very quick links, else as
            8-bit numbers with next to no loss ("h8"); "raw" and "lossless" lose nothing; "h6", "fp8" and "h4" are
            smaller and lose more. Who asks decides what may travel in its sessions, from server to server too.
        relays: let peers that cannot be dialled be reached through this node, within limits; for one with a public
            address.
        network: a network of your own making instead, such as one peer of `swarmnode.testing`.
        progress: told how far downloads and loads have come, from other threads.

    Raises:
        NoPeers: none of `join` answers.
        PeerRefused: one answers, but its swarm is private and we lack its key.
        BadInput, BadIdentity, PortInUse: an argument, as its name says.
    """
    how = as_compression(compression)
    async with AsyncExitStack() as stack:
        if network is None:
            from .net.gate import Gate
            from .net.host import open_host

            own = load_identity(identity) if isinstance(identity, Path) else identity or create_identity()
            key = load_swarm_key(swarm_key) if isinstance(swarm_key, Path) else swarm_key
            gate = Gate(own.peer, key, read_guests(allow_peers, deny_peers))
            network = await stack.enter_async_context(
                open_host(own, listen=listen, mdns=mdns, gate=gate, relays=relays)
            )
        torch_thread = await stack.enter_async_context(open_torch_thread())
        background = await stack.enter_async_context(open_background())
        if join:
            await join_swarm(network, join)
            background.start_soon(partial(stay_joined, network, join))
        elif mdns:
            await wait_for_neighbours(network)
        directory = Directory(network)
        await background.start(directory.run)
        yield Node(network, directory, torch_thread, background, progress=progress, compression=how)
