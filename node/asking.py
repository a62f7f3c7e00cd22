"""From a model's name to a model that can be asked: opens its checkpoint and loads its ends."""

from __future__ import annotations

import trio

from swarmnode.models.checkpoint import Checkpoint, open_checkpoint
from swarmnode.models.ends import Ends
from swarmnode.models.families import certificate
from swarmnode.models.progress import Progress
from swarmnode.protocols.records import ModelId

from .client.asker import Asker
from .client.model import Model
from .client.servers import Servers
from .codec import Compression
from .discovery.directory import Directory
from .loading import load
from .net.network import Network
from .places import torch_device, torch_dtype
from .torch_thread import TorchThread

__all__ = ["checkpoint_id", "load_model"]


def checkpoint_id(checkpoint: Checkpoint) -> ModelId:
    """What peers call this model."""
    return ModelId(checkpoint.name, checkpoint.revision, checkpoint.digest)


async def load_model(
    named: tuple[str, str | None],
    *,
    dtype: str,
    device: str,
    network: Network,
    directory: Directory,
    torch_thread: TorchThread,
    background: trio.Nursery,
    progress: Progress | None,
    compression: Compression,
) -> Model:
    """Load a model's ends. Arguments and errors as `Node.load`; `named` is model and revision."""
    name, revision = named
    checkpoint = await load(lambda tell: open_checkpoint(name, revision=revision, progress=tell), progress)
    own_dtype, own_device = torch_dtype(dtype, checkpoint.dtype), torch_device(device)

    def load_ends(tell: Progress) -> Ends:
        ends = checkpoint.load_ends(dtype=own_dtype, device=own_device, progress=tell)
        ends.take_kernels()
        return ends

    ends = await load(load_ends, progress)
    tokenizer = await load(lambda _: checkpoint.tokenizer(), None)
    id = checkpoint_id(checkpoint)
    return Model(
        Asker(
            id=id,
            num_blocks=checkpoint.num_blocks,
            context_tokens=checkpoint.context_tokens,
            eos_ids=checkpoint.eos_ids,
            truncatable=certificate(checkpoint.family).truncatable,
            tokenizer=tokenizer,
            ends=ends,
            torch_thread=torch_thread,
            network=network,
            servers=Servers(network, directory, id, checkpoint.num_blocks),
            background=background,
            compression=compression,
        )
    )
