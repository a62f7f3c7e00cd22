"""From a model's name to a served span: opens its checkpoint, announces, loads the blocks, serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from swarmnode.errors import BadInput
from swarmnode.models.blocks import parse_blocks
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.models.progress import Progress
from swarmnode.models.span import Span
from swarmnode.protocols.limits import MAX_CACHE_TOKENS
from swarmnode.protocols.records import ModelId

from .asking import checkpoint_id
from .codec import Compression
from .defaults import DEFAULT_CACHE_TOKENS
from .discovery.directory import Directory
from .loading import load
from .net.network import Network
from .places import torch_device, torch_dtype
from .server.serving import Offer, Serving, open_serving
from .tensors import dtype_name
from .torch_thread import TorchThread

__all__ = ["ServerInfo", "serve_blocks"]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server serves, once it does."""

    model: ModelId
    num_blocks: int
    start: int
    end: int
    dtype: str
    device: str
    cache_tokens: int
    decode_tokens_per_second: float
    prefill_tokens_per_second: float


async def serve_blocks(
    named: tuple[str, str | None],
    *,
    blocks: str | None,
    dtype: str,
    device: str,
    cache_tokens: int | None,
    prefill_chunk: int,
    deterministic: bool,
    public_name: str,
    compression: Compression,
    network: Network,
    directory: Directory,
    torch_thread: TorchThread,
    progress: Progress | None,
    begun: Callable[[Serving], None],
    task_status: Any,
) -> None:
    """Serve until cancelled. Arguments and errors as `Node.serve`.

    Args:
        named: model and revision.
        begun: is given what is served as soon as it is announced.
    """
    name, revision = named
    tokens = DEFAULT_CACHE_TOKENS if cache_tokens is None else cache_tokens
    if not 1 <= tokens <= MAX_CACHE_TOKENS:
        raise BadInput(f"A cache of {tokens} tokens makes no sense.", hint="Give 1 or more.")
    if prefill_chunk < 0:
        raise BadInput(f"A prefill chunk of {prefill_chunk} tokens makes no sense.", hint="Give 1 or more, or 0.")
    checkpoint = await load(lambda tell: open_checkpoint(name, revision=revision, progress=tell), progress)
    start, end = parse_blocks(blocks, checkpoint.num_blocks) if blocks is not None else (0, checkpoint.num_blocks)
    own_dtype, own_device = torch_dtype(dtype, checkpoint.dtype), torch_device(device)
    offer = Offer(
        model=checkpoint_id(checkpoint),
        num_blocks=checkpoint.num_blocks,
        start=start,
        end=end,
        dtype=dtype_name(own_dtype),
        cache_tokens=tokens,
        public_name=public_name,
        compression=compression,
        segment_tokens=prefill_chunk or None,
        deterministic=deterministic,
    )

    def load_span(tell: Progress) -> Span:
        return checkpoint.load_span(start, end, dtype=own_dtype, device=own_device, progress=tell)

    async with open_serving(network, directory, torch_thread, offer) as serving:
        begun(serving)
        await serving.begin(await load(load_span, progress))
        decode, prefill = serving.rates
        task_status.started(
            ServerInfo(
                model=offer.model,
                num_blocks=offer.num_blocks,
                start=start,
                end=end,
                dtype=offer.dtype,
                device=str(own_device),
                cache_tokens=tokens,
                decode_tokens_per_second=decode,
                prefill_tokens_per_second=prefill,
            )
        )
        await serving.run()
