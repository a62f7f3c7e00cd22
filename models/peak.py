"""How much memory torch code takes at its peak, found by running it, perhaps on tensors that have shapes but no memory.

On the meta device that takes milliseconds whatever the shapes; a `Ledger` alone counts on any. Knows no model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Ledger", "without_memory"]

_A_NUMBER = frozenset(
    (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
)
_PLACES = frozenset(
    (torch.ops.aten.nonzero.default, torch.ops.aten.nonzero_numpy.default, torch.ops.aten.where.default)
)


@contextmanager
def without_memory(device_type: str) -> Iterator[Ledger]:
    """Inside, torch code may run on tensors of the meta device, and what it would take is kept account of.

    What asks for numbers there gets none: how many are not zero is answered by "all", a single number is 1.

    Args:
        device_type: whose way of computing attention is meant: `cpu`, `cuda`, `mps`.

    Raises:
        NotImplementedError, RuntimeError: the code inside wants to see numbers in another way.
    """
    with _FusedAttention(device_type), Ledger() as ledger:
        yield ledger


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has not typed how it is subclassed
    """Adds up the storages that operations make, from their making to their end.

    Args:
        numbers: whether the tensors have any, so that what asks for them is not to be answered here.
    """

    def __init__(self, *, numbers: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers = numbers
        self._peak = 0
        self._now = 0
        self._sizes: dict[int, int] = {}
        # Storages that were there before: held, so that none of those made later can have the key of one that is gone.
        self._before: list[torch.UntypedStorage] = []

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """The most bytes that live at once of all that `run` makes."""
        before = self._peak = self._now
        run()
        return self._peak - before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = 0
                self._before.append(storage)
        if func in _A_NUMBER and not self._numbers:
            return True if func is torch.ops.aten.is_nonzero.default else 1
        if func in _PLACES and not self._numbers:
            made = args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
            made = made if func is torch.ops.aten.nonzero.default else made.unbind(1)
        else:
            made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage._cdata not in self._sizes:
                size = self._sizes[storage._cdata] = storage.nbytes()
                self._now += size
                weakref.finalize(storage, self._forget, storage._cdata)
        self._peak = max(self._peak, self._now)
        return made

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


class _FusedAttention(TorchFunctionMode):
    """Lets attention take what the kernels of a device take, where plain torch code would make all of its scores."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type
        self._inside = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)  # the kernels add a mask, so it becomes numbers
        if self._device_type != "cpu" or query.shape[-1] == value.shape[-1]:
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        # The CPU's kernel wants all heads equally wide; else all scores are made, in float32 whatever the dtype.
        scores = query.new_empty((*query.shape[:-1], key.shape[-2]), dtype=torch.float32)
        if attn_mask is not None:
            scores = scores + attn_mask
        weights = torch.softmax(scores, dim=-1)
        return weights.new_empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype)


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
