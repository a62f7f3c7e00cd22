"""Where and in which number format to compute, from what a person wrote. Knows torch, no model."""

from __future__ import annotations

import torch

from swarmnode.errors import BadInput
from swarmnode.protocols.tensors import DTYPE_BYTES

__all__ = ["torch_device", "torch_dtype"]

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
