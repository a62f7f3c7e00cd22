"""What every test shares: quiet numerics on a small machine, and no touching of the user's own folders."""

from __future__ import annotations

import os
from datetime import date
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where `TURNS_IN_DAYS` is set, leave out those `in_turns` tests that have their turn on another of so many days.

    One by one, in the order of the files; those with the same name in their marker have their turn together.
    """
    days = int(os.environ.get("TURNS_IN_DAYS", "1"))
    turns: dict[str, int] = {}
    for item in items:
        marker = item.get_closest_marker("in_turns")
        if marker is None:
            continue
        turn = turns.setdefault(marker.args[0] if marker.args else item.nodeid, len(turns))
        if (turn + date.today().toordinal()) % days:
            item.add_marker(pytest.mark.skip(reason=f"has its turn once in TURNS_IN_DAYS={days} days"))
