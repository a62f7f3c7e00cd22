"""What every test shares: quiet numerics on a small machine, and no touching of the user's own folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: processes started by tests inherit these too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _own_state_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identities and configs go to a folder of the test, and no flag leaks in from the environment."""
    home: Path = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    for name in list(os.environ):
        if name.startswith("SWARMNODE_"):
            monkeypatch.delenv(name)
