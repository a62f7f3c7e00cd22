"""Where and in which number format to compute, from what a person wrote. Knows torch, no model."""

from __future__ import annotations

from typing import Final

import torch

from swarmnode.errors import BadInput
from swarmnode.protocols.tensors import DTYPE_BYTES

__all__ = ["torch_device", "torch_devices", "torch_dtype"]

MAX_DEVICES: Final = 64

_DTYPES = {name: getattr(torch, name) for name in DTYPE_BYTES}


def torch_dtype(name: str, stored: torch.dtype) -> torch.dtype:
    """`auto` is the dtype the weights are stored in. Raises `BadInput`."""
    if name == "auto":
        return stored if stored in _DTYPES.values() else torch.float32
    if name not in _DTYPES:
        raise BadInput(f"{name!r} is no dtype.", hint=f"Give auto, {', '.join(_DTYPES)}.")
    dtype: torch.dtype = _DTYPES[name]
    return dtype


def torch_device(name: str) -> torch.device:
    """`auto` is the first accelerator, else the CPU. Raises `BadInput` for a device that is not here."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"{name!r} is no device.", hint="Give auto, cpu, cuda, cuda:1 or mps.") from None
    if device.type != "cpu" and (found is None or found.type != device.type):
        raise BadInput(
            f"There is no {name} device here.", hint=f"Use {found.type if found else 'cpu'}, or check its driver."
        )
    return device


def torch_devices(names: str) -> tuple[torch.device, ...]:
    """`cuda:0,cuda:1` is both, in this order; `auto` is every GPU, else the CPU.

    Raises:
        BadInput: one is not here, or they are not of one kind, or one is named twice.
    """
    if names == "auto":
        device = torch_device(names)
        if device.type == "cuda":
            return tuple(torch.device("cuda", index) for index in range(min(torch.cuda.device_count(), MAX_DEVICES)))
        return (device,)
    devices = tuple(torch_device(name.strip()) for name in names.split(","))
    if len(devices) > 1:
        devices = tuple(torch.device(each.type, each.index or 0) for each in devices)
    if len(set(devices)) < len(devices) or len({each.type for each in devices}) > 1:
        raise BadInput(
            f"Blocks cannot be split over {names!r}.", hint="Name different devices of one kind: cuda:0,cuda:1."
        )
    return devices
