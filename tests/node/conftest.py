"""A tiny real model, made once for all tests of the node."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmnode.testing import make_tiny_model


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 4 blocks, 64 wide."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")
