"""What the tests of the command line share: a tiny model in a folder, and commands run in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.tiny_folder import make_tiny_model
from swarmnode.node.cli.main import main

Events = list[dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("one") / "tiny-llama", seed=1)


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same name and shape with other weights."""
    return make_tiny_model(tmp_path_factory.mktemp("two") / "tiny-llama", seed=2)


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Events]]:
    """Runs a command with `--json` in this process: its exit code and its events."""
    # The program settles logging for its whole process; this process goes on.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def run(*arguments: str) -> tuple[int, Events]:
        code = main([*arguments, "--json"])
        return code, [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    return run
