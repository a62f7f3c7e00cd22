"""Tiny models, each made once for all tests of swarms in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from support.tiny_swarm import Tiny
from swarmnode.testing import make_tiny_model


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Tiny models by family, each made once."""
    made: dict[str, Tiny] = {}

    def make(family: str) -> Tiny:
        if family not in made:
            made[family] = Tiny(make_tiny_model(tmp_path_factory.mktemp("tiny") / family, family))
        return made[family]

    return make


@pytest.fixture
def llama(tiny: Callable[[str], Tiny]) -> Tiny:
    """A llama of 4 blocks."""
    return tiny("llama")
