"""What a long pass does between two blocks: lets urgent calls of the torch thread run, when it is time for that."""

from __future__ import annotations

import time

import torch

from swarmnode.node.torch_thread import TorchThread

from .pauses import Pauses

__all__ = ["GivingWay"]


class GivingWay:
    """To be called between blocks, on the torch thread.

    Args:
        device: where blocks are computed.
    """

    def __init__(self, torch_thread: TorchThread, device: torch.device) -> None:
        self._torch_thread = torch_thread
        self._device = device
        self._pauses = Pauses()
        self._last_block: torch.cuda.Event | None = None

    def __call__(self) -> None:
        """Let others run, if any wait and the last pause is long enough ago."""
        if self._device.type == "cuda":
            self._keep_up()
        began = time.perf_counter()
        if self._pauses.due(began) and self._torch_thread.give_way():
            self._pauses.took(began, time.perf_counter())

    def _keep_up(self) -> None:
        """Wait for the block before the last: a GPU works off what it was given first, so it is not given much more."""
        before, self._last_block = self._last_block, torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last_block.record(torch.cuda.current_stream(self._device))
        if before is not None:
            before.synchronize()
