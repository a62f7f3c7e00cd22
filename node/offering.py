"""From a model's name to a served span: opens its checkpoint, decides on blocks, announces, loads them, serves."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import trio

from swarmnode.errors import BadInput
from swarmnode.models.adapters import Adapter, open_adapter
from swarmnode.models.blocks import parse_blocks
from swarmnode.models.checkpoint import QUANTISED_DTYPE, Checkpoint, open_checkpoint
from swarmnode.models.devices import Placement
from swarmnode.models.progress import Progress
from swarmnode.models.quantised import SCHEMES, Scheme
from swarmnode.protocols.adapters import AdapterId
from swarmnode.protocols.limits import MAX_CACHE_TOKENS
from swarmnode.protocols.records import NOT_QUANTISED, ModelId

from .adapters import check_adapters
from .asking import checkpoint_id
from .choosing import Choice, Chooser, choice_of
from .codec import Compression
from .defaults import TRAINING_BYTES
from .discovery.directory import Directory
from .fitting import Request, fit_blocks
from .loading import load
from .machine import hardware_name
from .measured import Measured, SpanKey, SpanRates
from .net.network import Network
from .places import torch_devices, torch_dtype
from .server.serving import Offer, Serving, open_serving
from .tensors import dtype_name
from .torch_thread import TorchThread

__all__ = ["Callbacks", "Place", "ServerInfo", "Wanted", "serve_blocks"]

AUTO = "auto"
"""What `blocks` says where the program is to choose them."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server serves, once it does."""

    model: ModelId
    num_blocks: int
    start: int
    end: int
    dtype: str
    quantisation: str
    device: str
    cache_tokens: int
    cache_bytes: int
    decode_tokens_per_second: float
    prefill_tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be served, and how: the arguments of `Node.serve`."""

    model: str
    revision: str | None
    blocks: str | None
    num_blocks: int | None
    max_memory: int | None
    dtype: str
    quant: str
    device: str
    offload: bool
    cache_tokens: int | None
    cache_memory: int | None
    prefill_chunk: int
    deterministic: bool
    prefix_cache: bool
    share_prefixes: bool
    preferred: frozenset[str]
    training_memory: int | None
    public_name: str
    compression: Compression
    adapters: Mapping[str, str | Path]

    @property
    def training_bytes(self) -> int:
        """Where memory is bounded, none is set apart for training unless that is asked for."""
        if self.training_memory is None:
            return 0 if self.max_memory is not None else TRAINING_BYTES
        return self.training_memory


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is served."""

    network: Network
    directory: Directory
    torch_thread: TorchThread
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who is told.

    Attributes:
        chosen: what will be held, when that was left open or has to fit; again when it changes.
        begun: what is served, as soon as it is announced.
        ready: the same, as soon as others can use it.
    """

    chosen: Callable[[Choice], None]
    begun: Callable[[Serving], None]
    ready: Callable[[ServerInfo], None]


async def serve_blocks(wanted: Wanted, place: Place, tell: Callbacks) -> None:
    """Serve until cancelled. Errors as `Node.serve`."""
    _check(wanted)
    opening = partial(open_checkpoint, wanted.model, revision=wanted.revision)
    checkpoint = await load(lambda progress: opening(progress=progress), place.progress)
    quant = None if wanted.quant == NOT_QUANTISED else cast(Scheme, wanted.quant)
    dtype = torch_dtype(wanted.dtype, checkpoint.dtype if quant is None else QUANTISED_DTYPE)
    devices = torch_devices(wanted.device)
    _check_offload(wanted, devices)
    adapters = [
        await load(partial(_open_adapter, name, where, checkpoint), place.progress)
        for name, where in wanted.adapters.items()
    ]
    key = SpanKey(
        _hardware(devices, offload=wanted.offload),
        checkpoint.digest.hex(),
        dtype_name(dtype),
        checkpoint.quantisation or wanted.quant,
        blocks=checkpoint.num_blocks,
    )
    measured = await trio.to_thread.run_sync(Measured)
    server = _Server(wanted, place, tell, checkpoint, adapters, dtype, devices, quant, key, measured)
    choice, chooser = await server.choose()
    while True:
        choice = await server.hold(choice, chooser)
        # Whatever ran last may still hold the blocks that were left; others need their memory.
        await place.torch_thread.run(gc.collect)


def _open_adapter(name: str, where: str | Path, checkpoint: Checkpoint, progress: Progress) -> Adapter:
    return open_adapter(name, str(where), checkpoint.config, progress=progress)


def _check(wanted: Wanted) -> None:
    check_adapters(wanted.adapters)
    if wanted.cache_tokens is not None and not 1 <= wanted.cache_tokens <= MAX_CACHE_TOKENS:
        raise BadInput(f"A cache of {wanted.cache_tokens} tokens makes no sense.", hint="Give 1 or more.")
    if wanted.cache_memory is not None and wanted.cache_memory < 1:
        raise BadInput("A cache of no memory makes no sense.", hint="Give a size such as 2GiB.")
    if wanted.cache_tokens is not None and wanted.cache_memory is not None:
        hint = "Leave one of them out."
        raise BadInput("--cache-tokens and --cache-memory both say how large the cache is to be.", hint=hint)
    if wanted.prefill_chunk < 0:
        hint = "Give 1 or more, or 0."
        raise BadInput(f"A prefill chunk of {wanted.prefill_chunk} tokens makes no sense.", hint=hint)
    if wanted.quant not in (NOT_QUANTISED, *SCHEMES):
        raise BadInput(f"{wanted.quant!r} is no quantisation.", hint=f"Give none, {', '.join(SCHEMES)}.")
    if wanted.num_blocks is not None and wanted.num_blocks < 1:
        raise BadInput(f"{wanted.num_blocks} blocks make no sense.", hint="Give 1 or more.")
    if wanted.num_blocks is not None and wanted.blocks not in (None, AUTO):
        hint = "Leave one of them out: with --num-blocks alone the program chooses which."
        raise BadInput(f"--blocks {wanted.blocks} names the blocks; --num-blocks leaves them open.", hint=hint)


def _check_offload(wanted: Wanted, devices: tuple[torch.device, ...]) -> None:
    if wanted.offload and devices[0].type in ("cpu", "mps"):
        raise BadInput(
            f"There is nothing to offload from {devices[0].type}: its memory is the machine's own.",
            hint="Leave --offload out; --quant or fewer --blocks make a model fit.",
        )


def _hardware(devices: tuple[torch.device, ...], *, offload: bool) -> str:
    """What speed depends on, in words."""
    count = f"{len(devices)} times " if len(devices) > 1 else ""
    return f"{count}{hardware_name(devices[0])}{', offloading' if offload else ''}"


@dataclass(frozen=True, slots=True)
class _Server:
    """One server from its checkpoint on."""

    wanted: Wanted
    place: Place
    tell: Callbacks
    checkpoint: Checkpoint
    adapters: list[Adapter]
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    quant: Scheme | None
    key: SpanKey
    measured: Measured

    async def choose(self) -> tuple[Choice, Chooser | None]:
        """What to hold; and who may think better of it later, where it was left open."""
        total = self.checkpoint.num_blocks
        request = self._request()
        plain = request.max_memory is None and not request.offload and len(self.devices) == 1
        if request.window is not None and plain and request.cache_tokens is not None:
            return Choice(request.window, total, "asked", request.cache_tokens), None
        fit = await load(
            lambda _: fit_blocks(self.checkpoint, self.dtype, self.devices, request, self._held_adapters), None
        )
        chooser = None
        if request.window is not None:
            choice = choice_of(fit, request.window, "asked")
            if plain:
                return choice, None  # only the cache was left open, and that is told once it is there
        elif not request.auto and fit.windows == ((0, total),):
            choice = choice_of(fit, (0, total), "all")
        else:
            chooser = Chooser(
                self.place.network,
                self.place.directory,
                model=checkpoint_id(self.checkpoint),
                fit=fit,
                measured=self.measured,
                key=self.key,
                hidden_size=self.checkpoint.hidden_size,
            )
            choice = await chooser.choose()
        self.tell.chosen(choice)
        return choice, chooser

    async def hold(self, choice: Choice, chooser: Chooser | None) -> Choice:
        """Serve what was chosen; return what to hold instead, once there is something better."""
        place = self.place
        async with open_serving(place.network, place.directory, place.torch_thread, self._offer(choice)) as serving:
            self.tell.begun(serving)
            if chooser is not None:
                settled = await chooser.settle(choice)
                if settled is not choice:
                    choice = settled
                    serving.offer_instead(self._offer(choice))
                    self.tell.chosen(choice)
            start, end = choice.window
            loading = partial(
                self.checkpoint.load_span,
                start,
                end,
                dtype=self.dtype,
                device=self._placement(choice),
                quant=self.quant,
                adapters=self._held_adapters,
            )
            key = replace(self.key, blocks=end - start)
            known = self.measured.rates(key)
            await serving.begin(
                await load(lambda progress: loading(progress=progress), place.progress),
                known=None if known is None else astuple(known),
            )
            self.tell.ready(self._info(serving, choice))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serving.run)
                # What was known was good enough to begin with; the next start is to know better.
                rates = serving.rates if known is None else await serving.measure()
                await trio.to_thread.run_sync(self.measured.keep, key, SpanRates(*rates))
                if chooser is not None:
                    choice = await chooser.elsewhere(serving)
                    self.tell.chosen(choice)
                    nursery.cancel_scope.cancel()
        return choice

    @property
    def _held_adapters(self) -> list[Adapter]:
        """The adapters, but one of two names only once."""
        return list({adapter.key: adapter for adapter in self.adapters}.values())

    def _request(self) -> Request:
        blocks = self.wanted.blocks
        named = blocks is not None and blocks != AUTO
        return Request(
            window=parse_blocks(blocks, self.checkpoint.num_blocks) if named and blocks is not None else None,
            count=self.wanted.num_blocks,
            auto=blocks == AUTO or self.wanted.num_blocks is not None,
            cache_tokens=self.wanted.cache_tokens,
            cache_memory=self.wanted.cache_memory,
            max_memory=None if self.wanted.max_memory is None else self.wanted.max_memory - self.wanted.training_bytes,
            offload=self.wanted.offload,
            quant=self.quant,
        )

    def _placement(self, choice: Choice) -> Placement:
        spread = choice.spread
        if spread is None:
            start, end = choice.window
            return Placement.whole(self.devices[0], end - start)
        return Placement(tuple(self.devices[device] for device in spread.devices), spread.offloaded)

    def _offer(self, choice: Choice) -> Offer:
        start, end = choice.window
        expected = self.measured.expected(replace(self.key, blocks=end - start))
        return Offer(
            model=checkpoint_id(self.checkpoint),
            num_blocks=self.checkpoint.num_blocks,
            start=start,
            end=end,
            dtype=dtype_name(self.dtype),
            quantisation=self.key.quant,
            cache_tokens=choice.cache_tokens,
            public_name=self.wanted.public_name,
            compression=self.wanted.compression,
            segment_tokens=self.wanted.prefill_chunk or None,
            deterministic=self.wanted.deterministic,
            prefix_cache=self.wanted.prefix_cache,
            share_prefixes=self.wanted.share_prefixes,
            preferred=self.wanted.preferred,
            adapters=tuple(AdapterId(each.name, each.digest) for each in self.adapters),
            training_bytes=self.wanted.training_bytes,
            expected=(0.0, 0.0) if expected is None else astuple(expected),
        )

    def _info(self, serving: Serving, choice: Choice) -> ServerInfo:
        offer = serving.offer
        decode, prefill = serving.rates
        return ServerInfo(
            model=offer.model,
            num_blocks=offer.num_blocks,
            start=offer.start,
            end=offer.end,
            dtype=offer.dtype,
            quantisation=offer.quantisation,
            device=str(self._placement(choice)),
            cache_tokens=offer.cache_tokens,
            cache_bytes=serving.cache_bytes,
            decode_tokens_per_second=decode,
            prefill_tokens_per_second=prefill,
        )
