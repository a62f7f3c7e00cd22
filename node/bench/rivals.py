"""What the codec is measured against: hivemind's blockwise 8-bit scheme and plain 8-bit floats, in torch operations.

hivemind sends activations as `bitsandbytes` quantises them: in blocks of 4,096 values of the flattened tensor, each
over its largest magnitude, to the nearest of 256 numbers that lie denser round zero (dynamic tree quantisation, arXiv
1511.04561 and 2110.02861); with a message go the numbers and one float32 a block. Written from that description.
`bitsandbytes` itself is several times quicker on a CPU; where it can be imported, its own routines are timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

import torch

__all__ = ["BLOCK", "Blockwise", "about", "bitsandbytes", "blockwise", "plain_float8", "unblockwise"]

BLOCK: Final = 4096
EXPONENTS: Final = 7
FLOAT8: Final = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57_344.0)}


@dataclass(frozen=True, slots=True)
class Blockwise:
    """A tensor in the blockwise scheme."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def message_bytes(self) -> int:
        """Codes, scales, and the numbers that the codes stand for."""
        return self.codes.nbytes + self.scales.nbytes + numbers().nbytes


@cache
def numbers() -> torch.Tensor:
    """The 256 numbers: for each power of ten from 1e-6 to 1, twice as many steps as for the one below; 0; and 1."""
    positive = []
    for exponent in range(EXPONENTS):
        edges = torch.linspace(0.1, 1.0, 2**exponent + 1, dtype=torch.float64)
        positive.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - EXPONENTS + 1))
    halves = torch.cat(positive)
    return torch.cat([-halves, halves, torch.tensor([0.0, 1.0])]).sort().values.to(torch.float32)


@cache
def _midpoints() -> torch.Tensor:
    known = numbers()
    return (known[1:] + known[:-1]) / 2


def blockwise(values: torch.Tensor) -> Blockwise:
    """float32 values, quantised."""
    flat = values.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    scales = padded.abs().amax(dim=1)
    codes = torch.bucketize(padded / scales.clamp_min(1e-38).unsqueeze(1), _midpoints(), out_int32=True)
    return Blockwise(codes.reshape(-1)[: len(flat)].to(torch.uint8), scales)


def unblockwise(coded: Blockwise, shape: torch.Size) -> torch.Tensor:
    """The values again, in float32."""
    values = numbers()[coded.codes.to(torch.int32)]
    return (values * coded.scales.repeat_interleave(BLOCK)[: len(values)]).reshape(shape)


def bitsandbytes() -> Any | None:
    """The library's own routines, if it is installed; the stack does not have it."""
    return import_module("bitsandbytes.functional") if find_spec("bitsandbytes") is not None else None


def about() -> str:
    """By what hivemind's scheme is timed."""
    if bitsandbytes() is None:
        return "hivemind's 8 bits in torch operations only; with bitsandbytes on PYTHONPATH, by that library too"
    return f"hivemind's 8 bits in torch operations, and by bitsandbytes {version('bitsandbytes')}, which it uses"


def plain_float8(values: torch.Tensor, kind: str) -> torch.Tensor:
    """A cast to 8-bit floats without any scale; what is out of range becomes the largest of them."""
    dtype, most = FLOAT8[kind]
    return values.clamp(-most, most).to(dtype)
