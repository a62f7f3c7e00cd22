"""The models that several tests of this room read."""

from __future__ import annotations

import pytest

from swarmnode.models.checkpoint import BUNDLED_NAME, Checkpoint, open_checkpoint


@pytest.fixture(scope="session")
def bundled() -> Checkpoint:
    """The bundled real model. Its conversion is kept in the user's cache, as in daily use."""
    return open_checkpoint(BUNDLED_NAME)
