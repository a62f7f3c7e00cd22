"""A pond for every test of the serving side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from support.pond import Pond
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.node.net.memory import open_memory_net
from swarmnode.node.torch_thread import open_torch_thread


@pytest.fixture
async def pond(tiny_llama: Path) -> AsyncIterator[Pond]:
    torch.set_num_threads(1)
    async with open_memory_net() as net, open_torch_thread() as torch_thread:
        yield Pond(net, open_checkpoint(str(tiny_llama)), torch_thread)
