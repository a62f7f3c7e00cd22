"""A linear layer whose weight is kept in 8 or 4 bits, how it multiplies, and which layers of a block it stands in for.

Knows neither checkpoints nor who makes the codes.

int8: `weight[row, column]` is about `scale[row] * code`. int4: about `scale[row, group] * code - shift[row, group]`,
with codes from 0 to 15, two to a byte, in groups of `GROUP_COLUMNS` columns. So optimum's quanto means them, too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from .kernels import torch_is_quick
from .packed import running_batch
from .runs import Many, by_runs, few_tokens, widened

__all__ = ["GROUP_COLUMNS", "SCHEMES", "QuantisedLinear", "Scheme", "quantisable"]

Scheme = Literal["int8", "int4"]
SCHEMES: Final[tuple[Scheme, ...]] = get_args(Scheme)

GROUP_COLUMNS: Final = 64
"""Of a row, how many neighbours share a scale and a shift in int4. The kernels know 32, 64, 128 and 256."""

BLOCK_ROWS: Final = (64, 32)
"""torch's CPU kernel for 4 bits wants a weight in blocks of so many rows: with AVX-512, with AVX2."""

ROUTERS: Final = frozenset(("classifier", "gate", "router", "router_gate", "shared_expert_gate", "wg"))
"""Names of layers that choose experts. They are tiny, and a choice that comes out otherwise is a large error."""

LEAST_OUTPUTS: Final = 32
"""Layers with fewer outputs stay as they are, for the same reason: what they make steers a whole head or block."""

UNPACKED_BYTES: Final = 16 << 20
"""Codes are brought into a kernel's order in pieces that take no more than this while they are."""


def quantisable(block: nn.Module, scheme: Scheme) -> dict[str, nn.Linear]:
    """The linear layers of a block that may be kept in few bits, by their path in it.

    These are plain ones only: a subclass may do something else with its weight. Experts that are stored together, in
    three dimensions, are no linear layers; nor is GPT-2's `Conv1D`.
    """
    return {
        path: module
        for path, module in block.named_modules()
        if type(module) is nn.Linear
        and path.rpartition(".")[2] not in ROUTERS
        and module.out_features >= LEAST_OUTPUTS
        and (scheme == "int8" or module.in_features % GROUP_COLUMNS == 0)
    }


