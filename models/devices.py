"""Blocks of one part on several devices, or kept in the machine's memory and brought to a device for each pass.

PyTorch's own hooks on the stock blocks move what a block is given to where the block is; the family's code does not
notice. Which block goes where is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["Placement", "settle"]

MAX_WAITING_BLOCKS: Final = 1
"""Offloaded blocks that may lie on a device before their turn: while one computes, the next is on its way."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the blocks of a part go.

    Attributes:
        devices: for each held block, in order, the device that computes it. What the blocks share goes to the first.
        offloaded: which of them, counted from 0, stay in the machine's memory between passes.
    """

    devices: tuple[torch.device, ...]
    offloaded: frozenset[int] = frozenset()

    @staticmethod
    def whole(device: torch.device | str, blocks: int) -> Placement:
        """All on one device."""
        return Placement((torch.device(device),) * blocks)

    def __str__(self) -> str:
        names = ", ".join(dict.fromkeys(map(str, self.devices)))
        return f"{names}, {len(self.offloaded)} blocks offloaded" if self.offloaded else names

    @property
    def is_plain(self) -> bool:
        """Whether everything is on one device."""
        return len(set(self.devices)) == 1 and not self.offloaded


def settle(model: PreTrainedModel, placement: Placement) -> None:
    """Put the blocks of a part, loaded in the machine's memory, to their places; all else to the first device."""
    blocks = cast(nn.ModuleList, model.get_submodule(model.swarmnode_layout.blocks))
    held = list(blocks)[model.part.start : model.part.end]
    stores = {device: _Store(device) for device in {placement.devices[index] for index in placement.offloaded}}
    for index, (block, device) in enumerate(zip(held, placement.devices, strict=True)):
        if index in placement.offloaded:
            stores[device].keep(block)
        else:
            for module in block.modules():
                _move_own(module, device)
        block.register_forward_pre_hook(_Mover(device), with_kwargs=True, prepend=True)
    others = {id(each) for block in held for each in block.modules()}
    for module in model.modules():
        if id(module) not in others:
            _move_own(module, placement.devices[0])


def _move_own(module: nn.Module, device: torch.device) -> None:
    """Move a module's own parameters and buffers, not those of its children."""
    for weight in _own_weights(module):
        weight.slots[weight.name] = _like(weight.host, weight.host.to(device))


def _own_weights(module: nn.Module) -> Iterator[_Weight]:
    """A module's own parameters and buffers, not those of its children."""
    for slots in (module._parameters, module._buffers):
        named = cast(dict[str, torch.Tensor | None], slots)
        yield from [_Weight(named, name, tensor) for name, tensor in named.items() if tensor is not None]


class _Mover:
    """A hook that brings what a block is given to where it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return _moved(args, self._device), _moved(kwargs, self._device)


def _moved(given: Any, device: torch.device) -> Any:
    """The same with every tensor in it on `device`; whatever else it holds, such as a cache, is handed on."""
    if isinstance(given, torch.Tensor):
        return given.to(device, non_blocking=True)
    if type(given) in (tuple, list):
        return type(given)(_moved(each, device) for each in given)
    if type(given) is dict:
        return {name: _moved(each, device) for name, each in given.items()}
    return given


@dataclass(slots=True)
class _Weight:
    """A place for a tensor in a module, and what belongs there between passes."""

    slots: dict[str, torch.Tensor | None]
    name: str
    host: torch.Tensor


class _Store:
    """The offloaded blocks of one device, in their order.

    While one computes, the next one's weights are copied beside it; behind the last comes the first, of the next pass.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[list[_Weight]] = []
        self._ready: dict[int, tuple[list[torch.Tensor], torch.cuda.Event | None]] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and torch.cuda.is_available() else None  # type: ignore[no-untyped-call]

    def keep(self, block: nn.Module) -> None:
        """Take a block that lies in the machine's memory, and bring it to the device whenever it is called."""
        weights = [weight for module in block.modules() for weight in _own_weights(module)]
        for weight in weights:
            weight.host = weight.slots[weight.name] = self._pinned(weight.host)
        index = len(self._blocks)
        self._blocks.append(weights)
        block.register_forward_pre_hook(lambda *_: self._enter(index))
        block.register_forward_hook(lambda *_: self._leave(index), always_call=True)

    def _enter(self, index: int) -> None:
        copies, copied = self._ready.pop(index) if index in self._ready else self._copy(index)
        if copied is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(copied)
            for copy in copies:
                copy.record_stream(now)
        for weight, copy in zip(self._blocks[index], copies, strict=True):
            weight.slots[weight.name] = copy
        following = (index + 1) % len(self._blocks)
        if self._stream is not None and following != index and len(self._ready) < MAX_WAITING_BLOCKS:
            self._ready[following] = self._copy(following)

    def _leave(self, index: int) -> None:
        for weight in self._blocks[index]:
            weight.slots[weight.name] = weight.host

    def _copy(self, index: int) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
        hosts = [weight.host for weight in self._blocks[index]]
        if self._stream is None:
            return [_like(host, host.to(self._device, copy=True)) for host in hosts], None
        with torch.cuda.stream(self._stream):
            copies = [_like(host, host.to(self._device, non_blocking=True)) for host in hosts]
            return copies, self._stream.record_event()

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where copies need not wait for the processor."""
        return tensor if self._stream is None else _like(tensor, tensor.detach().pin_memory())


def _like(model: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter where the model is one: some kernels are picked by what requires a gradient."""
    return nn.Parameter(tensor.detach(), model.requires_grad) if isinstance(model, nn.Parameter) else tensor
