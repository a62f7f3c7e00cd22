"""A pond for every test of the serving side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from support.pond import Pond
from swarmnode.errors import SwarmnodeError
from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.node.net.memory import open_memory_net
from swarmnode.node.server.engine import Computed
from swarmnode.node.server.session import ServerSession
from swarmnode.node.torch_thread import open_torch_thread
from swarmnode.protocols.messages import Step


@pytest.fixture
async def pond(tiny_llama: Path) -> AsyncIterator[Pond]:
    torch.set_num_threads(1)
    async with open_memory_net() as net, open_torch_thread() as torch_thread:
        yield Pond(net, open_checkpoint(str(tiny_llama)), torch_thread)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The steps whose results the engine has handed out, in that order: the session's first byte, and tokens."""
    steps: list[tuple[int, int]] = []
    hand_on = ServerSession._ran

    def note(session: ServerSession, step: Step, peer: str, computed: Computed | SwarmnodeError) -> None:
        steps.append((session.asked.session[0], step.tensor.tokens))
        hand_on(session, step, peer, computed)

    monkeypatch.setattr(ServerSession, "_ran", note)
    return steps