class QuantisedLinear(nn.Linear):
    """Stands in for a linear layer; its weight comes by `fill`. A linear layer for whoever looks for one.

    Args:
        linear: what it stands in for; its shape, its type and its bias are taken.

    Attributes:
        codes, scale, shift: the weight, None until `fill`. Not in the state dict: checkpoints know nothing of them.
    """

    def __init__(self, linear: nn.Linear, scheme: Scheme) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scheme = scheme
        self.bias = linear.bias
        self._dtype = linear.weight.dtype
        self._block_rows = 0  # of the kernel's order that the codes are in; 0: in that of `parts`
        self.codes: torch.Tensor
        self.scale: torch.Tensor
        self.shift: torch.Tensor | None
        for name in ("codes", "scale", "shift"):
            self.register_buffer(name, None, persistent=False)
        self._is_hf_initialized = True  # transformers would fill the weight with noise

    @property
    def parts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What `fill` wants: type and shape of each tensor."""
        rows, columns = self.out_features, self.in_features
        if self.scheme == "int8":
            return {"codes": (torch.int8, (rows, columns)), "scale": (self._dtype, (rows,))}
        groups = (rows, columns // GROUP_COLUMNS)
        return {
            "codes": (torch.uint8, (rows, columns // 2)),
            "scale": (self._dtype, groups),
            "shift": (self._dtype, groups),
        }

    def fill(self, parts: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Take the weight, in the order in which `device` computes with it; it is not moved there."""
        codes, scale = parts["codes"], parts["scale"]
        shift = parts.get("shift")
        self._block_rows = _block_rows() if shift is not None and self._has_kernel(device) else 0
        if self._block_rows and shift is not None:
            codes = _into_order(codes)
            # What the kernel adds belongs to the middle of the codes' range.
            scale = torch.stack([scale, 8 * scale - shift], -1).transpose(0, 1).contiguous()
            shift = None
        self.codes, self.scale, self.shift = codes, scale, shift

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]  # nn.Linear has it as a parameter
        """The weight made whole again, `[out_features, in_features]`: for stock code that looks at it."""
        if self.scheme == "int8":
            return self.codes.to(self._dtype) * self.scale[:, None]
        if self._block_rows:
            return self._from_order()
        codes = _unpacked(self.codes).view(*self.scale.shape, GROUP_COLUMNS)
        assert self.shift is not None
        whole = codes.to(self._dtype) * self.scale[..., None] - self.shift[..., None]
        return whole.view(self.out_features, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear; gradients reach the input and the bias."""
        rows = input.shape[:-1].numel()
        takes_kernel = rows > 0 and self._takes_kernel(input)
        batch = running_batch() if takes_kernel else None
        if batch is not None:
            out = by_runs(batch, input, self.out_features, self._by_kernel, self._by_weight)
        elif takes_kernel and rows <= few_tokens(self._dtype):
            out = input.new_empty(*input.shape[:-1], self.out_features)
            self._by_kernel(input.reshape(rows, -1), out.view(rows, -1), [(0, rows)])
        else:
            out = self._by_weight()(input)
        return out if self.bias is None else out + self.bias  # type: ignore[redundant-expr]  # nn.Linear has it

    def extra_repr(self) -> str:
        """What `print` shows between the brackets."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.scheme}"

    def _has_kernel(self, device: torch.device) -> bool:
        if device.type != "cpu" or self._dtype is not torch.bfloat16:
            return False  # for other types the CPU's kernels are slower than what is done without them
        return self.in_features % 4 == 0 if self.scheme == "int8" else self.out_features % max(BLOCK_ROWS) == 0

    def _takes_kernel(self, input: torch.Tensor) -> bool:
        if not self._has_kernel(input.device) or (torch.is_grad_enabled() and input.requires_grad):
            return False
        return self.scheme == "int8" or self._block_rows > 0

    def _by_kernel(self, rows: torch.Tensor, out: torch.Tensor, runs: Sequence[tuple[int, int]]) -> None:
        """torch's kernels go through the weight once for each row."""
        for start, stop in runs:
            if self.scheme == "int8":
                out[start:stop] = torch._weight_int8pack_mm(rows[start:stop], self.codes, self.scale)
            else:
                out[start:stop] = torch._weight_int4pack_mm_for_cpu(
                    rows[start:stop], self.codes, GROUP_COLUMNS, self.scale
                )

    def _by_weight(self) -> Many:
        """What multiplies by the weight made whole again, which is quicker for more rows than a few."""
        multiply = functional.linear if torch_is_quick(self._dtype) or torch.is_grad_enabled() else widened
        if self.scheme == "int8" and self._dtype is not torch.float16:
            # Scaled afterwards, codes are exact in any type; but float16 ends where their sums may go.
            codes = self.codes.to(self._dtype)
            return lambda rows: multiply(rows, codes) * self.scale
        weight = self.weight
        return lambda rows: multiply(rows, weight)

    def _from_order(self) -> torch.Tensor:
        codes = _out_of_order(self.codes, self._block_rows)
        grouped = codes.view(-1, GROUP_COLUMNS, self.out_features).to(self._dtype)
        scale, middle = self.scale.unbind(-1)
        lowest = (middle.float() - 8 * scale.float()).to(self._dtype)
        # Contiguous, because this takes as long as all else together.
        whole = torch.addcmul(lowest.unsqueeze(1), grouped, scale.contiguous().unsqueeze(1))
        return whole.view(self.in_features, self.out_features).t()


def _unpacked(codes: torch.Tensor) -> torch.Tensor:
    """The two codes of each byte, that of the lower half first."""
    return torch.stack([codes & 15, codes >> 4], -1).flatten(-2)


def _into_order(codes: torch.Tensor) -> torch.Tensor:
    """Packed codes as the CPU's kernel wants them."""
    rows = max(BLOCK_ROWS)
    step = max(1, UNPACKED_BYTES // (8 * codes.shape[1] * rows)) * rows
    ordered = torch.empty_like(codes)
    for first in range(0, codes.shape[0], step):
        some = _unpacked(codes[first : first + step]).to(torch.int32)
        ordered[first : first + step] = torch._convert_weight_to_int4pack_for_cpu(some, 1).view(some.shape[0], -1)
    return ordered


def _out_of_order(codes: torch.Tensor, rows: int) -> torch.Tensor:
    """The codes of a weight that is in the kernel's order, transposed: `[columns, all rows]`, a byte each.

    The kernel has blocks of `rows` rows, column by column, and two rows that are half a block apart share a byte.
    """
    pairs = codes.view(-1, 2 * codes.shape[1], rows // 2).transpose(0, 1)
    apart = torch.empty(*pairs.shape[:2], rows, dtype=torch.uint8, device=codes.device)
    torch.bitwise_and(pairs, 15, out=apart[..., : rows // 2])
    torch.bitwise_right_shift(pairs, 4, out=apart[..., rows // 2 :])
    return apart.flatten(1)


@functools.cache
def _block_rows() -> int:
    """Which order this CPU's kernel has, found by trying; 0 if it is none that is known here."""
    rows, columns = max(BLOCK_ROWS), 16
    codes = torch.arange(rows * columns).mul(7).remainder(251).to(torch.uint8).view(rows, columns)
    ordered = _into_order(codes)
    return next((each for each in BLOCK_ROWS if torch.equal(_out_of_order(ordered, each).t(), _unpacked(codes))), 0)
